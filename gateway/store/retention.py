"""What may be deleted, in which order, and that it is written down.

Three reasons to delete, always oldest first and whole batches:

- *delivered*: every configured uplink has it, and the file is more than half full, or the stream's own limit
  (`keep_mib`, `keep_days`) is passed. Nothing is lost, so nothing is noted.
- *limit without an uplink*: nobody waits for it, the stream's own limit is passed: noted as `bytes` or `age`.
- *drop*: the file or disk is full of what is not delivered and `store.when_full = "drop"`: lowest priority first, noted
  as `full`, and a gap takes its place so that consumers do not wait for it.

Age is the spool's life (`gateway.store.schema`): time switched on, by monotonic clocks. No step of a wall clock, and no
wrong one, can make anything older.
"""

from __future__ import annotations

import enum
import fnmatch
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gateway.contract import EVENTS_STREAM
from gateway.store.rollup import MINUTE_NS

DELETE_AT_ONCE = 1000  # batches a transaction, so that none becomes long
DROP_BYTES = 1 << 20  # what one drop frees, at most; of a small file a 64th
MAX_GAP = 1 << 20  # readings a gap stands for, the bound of any batch
LEDGER_STEP_NS = 600 * 10**9  # a drop that goes on for longer begins another line of the ledger


class Priority(enum.IntEnum):
    """Who goes first when there is no room; events go after everything else."""

    LOW = 0
    NORMAL = 1
    HIGH = 2
    EVENTS = 3


@dataclass(frozen=True, slots=True)
class Rule:
    """The limits of the streams whose names match (`*` and `?` as in a shell); 0 is no limit."""

    match: str
    priority: Priority = Priority.NORMAL
    keep_bytes: int = 0
    keep_ns: int = 0


@dataclass(frozen=True, slots=True)
class Policy:
    """What the config says about keeping.

    Attributes:
        rules: the first that matches a stream counts.
        drop: whether what is not delivered may go when the spool is full.
        uplinks: who must have a batch before it counts as delivered.
    """

    rules: tuple[Rule, ...] = ()
    drop: bool = False
    uplinks: tuple[str, ...] = ("main",)

    def rule(self, stream: str) -> Rule:
        for rule in self.rules:
            if fnmatch.fnmatchcase(stream, rule.match):
                return rule
        return Rule("*", Priority.EVENTS if stream == EVENTS_STREAM else Priority.NORMAL)


@dataclass(frozen=True, slots=True)
class Found:
    """A batch that may go."""

    id: int
    seq_first: int
    n: int
    size: int
    gap: int  # 1 when it only stands for what is no more

    @property
    def end(self) -> int:
        return self.seq_first + self.n


_OLDEST = (
    "SELECT id, seq_first, n, length(blob), gap FROM batch WHERE stream = ? AND seq_first < ? "
    "ORDER BY seq_first LIMIT ?"
)


def oldest(db: sqlite3.Connection, stream: int, below: int, limit: int = DELETE_AT_ONCE) -> list[Found]:
    """The oldest batches of a stream that lie wholly below a sequence number."""
    found = [Found(*row) for row in db.execute(_OLDEST, (stream, below, limit))]
    return [batch for batch in found if batch.end <= below]


def oldest_of_all(db: sqlite3.Connection, below: Mapping[int, int], limit: int) -> list[tuple[int, Found]]:
    """The oldest of several streams (stream id -> below), as (stream id, batch)."""
    found = [(stream, batch) for stream, seq in below.items() for batch in oldest(db, stream, seq, limit)]
    found.sort(key=lambda pair: pair[1].id)
    return found[:limit]


def delete(db: sqlite3.Connection, batches: Sequence[Found]) -> int:
    """Delete them; how many bytes of blobs that were."""
    db.executemany("DELETE FROM batch WHERE id = ?", [(batch.id,) for batch in batches])
    return sum(batch.size for batch in batches)


def older_than(db: sqlite3.Connection, stream: int, life_ns: int) -> int:
    """A sequence number before which everything of a stream is older than this moment of the spool's life.

    Known to the minute; where the statistics of that time are no more, nothing counts as older.
    """
    for boot, offset in db.execute("SELECT id, life_ns FROM boot ORDER BY id DESC").fetchall():
        row = db.execute(
            "SELECT seq FROM rollup WHERE stream = ? AND boot = ? AND minute < ? ORDER BY minute DESC LIMIT 1",
            (stream, boot, (life_ns - offset) // MINUTE_NS),
        ).fetchone()
        if row is not None:
            return int(row[0])
    return 0


def is_noted(db: sqlite3.Connection, stream: int, seq_first: int, n: int, why: str) -> bool:
    """Whether one line of the ledger says this of all of them already."""
    query = "SELECT 1 FROM dropped WHERE stream = ? AND why = ? AND seq_first <= ? AND seq_first + n >= ?"
    return db.execute(query, (stream, why, seq_first, seq_first + n)).fetchone() is not None


def note_dropped(
    db: sqlite3.Connection, stream: int, seq_first: int, n: int, why: str, boot: int, mono_ns: int
) -> None:
    """Write into the ledger that these are no more; a range that goes on is one line."""
    last = db.execute(
        "SELECT id, seq_first + n, why, boot, first_ns FROM dropped WHERE stream = ? ORDER BY id DESC LIMIT 1",
        (stream,),
    ).fetchone()
    if last is not None and last[1:4] == (seq_first, why, boot) and mono_ns - last[4] < LEDGER_STEP_NS:
        db.execute("UPDATE dropped SET n = n + ?, last_ns = ? WHERE id = ?", (n, mono_ns, last[0]))
        return
    db.execute(
        "INSERT INTO dropped (stream, seq_first, n, why, boot, first_ns, last_ns) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (stream, seq_first, n, why, boot, mono_ns, mono_ns),
    )


def neighbours(batches: list[Found]) -> list[list[Found]]:
    """Split into runs without a hole, none longer than a gap may be."""
    runs: list[list[Found]] = []
    for batch in batches:
        if runs and runs[-1][-1].end == batch.seq_first and batch.end - runs[-1][0].seq_first <= MAX_GAP:
            runs[-1].append(batch)
        else:
            runs.append([batch])
    return runs
