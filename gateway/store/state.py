"""How far the spool is: loaded when it is opened, moved by each commit."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from gateway.contract import BatchKind, Mark

_LAST_BATCHES = """
    SELECT b.stream, b.id, b.seq_first + b.n, b.session, b.mark FROM stream s JOIN batch b ON b.stream = s.id
    AND b.seq_first = (SELECT max(seq_first) FROM batch WHERE stream = s.id)
"""
Watermark = Mapping[str, int]


def source_of(stream: str) -> str:
    """The source whose readings a stream holds: streams are named `<source>/<node stream>`."""
    return stream.partition("/")[0]


class Watermarks(msgspec.Struct, frozen=True):
    """What a running daemon knows its consumers to have: uplink -> stream -> next sequence number.

    The file learns it with the books (gateway.store.books), minutes later; `octogate ledger` asks for it.
    """

    epoch: str
    confirmed: dict[str, dict[str, int]]


@dataclass(slots=True)
class State:
    """What is on disk. The mappings are replaced, never changed, so that any thread may read them.

    Attributes:
        head: the id of the newest batch, deleted ones included.
        counted: the id of the newest batch that the books know of.
        life_ns: the spool's life when the books were last written.
        ids: stream -> its row.
        next_seq: stream -> the sequence number of its next reading or row.
        marks: source -> how far it was taken.
        confirmed: uplink -> stream -> what its consumer has committed, as far as it is on disk.
    """

    epoch: bytes
    head: int
    counted: int
    life_ns: int
    ids: dict[str, int]
    kinds: dict[str, BatchKind]
    next_seq: dict[str, int]
    marks: dict[str, Mark]
    confirmed: dict[str, dict[str, int]]


def load(db: sqlite3.Connection) -> State:
    """What the file says; sqlite3.Error when it cannot be read."""
    epoch, head, counted, life_ns = db.execute("SELECT epoch, head, counted, life_ns FROM spool").fetchone()
    (last,) = db.execute("SELECT max(id) FROM batch").fetchone()
    streams = db.execute("SELECT id, name, kind, next_seq FROM stream ORDER BY id").fetchall()
    marks = db.execute("SELECT head, source, session, next_seq FROM mark").fetchall()
    ends = {row[0]: row[1:] for row in db.execute(_LAST_BATCHES)}
    names = {id: name for id, name, _, _ in streams}
    following: dict[str, int] = {}
    for id, name, _, next_seq in streams:
        batch_id, end, session, mark = ends.get(id, (0, 0, None, None))
        following[name] = max(next_seq, end)
        if session is not None:
            marks.append((batch_id, source_of(name), session, mark))
    marks.sort()  # by batch: a later one wins
    confirmed: dict[str, dict[str, int]] = {}
    for uplink, stream, seq in db.execute("SELECT uplink, stream, seq FROM watermark").fetchall():
        confirmed.setdefault(uplink, {})[names[stream]] = seq
    return State(
        epoch=epoch,
        head=max(head, last or 0),
        counted=counted,
        life_ns=life_ns,
        ids={name: id for id, name in names.items()},
        kinds={name: BatchKind(kind) for _, name, kind, _ in streams},
        next_seq=following,
        marks={source: Mark(source, session, seq) for _, source, session, seq in marks},
        confirmed=confirmed,
    )


def lowest(confirmed: Mapping[str, Watermark], uplinks: tuple[str, ...], stream: str) -> int:
    """What every one of these uplinks has of a stream; 0 when there is no uplink."""
    return min((confirmed.get(uplink, {}).get(stream, 0) for uplink in uplinks), default=0)
