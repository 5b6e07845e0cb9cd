"""SQLite as the consumer's store: for one machine, with one consumer at a time.

Statements run in a thread, one transaction at a time. `stream` and `reading` are what users read; `streams."..."` of
PostgreSQL is a view named after the stream with `v_` before it.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

from gateway.contract import Sample, Schema
from gateway.errors import StoreError
from gateway.store.columns import expand
from sdk.ingest.batches import Ack, Arrived, Content, Cursor, Gap, Key, Parked, Span, StreamLedger, Take
from sdk.ingest.dating import Dates
from sdk.ingest.documents import late_wall_ns
from sdk.ingest.names import column_names, distinct, identifier, literal
from sdk.ingest.sqlite_dating import SqliteDates
from sdk.ingest.sqlite_schema import MIGRATIONS
from sdk.ingest.store import Row, UnfitError, acks_of, ledger_of

BACKOFF_S, BACKOFF_MAX_S = 2.0, 60.0  # how long a gateway that was asked to go back is left alone
FAR = (1 << 63) - 1
T = TypeVar("T")


class SqliteSink:
    """One file; see `sdk.ingest.store.Sink`.

    Raises:
        StoreError: it cannot be opened, or another consumer has it open for writing.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.name = str(path)
        self._turn = asyncio.Lock()
        self._mine: ContextVar[bool] = ContextVar("transaction", default=False)  # this task has the turn
        self._shapes: set[tuple[str, str]] = set()
        self._specs: dict[int, str] = {}
        self._lock = -1
        self.dates: Dates = SqliteDates(self.transaction, lambda work: self._run(lambda: work(self._db)))
        try:
            if read_only:
                self._db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, check_same_thread=False)
                return
            self._lock = _only_one(path)
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._migrate()
            self._specs = dict(self._db.execute("SELECT id, channels FROM stream").fetchall())
            self._shapes = set(self._db.execute("SELECT stream, channels FROM view").fetchall())
        except (sqlite3.Error, OSError) as error:
            hint = "check path and disk" if not read_only else "name the file that octogate-ingest writes"
            raise StoreError(f"{path}: cannot open the consumer's database: {error}", hint=hint) from error

    def _migrate(self) -> None:
        db = self._db
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version > len(MIGRATIONS):
            raise StoreError(f"{self.name}: made by a newer version of Octogate", hint="update, or use another file")
        for number, script in enumerate(MIGRATIONS[version:], version + 1):
            db.execute("BEGIN IMMEDIATE")
            for statement in filter(str.strip, script.split(";")):
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {number}")
            db.execute("COMMIT")

    # --- running statements -----------------------------------------------------------------------------------

    async def _run(self, work: Callable[[], T]) -> T:
        if self._mine.get():
            return await self._in_thread(work)
        async with self._turn:  # what another task has not committed yet must not be seen, least of all acknowledged
            return await self._in_thread(work)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        running = asyncio.get_running_loop().run_in_executor(None, work)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            await asyncio.wait([running])  # a statement must not run on after its transaction was rolled back
            raise
        except OverflowError as error:
            raise UnfitError(f"{self.name}: {error}", hint="the batch is refused") from error
        except sqlite3.Error as error:
            raise StoreError(f"{self.name}: {error}", hint="check the disk; it is tried again") from error

    async def _rows(self, sql: str, *parameters: object) -> list[Row]:
        return await self._run(lambda: self._db.execute(sql, parameters).fetchall())

    async def _many(self, sql: str, rows: Iterable[Row]) -> None:
        await self._run(lambda: self._db.executemany(sql, rows))

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        async with self._turn:
            mine = self._mine.set(True)
            try:
                await self._rows("BEGIN IMMEDIATE")
                yield
                await self._rows("COMMIT")
            finally:
                self._mine.reset(mine)
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")

    # --- streams ----------------------------------------------------------------------------------------------

    async def streams(self) -> dict[Key, tuple[int, int]]:
        rows = await self._rows("SELECT gateway, epoch, stream, id, next_seq FROM stream ORDER BY id")
        return {(gateway, epoch, stream): (id, seq) for gateway, epoch, stream, id, seq in rows}

    async def add_streams(self, kinds: Mapping[Key, str]) -> dict[Key, int]:
        async with self.transaction():
            for key, kind in kinds.items():
                await self._rows(
                    "INSERT OR IGNORE INTO stream (gateway, epoch, stream, kind, channels) VALUES (?, ?, ?, ?, '')",
                    *(*key, kind),
                )
        return {key: id for key, (id, _) in (await self.streams()).items() if key in kinds}

    async def prepare(self, takes: Iterable[tuple[Arrived, Content]]) -> None:
        """A view for each new pair of stream name and channels."""
        shapes = {(batch.key[2], batch.header.spec) for batch, held in takes if isinstance(held, Sample)}
        for stream, spec in sorted(shapes - self._shapes):
            async with self.transaction():
                taken = [name for (name,) in await self._rows("SELECT name FROM view")]
                (name,) = distinct([f"v_{stream}"], taken)
                columns = "".join(
                    f", json_extract(r.value, '$[{i}]') AS {identifier(column)}"
                    for i, column in enumerate(column_names(Schema.parse(spec)))
                )
                await self._rows(
                    f"CREATE VIEW {identifier(name)} AS SELECT s.gateway, s.epoch, r.seq, r.mono_ns, r.wall_ns{columns}"
                    " FROM stream s JOIN shape h ON h.stream = s.id JOIN reading r ON r.stream = s.id"
                    " AND r.seq >= h.seq_first AND r.seq < h.seq_end"
                    f" WHERE s.stream = {literal(stream)} AND h.channels = {literal(spec)}"
                )
                await self._rows("INSERT INTO view VALUES (?, ?, ?)", name, stream, spec)
            self._shapes.add((stream, spec))

    async def lock(self, streams: Sequence[int]) -> dict[int, Cursor]:
        rows = await self._among("SELECT id, next_seq, span_first, span_tag FROM stream WHERE id IN", streams)
        return {id: Cursor(seq, first, tag) for id, seq, first, tag in rows}

    async def _among(self, sql: str, values: Collection[object], then: str = "") -> list[Row]:
        return await self._rows(f"{sql} (SELECT value FROM json_each(?)) {then}", json.dumps(list(values)))

    async def parked(self, streams: Sequence[int]) -> list[Parked]:
        return [
            Parked(*row)
            for row in await self._among("SELECT stream, seq_first, n FROM parked WHERE stream IN", streams)
        ]

    async def parked_blob(self, parked: Parked) -> bytes:
        sql = "SELECT blob FROM parked WHERE stream = ? AND seq_first = ?"
        blob: bytes = (await self._rows(sql, parked.stream, parked.seq_first))[0][0]
        return blob

    async def park(self, batches: Sequence[tuple[int, Arrived]]) -> None:
        await self._many(
            "INSERT INTO parked (stream, seq_first, n, parked_at, blob) VALUES (?, ?, ?, ?, ?)"
            " ON CONFLICT DO UPDATE SET seen = seen + 1",
            [(id, batch.header.seq_first, batch.header.n, time.time(), batch.blob) for id, batch in batches],
        )

    async def unpark(self, cursors: Mapping[int, Cursor]) -> None:
        await self._many(
            "DELETE FROM parked WHERE stream = ? AND seq_first < ?", [(id, c.next_seq) for id, c in cursors.items()]
        )

    async def write(self, takes: Sequence[Take]) -> int:
        return await self._run(lambda: self._write(takes))

    def _write(self, takes: Sequence[Take]) -> int:
        db, written = self._db, 0
        for take in takes:
            rows = _rows(take)
            if isinstance(take.content, Sample) and self._specs.get(take.stream) != take.header.spec:
                self._new_shape(take)
            db.executemany("INSERT INTO reading VALUES (?, ?, ?, ?, ?)", rows)
            written += len(rows)
        return written

    def _new_shape(self, take: Take) -> None:
        spec = take.header.spec
        self._db.execute(
            "UPDATE shape SET seq_end = ? WHERE stream = ? AND seq_end = ?", (take.first, take.stream, FAR)
        )
        self._db.execute("INSERT OR REPLACE INTO shape VALUES (?, ?, ?, ?)", (take.stream, take.first, FAR, spec))
        self._db.execute("UPDATE stream SET channels = ? WHERE id = ?", (spec, take.stream))
        self._specs[take.stream] = spec

    async def advance(self, cursors: Mapping[int, Cursor], runs: Sequence[Span]) -> None:
        await self._many(
            "UPDATE stream SET next_seq = ?, span_first = ?, span_tag = ? WHERE id = ?",
            [(c.next_seq, c.span_first, c.span_tag, id) for id, c in cursors.items()],
        )
        await self._many(
            "INSERT INTO span VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET seq_end = excluded.seq_end",
            [(run.stream, run.first, run.end, run.state, run.boot, run.why, run.when_ns) for run in runs],
        )

    # --- gateways ---------------------------------------------------------------------------------------------

    async def saw(self, epochs: Mapping[str, str]) -> None:
        await self._many(
            "INSERT INTO gateway (name, epoch) VALUES (?, ?) ON CONFLICT DO UPDATE SET epoch = excluded.epoch",
            list(epochs.items()),
        )

    async def acks(self, gateways: Collection[str] | None) -> dict[str, Ack]:
        sql = (
            "SELECT g.name, g.session, g.epoch, s.stream, s.next_seq FROM gateway g"
            " LEFT JOIN stream s ON s.gateway = g.name AND s.epoch = g.epoch"
        )
        rows = await (self._rows(sql) if gateways is None else self._among(f"{sql} WHERE g.name IN", gateways))
        return acks_of(rows)

    async def renew(self, gateways: Collection[str], session: str, *, force: bool) -> set[str]:
        now = time.time()
        async with self.transaction():
            rows = await self._among("SELECT name, asks, asked_at FROM gateway WHERE name IN", gateways)
            due = [
                (session, 0 if force else 1, now, name)
                for name, asks, asked_at in rows
                if force or not 0 <= now - asked_at < min(BACKOFF_MAX_S, BACKOFF_S * 2 ** min(asks, 10))
            ]
            await self._many("UPDATE gateway SET session = ?, asks = asks + ?, asked_at = ? WHERE name = ?", due)
        return {row[3] for row in due}

    async def beat(self, process: str) -> bool:
        return False  # the lock beside the file keeps others away

    async def stuck(self, older_s: float) -> set[str]:
        waiting = "SELECT s.gateway FROM parked p JOIN stream s ON s.id = p.stream"
        async with self.transaction():
            await self._rows(f"UPDATE gateway SET asks = 0 WHERE asks > 0 AND name NOT IN ({waiting})")
            # a clock that was set back must not hold this up
            return {g for (g,) in await self._rows(f"{waiting} WHERE abs(? - p.parked_at) > ?", time.time(), older_s)}

    async def hopeless(self, older_s: float, seen: int) -> list[tuple[int, int]]:
        rows = await self._rows(
            "SELECT stream, min(seq_first) FROM parked p GROUP BY stream HAVING parked_at < ? AND seen >= ?",
            *(time.time() - older_s, seen),
        )
        return [(stream, first) for stream, first in rows]

    # --- for people and for the webhook -----------------------------------------------------------------------

    async def ledger(self, *, count: bool) -> list[StreamLedger]:
        streams = await self._rows("SELECT id, gateway, epoch, stream, kind, next_seq FROM stream ORDER BY id")
        runs = await self._rows("SELECT * FROM span ORDER BY stream, seq_first")
        waiting = await self._rows("SELECT stream, min(seq_first), sum(n) FROM parked GROUP BY stream")
        rows: dict[int, int] | None = None
        if count:
            rows = dict(await self._rows("SELECT stream, count(*) FROM reading GROUP BY stream"))
        return ledger_of(streams, runs, waiting, rows)

    async def hook_start(self, hook: str) -> None:
        async with self.transaction():
            if not await self._rows("SELECT 1 FROM hook WHERE hook = ? AND stream = 0", hook):
                await self._rows("INSERT INTO hook VALUES (?, 0, 0)", hook)
                await self._rows(
                    "INSERT INTO hook SELECT ?, id, next_seq FROM stream WHERE kind = 'events'",
                    hook,
                )

    async def hook_events(self, hook: str, limit: int) -> list[dict[str, Any]]:
        rows = await self._rows(
            "SELECT s.id, s.gateway, s.epoch, s.stream, e.seq, e.value FROM stream s"
            " LEFT JOIN hook h ON h.hook = ? AND h.stream = s.id"
            " JOIN reading e ON e.stream = s.id AND e.seq >= coalesce(h.next_seq, 0)"
            " WHERE s.kind = 'events' AND s.next_seq > coalesce(h.next_seq, 0) ORDER BY s.id, e.seq LIMIT ?",
            *(hook, limit),
        )
        return [dict(zip(("at", "gateway", "epoch", "stream", "seq", "event"), row, strict=True)) for row in rows]

    async def hook_done(self, hook: str, stream: int, next_seq: int) -> None:
        async with self.transaction():
            await self._rows("INSERT OR REPLACE INTO hook VALUES (?, ?, ?)", hook, stream, next_seq)

    async def close(self) -> None:
        async with self._turn:
            self._db.close()
            if self._lock >= 0:
                os.close(self._lock)


def _only_one(path: Path) -> int:
    """The lock beside the file, held until it is closed or this process ends: two consumers of one file would wait
    for each other at every commit."""
    lock = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise StoreError(
            f"{path}: another octogate-ingest has it open", hint="use PostgreSQL to run several consumers"
        ) from None
    return lock


def _rows(take: Take) -> list[tuple[int, int, int | None, int | None, str]]:
    held, header = take.content, take.header
    if isinstance(held, Gap):
        return []
    if isinstance(held, Sample):
        offset = header.wall_offset_ns
        return [
            (take.stream, header.seq_first + i, mono_ns, None if offset is None else mono_ns + offset, _value(values))
            for i, (mono_ns, values) in enumerate(expand(held))
            if i >= take.skip
        ]
    return [
        (take.stream, header.seq_first + i, None, late_wall_ns(row, header), row.decode(errors="replace"))
        for i, row in enumerate(held)
        if i >= take.skip
    ]


def _value(values: tuple[float, ...]) -> str:
    """As JSON that SQLite can read as well: it has no NaN, and infinity is what is too large for a number."""
    text = json.dumps(values)
    if "N" in text or "I" in text:
        text = text.replace("NaN", "null").replace("Infinity", "9e999")
    return text
