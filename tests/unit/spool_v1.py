"""Makes a spool as Octogate's first version did: its tables, its statements, two streams, part of it delivered.

python -m tests.unit.spool_v1 FILE
"""

from __future__ import annotations

import sqlite3
import sys
from contextlib import closing
from pathlib import Path

from gateway.contract import BatchKind
from gateway.store.columns import Codec, Header
from tests.unit.samples import SCHEMA, counted

EPOCH = b"version-one-made"
STREAM = "press/power"
BATCHES, PER_BATCH, CONFIRMED = 30, 10, 120

TABLES = """
CREATE TABLE spool (epoch BLOB NOT NULL, head INTEGER NOT NULL);
CREATE TABLE stream (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, kind TEXT NOT NULL,
    next_seq INTEGER NOT NULL DEFAULT 0, confirmed INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE batch (
    id INTEGER PRIMARY KEY, stream INTEGER NOT NULL REFERENCES stream (id), seq_first INTEGER NOT NULL,
    n INTEGER NOT NULL, session INTEGER, mark INTEGER, blob BLOB NOT NULL
);
CREATE UNIQUE INDEX batch_by_seq ON batch (stream, seq_first);
CREATE TABLE mark (source TEXT PRIMARY KEY, session INTEGER NOT NULL, next_seq INTEGER NOT NULL, head INTEGER NOT NULL);
PRAGMA user_version = 1;
"""


def make(path: Path) -> None:
    """Write the file."""
    codec = Codec()
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.executescript(TABLES)
        db.execute("INSERT INTO spool VALUES (?, 0)", (EPOCH,))
        db.execute("INSERT INTO stream VALUES (1, ?, 'samples', 0, ?)", (STREAM, CONFIRMED))
        db.execute("INSERT INTO stream VALUES (2, 'events', 'events', 0, 0)")
        for i in range(BATCHES):
            seq = i * PER_BATCH
            header = Header(EPOCH, STREAM, seq, PER_BATCH, BatchKind.SAMPLES, SCHEMA.spec(), "old-boot", None, 0)
            blob = codec.encode_samples(header, [counted(STREAM, seq, PER_BATCH)])
            db.execute("INSERT INTO batch VALUES (?, 1, ?, ?, 9, ?, ?)", (2 * i + 1, seq, PER_BATCH, i, blob))
            header = Header(EPOCH, "events", i, 1, BatchKind.EVENTS, "", "old-boot", None, 0)
            db.execute("INSERT INTO batch VALUES (?, 2, ?, 1, NULL, NULL, ?)",
                       (2 * i + 2, i, codec.encode_rows(header, [b"{}"])))  # fmt: skip
        db.commit()


if __name__ == "__main__":
    make(Path(sys.argv[1]))
