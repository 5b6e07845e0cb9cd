"""Dating rows afterwards in the SQLite store; see `sdk.ingest.dating`."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager

from sdk.ingest.dating import MAX_MONO_NS, Offset, Trust, Undated

_STAMP = "CASE WHEN json_valid(value) THEN json_extract(value, '$.stamp.{}') END"


Work = Callable[[sqlite3.Connection], bool]


class SqliteDates:
    """`sdk.ingest.dating.Dates` over one file.

    Args:
        transaction: the store's.
        run: runs something in the thread that has the store's turn.
    """

    def __init__(
        self, transaction: Callable[[], AbstractAsyncContextManager[None]], run: Callable[[Work], Awaitable[bool]]
    ) -> None:
        self._transaction = transaction
        self._run = run

    async def learn(self, offsets: Sequence[Offset]) -> None:
        await self._run(lambda db: _learn(db, offsets))

    async def wait(self, runs: Sequence[Undated]) -> None:
        await self._run(lambda db: _wait(db, runs))

    async def step(self, rows: int) -> bool:
        async with self._transaction():
            return await self._run(lambda db: _step(db, rows))


def _learn(db: sqlite3.Connection, offsets: Sequence[Offset]) -> bool:
    db.executemany(
        "INSERT INTO boot VALUES (?, ?, ?, ?, ?) ON CONFLICT (gateway, boot) DO UPDATE SET"
        " offset_ns = excluded.offset_ns, error_ns = excluded.error_ns, trust = excluded.trust"
        " WHERE excluded.trust > trust OR (excluded.trust = trust AND excluded.error_ns < error_ns)",
        [(said.gateway, said.boot, said.offset_ns, said.error_ns, int(said.trust)) for said in offsets],
    )
    return True


def _wait(db: sqlite3.Connection, runs: Sequence[Undated]) -> bool:
    db.executemany(
        "INSERT INTO undated (stream, trust, seq_first, seq_end, boot) VALUES (:stream, :trust, coalesce((SELECT"
        " seq_first FROM undated WHERE stream = :stream AND trust = :trust AND seq_end = :first AND boot = :boot),"
        " :first), :end, :boot) ON CONFLICT (stream, trust, seq_first) DO UPDATE SET"
        " seq_end = max(seq_end, excluded.seq_end)",
        [
            {"stream": run.stream, "trust": int(run.trust), "first": run.first, "end": run.end, "boot": run.boot}
            for run in runs
        ],
    )
    return True


def _step(db: sqlite3.Connection, rows: int) -> bool:
    found = db.execute(
        "SELECT u.stream, u.trust, u.seq_first, u.seq_end, u.boot, s.kind, b.offset_ns, b.trust FROM undated u"
        " JOIN stream s ON s.id = u.stream JOIN boot b ON b.gateway = s.gateway AND b.boot = u.boot"
        " WHERE b.trust > u.trust ORDER BY u.stream, u.seq_first LIMIT 1"
    ).fetchone()
    if found is None:
        return False
    stream, was, first, run_end, boot, kind, offset_ns, trust = found
    end = min(run_end, first + rows)
    here = {"stream": stream, "first": first, "end": end, "boot": boot, "offset": offset_ns, "most": MAX_MONO_NS}
    mono = "mono_ns" if kind == "samples" else _STAMP.format("mono_ns")
    own = "" if kind == "samples" else f" AND {_STAMP.format('boot')} = :boot"
    db.execute(
        f"UPDATE reading SET wall_ns = {mono} + :offset WHERE stream = :stream AND seq >= :first AND seq < :end"
        f" AND typeof({mono}) = 'integer' AND {mono} BETWEEN 0 AND :most{own}",
        here,
    )
    db.execute("DELETE FROM undated WHERE stream = ? AND trust = ? AND seq_first = ?", (stream, was, first))
    rest = Undated(stream, Trust(was), end, run_end, boot)
    done = Undated(stream, Trust(trust), first, end, boot)
    _wait(db, [run for run in (rest, done) if run.first < run.end and run.trust < Trust.KEPT])
    return True
