"""PostgreSQL as the consumer's store: many gateways, and several consumers that share the work.

Needs asyncpg (`pip install octogate[ingest]`). Passwords come from PGPASSWORD, PGPASSFILE or the environment's DSN.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import ContextVar
from typing import Any

from gateway.contract import BatchKind, Sample, Schema
from gateway.errors import StoreError
from sdk.ingest.batches import Ack, Arrived, Content, Cursor, Gap, Key, Parked, Span, StreamLedger, Take
from sdk.ingest.copying import SIGNATURE, TRAILER, TYPES, copy_rows
from sdk.ingest.dating import Dates
from sdk.ingest.documents import event_row, inference_row
from sdk.ingest.names import column_names, distinct, identifier, literal
from sdk.ingest.postgres_dating import PostgresDates
from sdk.ingest.postgres_schema import MIGRATIONS
from sdk.ingest.store import Row, UnfitError, acks_of, ledger_of

try:
    import asyncpg
except ImportError as error:  # pragma: no cover - the extra is there wherever this is tested
    raise StoreError("PostgreSQL needs asyncpg", hint="pip install 'octogate[ingest]'") from error

CONNECT_S = 10.0
MAX_SHAPES = 2000  # each is a table; more is somebody playing with names of channels
DEAD_S = 6.0  # a consumer that has not said for so long that it lives
HOOK_LOCK = 0x6F63746F  # "octo": advisory locks of ours
SETTINGS = {
    "application_name": "octogate-ingest",
    "lock_timeout": "15s",
    "idle_in_transaction_session_timeout": "20s",  # a consumer that was stopped must not hold a stream for ever
    "timezone": "UTC",
}
EVENT = ("at", "mono_ns", "boot", "name", "origin", "state", "severity", "message", "detail", "value")
INFERENCE = (
    *("at", "mono_ns", "boot", "model", "bundle", "backend", "took_us", "input_seq", "label", "score", "result"),
    "value",
)


class PostgresSink:
    """One database; see `sdk.ingest.store.Sink`. Made by `PostgresSink.open`."""

    def __init__(self, pool: Any, name: str) -> None:
        self.name = name
        self._pool = pool
        self._own: ContextVar[Any] = ContextVar("transaction", default=None)
        self._shapes: dict[str, int] = {}
        self.dates: Dates = PostgresDates(self.transaction, self._rows, self._many)
        self._views: set[tuple[str, str]] = set()
        self._speaker: Any = None  # the connection whose lock makes this consumer the webhook's speaker

    @classmethod
    async def open(cls, dsn: str) -> PostgresSink:
        """Connect and make or migrate the tables; raises StoreError."""
        try:
            pool = await asyncpg.create_pool(
                dsn, min_size=1, max_size=4, timeout=CONNECT_S, server_settings=SETTINGS, init=_durable
            )
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, ValueError) as error:
            hint = "check --postgres, PGPASSWORD or PGPASSFILE, and that the server listens"
            raise StoreError(f"PostgreSQL: cannot connect: {str(error) or type(error).__name__}", hint=hint) from error
        async with pool.acquire() as connection:
            name = f"PostgreSQL database {await connection.fetchval('SELECT current_database()')}"
        sink = cls(pool, name)
        async with AsyncExitStack() as failed:
            failed.push_async_callback(sink.close)
            await sink._migrate()
            failed.pop_all()
        return sink

    async def _migrate(self) -> None:
        async with self.transaction():
            await self._rows("SELECT pg_advisory_xact_lock($1)", HOOK_LOCK)  # several may start at once
            await self._rows("CREATE SCHEMA IF NOT EXISTS octogate")
            await self._rows("CREATE SCHEMA IF NOT EXISTS octogate_streams")
            await self._rows("CREATE TABLE IF NOT EXISTS octogate.version (number integer NOT NULL)")
            version = (await self._rows("SELECT coalesce(max(number), 0) FROM octogate.version"))[0][0]
            if version > len(MIGRATIONS):
                raise StoreError(f"{self.name}: made by a newer version of Octogate", hint="update octogate-ingest")
            for number, script in enumerate(MIGRATIONS[version:], version + 1):
                await self._own.get().execute(script)
                await self._rows("INSERT INTO octogate.version VALUES ($1)", number)

    # --- running statements -----------------------------------------------------------------------------------

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Any]:
        if (own := self._own.get()) is not None:
            yield own
            return
        try:
            async with self._pool.acquire(timeout=CONNECT_S) as connection:
                yield connection
        except (asyncpg.DataError, OverflowError) as error:
            raise UnfitError(f"{self.name}: {error}", hint="the batch is refused") from error
        except _REFUSALS as error:
            raise StoreError(f"{self.name}: {str(error) or type(error).__name__}", hint="it is tried again") from error

    async def _rows(self, sql: str, *parameters: object) -> list[Row]:
        async with self._connection() as connection:
            return [tuple(row) for row in await connection.fetch(sql, *parameters)]

    async def _many(self, sql: str, rows: Sequence[Row]) -> None:
        if rows:
            async with self._connection() as connection:
                await connection.executemany(sql, rows)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        async with self._connection() as connection:
            mine = self._own.set(connection)
            try:
                async with connection.transaction():
                    yield
            finally:
                self._own.reset(mine)

    # --- streams ----------------------------------------------------------------------------------------------

    async def streams(self) -> dict[Key, tuple[int, int]]:
        rows = await self._rows("SELECT gateway, epoch, stream, id, next_seq FROM octogate.stream ORDER BY id")
        return {(gateway, epoch, stream): (id, seq) for gateway, epoch, stream, id, seq in rows}

    async def add_streams(self, kinds: Mapping[Key, str]) -> dict[Key, int]:
        await self._many(
            "INSERT INTO octogate.stream (gateway, epoch, stream, kind) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING",
            [(*key, kinds[key]) for key in sorted(kinds)],  # one order: no deadlock
        )
        return {key: id for key, (id, _) in (await self.streams()).items() if key in kinds}

    async def prepare(self, takes: Iterable[tuple[Arrived, Content]]) -> None:
        """A table for each new set of channels, a view for each new pair of stream name and channels."""
        wanted = {(batch.key[2], batch.header.spec) for batch, held in takes if isinstance(held, Sample)}
        for stream, spec in sorted(wanted - self._views):
            async with self.transaction():
                await self._rows("SELECT pg_advisory_xact_lock($1)", HOOK_LOCK)
                self._shapes[spec] = await self._make_table(spec)
                await self._make_view(stream, spec, self._shapes[spec])
            self._views.add((stream, spec))

    async def _make_table(self, spec: str) -> int:
        found = await self._rows("SELECT id FROM octogate.shape WHERE spec = $1", spec)
        if found:
            return int(found[0][0])
        if (await self._rows("SELECT count(*) FROM octogate.shape"))[0][0] >= MAX_SHAPES:
            raise UnfitError(f"{self.name}: more than {MAX_SHAPES} sets of channels", hint="who sends ever new ones?")
        (id,) = (await self._rows("INSERT INTO octogate.shape (spec) VALUES ($1) RETURNING id", spec))[0]
        columns = "".join(f", c{i} {TYPES[c.type][0]} NOT NULL" for i, c in enumerate(Schema.parse(spec).channels, 1))
        await self._rows(
            f"CREATE TABLE octogate.reading_{id} (stream bigint NOT NULL, seq bigint NOT NULL, mono_ns bigint NOT NULL,"
            f" at timestamptz{columns}, PRIMARY KEY (stream, seq))"
        )
        return int(id)

    async def _make_view(self, stream: str, spec: str, shape: int) -> None:
        if await self._rows("SELECT 1 FROM octogate.view WHERE stream = $1 AND shape = $2", stream, shape):
            return
        taken = [name for (name,) in await self._rows("SELECT name FROM octogate.view")]
        (name,) = distinct([stream], taken)
        names = column_names(Schema.parse(spec))
        columns = "".join(f", r.c{i} AS {identifier(column)}" for i, column in enumerate(names, 1))
        await self._rows(
            f"CREATE VIEW octogate_streams.{identifier(name)} AS SELECT s.gateway, s.epoch, r.seq, r.at, r.mono_ns{columns}"
            f" FROM octogate.stream s JOIN octogate.reading_{shape} r ON r.stream = s.id"
            f" WHERE s.stream = {literal(stream)}"
        )
        await self._rows("INSERT INTO octogate.view VALUES ($1, $2, $3)", name, stream, shape)

    async def lock(self, streams: Sequence[int]) -> dict[int, Cursor]:
        rows = await self._rows(
            "SELECT id, next_seq, span_first, span_tag FROM octogate.stream WHERE id = ANY($1) ORDER BY id FOR UPDATE",
            streams,
        )
        return {id: Cursor(seq, first, tag) for id, seq, first, tag in rows}

    async def parked(self, streams: Sequence[int]) -> list[Parked]:
        sql = "SELECT stream, seq_first, n FROM octogate.parked WHERE stream = ANY($1)"
        return [Parked(*row) for row in await self._rows(sql, streams)]

    async def parked_blob(self, parked: Parked) -> bytes:
        sql = "SELECT blob FROM octogate.parked WHERE stream = $1 AND seq_first = $2"
        blob: bytes = (await self._rows(sql, parked.stream, parked.seq_first))[0][0]
        return blob

    async def park(self, batches: Sequence[tuple[int, Arrived]]) -> None:
        await self._many(
            "INSERT INTO octogate.parked AS p (stream, seq_first, n, blob) VALUES ($1, $2, $3, $4)"
            " ON CONFLICT (stream, seq_first) DO UPDATE SET seen = p.seen + 1",
            [(id, batch.header.seq_first, batch.header.n, batch.blob) for id, batch in batches],
        )

    async def unpark(self, cursors: Mapping[int, Cursor]) -> None:
        await self._many(
            "DELETE FROM octogate.parked WHERE stream = $1 AND seq_first < $2",
            [(id, c.next_seq) for id, c in cursors.items()],
        )

    async def write(self, takes: Sequence[Take]) -> int:
        copies, events, inferences, written = await asyncio.to_thread(self._encode, takes)
        for shape, pieces in copies.items():
            async with self._connection() as connection:
                await connection.copy_to_table(
                    f"reading_{shape}", schema_name="octogate", source=_source(pieces), format="binary"
                )
        await self._many(_insert("event", EVENT), events)
        await self._many(_insert("inference", INFERENCE), inferences)
        return written

    def _encode(self, takes: Sequence[Take]) -> tuple[dict[int, list[bytes]], list[Row], list[Row], int]:
        copies: dict[int, list[bytes]] = {}
        documents: dict[bool, list[Row]] = {True: [], False: []}
        written = 0
        for take in takes:
            held, header = take.content, take.header
            if isinstance(held, Gap):
                continue
            written += take.end - take.first
            if isinstance(held, Sample):
                rows = copy_rows(take.stream, header.seq_first, held, header.wall_offset_ns, take.skip)
                copies.setdefault(self._shapes[header.spec], []).append(rows)
                continue
            events = header.kind is BatchKind.EVENTS
            make = event_row if events else inference_row
            documents[events] += [
                (take.stream, take.first + i, *make(row, header)) for i, row in enumerate(held[take.skip :])
            ]
        return copies, documents[True], documents[False], written

    async def advance(self, cursors: Mapping[int, Cursor], runs: Sequence[Span]) -> None:
        await self._many(
            "UPDATE octogate.stream SET next_seq = $2, span_first = $3, span_tag = $4 WHERE id = $1",
            [(id, c.next_seq, c.span_first, c.span_tag) for id, c in cursors.items()],
        )
        await self._many(
            "INSERT INTO octogate.span VALUES ($1, $2, $3, $4, $5, $6, $7)"
            " ON CONFLICT (stream, seq_first) DO UPDATE SET seq_end = excluded.seq_end",
            [(run.stream, run.first, run.end, run.state, run.boot, run.why, run.when_ns) for run in runs],
        )

    # --- gateways ---------------------------------------------------------------------------------------------

    async def saw(self, epochs: Mapping[str, str]) -> None:
        await self._many(
            "INSERT INTO octogate.gateway AS g (name, epoch) VALUES ($1, $2) ON CONFLICT (name)"
            " DO UPDATE SET epoch = excluded.epoch WHERE g.epoch <> excluded.epoch",
            sorted(epochs.items()),
        )

    async def acks(self, gateways: Collection[str] | None) -> dict[str, Ack]:
        rows = await self._rows(
            "SELECT g.name, g.session, g.epoch, s.stream, s.next_seq FROM octogate.gateway g"
            " LEFT JOIN octogate.stream s ON s.gateway = g.name AND s.epoch = g.epoch"
            " WHERE $1::text[] IS NULL OR g.name = ANY($1)",
            None if gateways is None else list(gateways),
        )
        return acks_of(rows)

    async def renew(self, gateways: Collection[str], session: str, *, force: bool) -> set[str]:
        rows = await self._rows(
            "UPDATE octogate.gateway SET session = $2, asked_at = clock_timestamp(), asks = asks + 1 - $3::int"
            " WHERE name = ANY($1) AND ($3::int = 1 OR asked_at NOT BETWEEN clock_timestamp()"
            " - make_interval(secs => least(60, 2 * 2 ^ least(asks, 10))) AND clock_timestamp()) RETURNING name",
            *(sorted(gateways), session, int(force)),
        )
        return {name for (name,) in rows}

    async def beat(self, process: str) -> bool:
        await self._rows(
            "INSERT INTO octogate.process VALUES ($1, clock_timestamp())"
            " ON CONFLICT (id) DO UPDATE SET beat = excluded.beat",
            process,
        )
        sql = "DELETE FROM octogate.process WHERE beat < clock_timestamp() - make_interval(secs => $1) RETURNING id"
        return bool(await self._rows(sql, DEAD_S))

    async def stuck(self, older_s: float) -> set[str]:
        waiting = "SELECT s.gateway FROM octogate.parked p JOIN octogate.stream s ON s.id = p.stream"
        await self._rows(f"UPDATE octogate.gateway SET asks = 0 WHERE asks > 0 AND name NOT IN ({waiting})")
        rows = await self._rows(
            f"{waiting} WHERE p.parked_at < clock_timestamp() - make_interval(secs => $1)", float(older_s)
        )
        return {gateway for (gateway,) in rows}

    async def hopeless(self, older_s: float, seen: int) -> list[tuple[int, int]]:
        rows = await self._rows(
            "SELECT stream, seq_first FROM (SELECT DISTINCT ON (stream) stream, seq_first, seen, parked_at"
            " FROM octogate.parked ORDER BY stream, seq_first) p"
            " WHERE seen >= $2 AND parked_at < clock_timestamp() - make_interval(secs => $1)",
            *(float(older_s), seen),
        )
        return [(stream, first) for stream, first in rows]

    # --- for people and for the webhook -----------------------------------------------------------------------

    async def ledger(self, *, count: bool) -> list[StreamLedger]:
        async with self.transaction():
            await self._rows("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            streams = await self._rows(
                "SELECT id, gateway, epoch, stream, kind, next_seq FROM octogate.stream ORDER BY id"
            )
            runs = await self._rows("SELECT * FROM octogate.span ORDER BY stream, seq_first")
            waiting = await self._rows("SELECT stream, min(seq_first), sum(n) FROM octogate.parked GROUP BY stream")
            rows: dict[int, int] | None = {} if count else None
            if rows is not None:
                shapes = await self._rows("SELECT id FROM octogate.shape")
                for table in ("event", "inference", *(f"reading_{id}" for (id,) in shapes)):
                    for stream, n in await self._rows(f"SELECT stream, count(*) FROM octogate.{table} GROUP BY stream"):
                        rows[stream] = rows.get(stream, 0) + n
        return ledger_of(streams, runs, waiting, rows)

    async def hook_start(self, hook: str) -> None:
        async with self.transaction():
            await self._rows("SELECT pg_advisory_xact_lock($1)", HOOK_LOCK)
            sql = "INSERT INTO octogate.hook VALUES ($1, 0, 0) ON CONFLICT DO NOTHING RETURNING stream"
            if await self._rows(sql, hook):
                await self._rows(
                    "INSERT INTO octogate.hook SELECT $1, id, next_seq FROM octogate.stream WHERE kind = 'events'", hook
                )

    async def hook_events(self, hook: str, limit: int) -> list[dict[str, Any]]:
        if not await self._speaks():
            return []
        rows = await self._rows(
            "SELECT s.id, s.gateway, s.epoch, s.stream, e.seq, e.value FROM octogate.stream s"
            " LEFT JOIN octogate.hook h ON h.hook = $1 AND h.stream = s.id"
            " JOIN octogate.event e ON e.stream = s.id AND e.seq >= coalesce(h.next_seq, 0)"
            " WHERE s.kind = 'events' AND s.next_seq > coalesce(h.next_seq, 0) ORDER BY s.id, e.seq LIMIT $2",
            *(hook, limit),
        )
        return [dict(zip(("at", "gateway", "epoch", "stream", "seq", "event"), row, strict=True)) for row in rows]

    async def _speaks(self) -> bool:
        """Of several consumers one posts; the lock is gone with its connection."""
        try:
            if self._speaker is None or self._speaker.is_closed():
                self._speaker = await self._pool.acquire(timeout=CONNECT_S)
            return bool(await self._speaker.fetchval("SELECT pg_try_advisory_lock($1, 1)", HOOK_LOCK))
        except _REFUSALS as error:
            raise StoreError(f"{self.name}: {error}", hint="it is tried again") from error

    async def hook_done(self, hook: str, stream: int, next_seq: int) -> None:
        await self._rows(
            "INSERT INTO octogate.hook VALUES ($1, $2, $3)"
            " ON CONFLICT (hook, stream) DO UPDATE SET next_seq = excluded.next_seq",
            *(hook, stream, next_seq),
        )

    async def close(self) -> None:
        with contextlib.suppress(*_REFUSALS):
            async with asyncio.timeout(CONNECT_S):
                if self._speaker is not None:
                    await self._pool.release(self._speaker)
                await self._pool.close()


_REFUSALS = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError)


async def _durable(connection: Any) -> None:
    """A commit that a crash may undo is no commit: not even where the server's default says so."""
    if await connection.fetchval("SHOW synchronous_commit") == "off":
        await connection.execute("SET synchronous_commit = on")


def _insert(table: str, columns: Sequence[str]) -> str:
    names = ", ".join(("stream", "seq", *columns))
    places = ", ".join(f"${i}" for i in range(1, len(columns) + 3))
    return f"INSERT INTO octogate.{table} ({names}) VALUES ({places})"


async def _source(pieces: Sequence[bytes]) -> AsyncIterator[bytes]:
    yield SIGNATURE
    for piece in pieces:
        yield piece
    yield TRAILER
