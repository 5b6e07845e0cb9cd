"""The spool's file: its tables by version, and how it is opened."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gateway.errors import StoreError

PAGE = 4096
# A checkpoint that Octogate does itself comes far earlier; this one is for a writer that never pauses.
_AUTOCHECKPOINT = 8000
DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)

# One entry a version; each is run once, in order, in one transaction (PRAGMA user_version counts them). An entry that
# was released is never edited.
#
# A commit touches as few pages as it can, for the latency and for the flash: it only inserts batches. Everything else
# is books: what can be told from the batches up to `spool.counted`, written now and then in one transaction
# (gateway.store.books). How far a stream and a source have come is read from their last batch; the columns `next_seq`,
# `head` and the table `mark` hold it for what was deleted.
MIGRATIONS = (
    """
    CREATE TABLE spool (epoch BLOB NOT NULL, head INTEGER NOT NULL);
    CREATE TABLE stream (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        kind TEXT NOT NULL,
        next_seq INTEGER NOT NULL DEFAULT 0,
        confirmed INTEGER NOT NULL DEFAULT 0
    );
    CREATE TABLE batch (
        id INTEGER PRIMARY KEY,
        stream INTEGER NOT NULL REFERENCES stream (id),
        seq_first INTEGER NOT NULL,
        n INTEGER NOT NULL,
        session INTEGER,
        mark INTEGER,
        blob BLOB NOT NULL
    );
    CREATE UNIQUE INDEX batch_by_seq ON batch (stream, seq_first);
    CREATE TABLE mark (
        source TEXT PRIMARY KEY, session INTEGER NOT NULL, next_seq INTEGER NOT NULL, head INTEGER NOT NULL
    );
    """,
    # 2: several uplinks, retention, gaps, time, wear. `life` is the spool's own time: nanoseconds that a machine with
    # this spool was switched on, as its monotonic clocks counted them; it never steps (design.md, "Time").
    """
    ALTER TABLE spool ADD COLUMN counted INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE spool ADD COLUMN life_ns INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE stream ADD COLUMN batches INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE stream ADD COLUMN bytes INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE stream ADD COLUMN packed INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE batch ADD COLUMN gap INTEGER NOT NULL DEFAULT 0;
    CREATE TABLE boot (
        id INTEGER PRIMARY KEY, boot TEXT NOT NULL UNIQUE, life_ns INTEGER NOT NULL,
        wall_offset_ns INTEGER, wall_error_ns INTEGER
    );
    CREATE TABLE watermark (
        uplink TEXT NOT NULL, stream INTEGER NOT NULL, seq INTEGER NOT NULL, PRIMARY KEY (uplink, stream)
    ) WITHOUT ROWID;
    INSERT INTO watermark SELECT 'main', id, confirmed FROM stream WHERE confirmed > 0;
    CREATE TABLE dropped (
        id INTEGER PRIMARY KEY, stream INTEGER NOT NULL, seq_first INTEGER NOT NULL, n INTEGER NOT NULL,
        why TEXT NOT NULL, boot INTEGER NOT NULL, first_ns INTEGER NOT NULL, last_ns INTEGER NOT NULL
    );
    CREATE INDEX dropped_by_stream ON dropped (stream, id);
    CREATE TABLE spec (id INTEGER PRIMARY KEY, spec TEXT NOT NULL UNIQUE);
    CREATE TABLE rollup (
        stream INTEGER NOT NULL, boot INTEGER NOT NULL, minute INTEGER NOT NULL, spec INTEGER NOT NULL,
        seq INTEGER NOT NULL, n INTEGER NOT NULL, data BLOB NOT NULL, PRIMARY KEY (stream, boot, minute, spec)
    ) WITHOUT ROWID;
    CREATE TABLE wear (
        day INTEGER PRIMARY KEY, written INTEGER NOT NULL, wal INTEGER NOT NULL, commits INTEGER NOT NULL,
        seconds INTEGER NOT NULL
    );
    CREATE TABLE wear_stream (
        day INTEGER NOT NULL, stream INTEGER NOT NULL, bytes INTEGER NOT NULL, n INTEGER NOT NULL,
        PRIMARY KEY (day, stream)
    ) WITHOUT ROWID;
    CREATE TABLE history (
        id INTEGER PRIMARY KEY, boot INTEGER NOT NULL, mono_ns INTEGER NOT NULL, what TEXT NOT NULL,
        detail TEXT NOT NULL
    );
    """,
)


def connect(path: Path, max_pages: int) -> sqlite3.Connection:
    """The writer's connection; made in one thread, used in another, never in two at once."""
    db = sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)
    try:
        db.execute(f"PRAGMA page_size = {PAGE}")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA cache_size = -1024")
        db.execute(f"PRAGMA wal_autocheckpoint = {_AUTOCHECKPOINT}")
        db.execute(f"PRAGMA max_page_count = {max_pages}")
    except sqlite3.Error:
        db.close()
        raise
    return db


def connect_reader(path: Path) -> sqlite3.Connection:
    """A connection that only reads, beside a daemon that writes.

    Raises:
        StoreError: there is no spool, or one of another version.
    """
    if not path.is_file():
        raise StoreError(f"{path}: there is no spool", hint="has the gateway run with this config?")
    with explained(path):
        db = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10, isolation_level=None)
        db.execute("PRAGMA query_only = ON")
        (version,) = db.execute("PRAGMA user_version").fetchone()
    if version != len(MIGRATIONS):
        db.close()
        older = version < len(MIGRATIONS)
        raise StoreError(
            f"{path}: a spool of version {version}, this is Octogate for version {len(MIGRATIONS)}",
            hint="start the gateway once, it brings the file up to date" if older else "update Octogate",
        )
    return db


def migrate(db: sqlite3.Connection, path: Path) -> None:
    """Bring the file to the newest version.

    Raises:
        StoreError: a newer version of Octogate made it.
    """
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version > len(MIGRATIONS):
        raise StoreError(f"{path}: made by a newer version of Octogate", hint="update, or use another data_dir")
    for number, script in enumerate(MIGRATIONS[version:], version + 1):
        db.execute("BEGIN IMMEDIATE")
        for statement in filter(str.strip, script.split(";")):
            db.execute(statement)
        if number == 1:
            db.execute("INSERT INTO spool (epoch, head) VALUES (?, 0)", (os.urandom(16),))
        db.execute(f"PRAGMA user_version = {number}")
        db.execute("COMMIT")
    path.chmod(0o600)


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """Everything in the block is on disk when it ends, or nothing."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    finally:
        if db.in_transaction:  # it failed, and SQLite has not rolled it back by itself
            db.execute("ROLLBACK")


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """SQLite's and the system's errors as ours."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise StoreError(
            f"{path}: cannot open the spool: {error}",
            hint="check gateway.data_dir and its disk; move a damaged file aside to start a new epoch",
        ) from error


def is_damage(error: sqlite3.Error) -> bool:
    """Whether an error says that the file itself is broken, not that the disk is full or away."""
    code: int = getattr(error, "sqlite_errorcode", 0) or 0
    return code & 0xFF in DAMAGE
