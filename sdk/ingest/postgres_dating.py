"""Dating rows afterwards in the PostgreSQL store; see `sdk.ingest.dating`.

Several consumers may do it at once: each takes a run that no other one has in hand. Rows are dated by their boot's own
offset only, so a run that is dated twice, by whatever race, is dated the same.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from sdk.ingest.dating import MAX_MONO_NS, Offset, Trust, Undated

_AT = "timestamptz 'epoch' + ((mono_ns + $4) / 1000) * interval '1 microsecond'"


Row = tuple[Any, ...]


class PostgresDates:
    """`sdk.ingest.dating.Dates` over one database.

    Args:
        transaction, rows, many: the store's transactions, and its ways to run a statement.
    """

    def __init__(
        self,
        transaction: Callable[[], AbstractAsyncContextManager[None]],
        rows: Callable[..., Awaitable[list[Row]]],
        many: Callable[[str, Sequence[Row]], Awaitable[None]],
    ) -> None:
        self._transaction = transaction
        self._rows = rows
        self._many = many

    async def learn(self, offsets: Sequence[Offset]) -> None:
        await self._many(
            "INSERT INTO octogate.boot AS b VALUES ($1, $2, $3, $4, $5) ON CONFLICT (gateway, boot) DO UPDATE SET"
            " offset_ns = excluded.offset_ns, error_ns = excluded.error_ns, trust = excluded.trust"
            " WHERE excluded.trust > b.trust OR (excluded.trust = b.trust AND excluded.error_ns < b.error_ns)",
            [(said.gateway, said.boot, said.offset_ns, said.error_ns, int(said.trust)) for said in offsets],
        )

    async def wait(self, runs: Sequence[Undated]) -> None:
        await self._many(
            "INSERT INTO octogate.undated AS u (stream, trust, seq_first, seq_end, boot) VALUES ($1, $2, coalesce("
            "(SELECT seq_first FROM octogate.undated WHERE stream = $1 AND trust = $2 AND seq_end = $3 AND boot = $5"
            " LIMIT 1), $3), $4, $5) ON CONFLICT (stream, trust, seq_first) DO UPDATE SET"
            " seq_end = greatest(u.seq_end, excluded.seq_end)",
            [(run.stream, int(run.trust), run.first, run.end, run.boot) for run in runs],
        )

    async def step(self, rows: int) -> bool:
        async with self._transaction():
            found = await self._rows(
                "SELECT u.stream, u.trust, u.seq_first, u.seq_end, u.boot, s.kind, b.offset_ns, b.trust"
                " FROM octogate.undated u JOIN octogate.stream s ON s.id = u.stream"
                " JOIN octogate.boot b ON b.gateway = s.gateway AND b.boot = u.boot"
                " WHERE b.trust > u.trust ORDER BY u.stream, u.seq_first LIMIT 1 FOR UPDATE OF u SKIP LOCKED"
            )
            if not found:
                return False
            stream, was, first, run_end, boot, kind, offset_ns, trust = found[0]
            end = min(run_end, first + rows)
            for table, own in await self._tables(stream, kind):
                await self._rows(
                    f"UPDATE octogate.{table} SET at = {_AT} WHERE stream = $1 AND seq >= $2 AND seq < $3"
                    f" AND mono_ns BETWEEN 0 AND {MAX_MONO_NS}{own}",
                    *(stream, first, end, offset_ns, *([boot] if own else [])),
                )
            sql = "DELETE FROM octogate.undated WHERE stream = $1 AND trust = $2 AND seq_first = $3"
            await self._rows(sql, stream, was, first)
            rest = Undated(stream, Trust(was), end, run_end, boot)
            done = Undated(stream, Trust(trust), first, end, boot)
            await self.wait([run for run in (rest, done) if run.first < run.end and run.trust < Trust.KEPT])
        return True

    async def _tables(self, stream: int, kind: str) -> list[tuple[str, str]]:
        """Where rows of a stream are, and what else they must fulfil to be of the boot."""
        if kind != "samples":
            return [("event" if kind == "events" else "inference", " AND boot = $5")]
        shapes = await self._rows(
            "SELECT DISTINCT v.shape FROM octogate.view v JOIN octogate.stream s ON s.stream = v.stream WHERE s.id = $1",
            stream,
        )
        return [(f"reading_{shape}", "") for (shape,) in shapes]
