"""The consumer's database: what "delivered" means. One logic over two stores, see `Sink`.

Per batch, in one transaction: the stream's row is locked, the batch is compared with the sequence number that the
stream expects, its rows are written, and the number moves. So several consumers may share one database: whoever has
the row goes on from where the other one was. A batch that comes too early is parked in the same database and taken by
whoever fills the hole before it.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from gateway.errors import StoreError
from gateway.store.columns import Codec, read_header
from sdk.ingest.batches import (
    Ack,
    Arrived,
    Content,
    Counts,
    Cursor,
    Gap,
    Key,
    Parked,
    Plan,
    Span,
    StreamLedger,
    Take,
    content,
    plan,
    spans,
)
from sdk.ingest.dating import Dates, Dating
from sdk.ingest.rebuilt import without_repeats

MAX_PARKED = 512  # batches of one stream that wait for a hole to be filled
GIVE_UP_S = 300.0  # a hole that stayed so long, with
GIVE_UP_SEEN = 5  # so many repeats of the batch behind it, is missing for good


class UnfitError(StoreError):
    """The store cannot hold what a batch says, however often it is tried."""


Row = tuple[Any, ...]


class Sink(Protocol):
    """The statements of one store. Every method may raise StoreError, after which it may be called again."""

    name: str
    dates: Dates

    def transaction(self) -> AbstractAsyncContextManager[None]:
        """All or nothing, on disk when it is left; one at a time."""
        ...

    async def streams(self) -> dict[Key, tuple[int, int]]:
        """Every stream's id and next sequence number, oldest first."""
        ...

    async def add_streams(self, kinds: Mapping[Key, str]) -> dict[Key, int]:
        """Ids of these streams, made with their kinds where they are missing; in a transaction of its own."""
        ...

    async def prepare(self, takes: Iterable[tuple[Arrived, Content]]) -> None:
        """Make tables and views that these batches need; in a transaction of its own."""
        ...

    async def lock(self, streams: Sequence[int]) -> dict[int, Cursor]:
        """Where the streams stand; nobody else moves them until the transaction ends."""
        ...

    async def parked(self, streams: Sequence[int]) -> list[Parked]: ...

    async def parked_blob(self, parked: Parked) -> bytes: ...

    async def park(self, batches: Sequence[tuple[int, Arrived]]) -> None: ...

    async def unpark(self, cursors: Mapping[int, Cursor]) -> None:
        """Forget what is parked before the streams' next numbers."""
        ...

    async def write(self, takes: Sequence[Take]) -> int:
        """Write rows; how many."""
        ...

    async def advance(self, cursors: Mapping[int, Cursor], runs: Sequence[Span]) -> None: ...

    async def saw(self, epochs: Mapping[str, str]) -> None:
        """The epoch that each gateway now speaks of."""
        ...

    async def acks(self, gateways: Collection[str] | None) -> dict[str, Ack]:
        """The committed watermark of these gateways, None: of all."""
        ...

    async def renew(self, gateways: Collection[str], session: str, *, force: bool) -> set[str]:
        """Give gateways another session; without force only those whose last one has had its time."""
        ...

    async def beat(self, process: str) -> bool:
        """Say that this consumer lives; True when another one has died."""
        ...

    async def stuck(self, older_s: float) -> set[str]:
        """Gateways with batches that are parked for longer than this."""
        ...

    async def hopeless(self, older_s: float, seen: int) -> list[tuple[int, int]]:
        """Streams and the end of their hole, where it is known that nobody has what is missing."""
        ...

    async def ledger(self, *, count: bool) -> list[StreamLedger]: ...

    async def hook_start(self, hook: str) -> None:
        """Remember a webhook; one that is new begins with what comes from now on."""
        ...

    async def hook_events(self, hook: str, limit: int) -> list[dict[str, Any]]:
        """The next events for a webhook: gateway, epoch, stream, seq, event, and the stream's id as `at`."""
        ...

    async def hook_done(self, hook: str, stream: int, next_seq: int) -> None: ...

    async def close(self) -> None: ...


@dataclass(slots=True)
class Taken:
    """What one call of `Table.take` did.

    Attributes:
        acks: what must be published: only now, for it is committed.
        early: gateways of which something came too early.
        events: whether there are new events.
    """

    acks: dict[str, Ack] = field(default_factory=dict)
    early: set[str] = field(default_factory=set)
    events: bool = False


class Table:
    """Takes batches into a sink, each reading once and in order."""

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self.dating = Dating(sink.dates)
        self.next: dict[Key, int] = {}  # at least so far each stream is; another consumer may be further
        self._ids: dict[Key, int] = {}
        self._epochs: dict[str, str] = {}
        self._codec = Codec()

    async def load(self) -> None:
        """Read where every stream stands; raises StoreError."""
        known = await self.sink.streams()
        self._ids = {key: id for key, (id, _) in known.items()}
        self.next = {key: seq for key, (_, seq) in known.items()}
        self._epochs = {}

    async def take(self, arrived: Sequence[Arrived], counts: Counts) -> Taken:
        """Commit what is new and in order, park what is early.

        Raises:
            StoreError: the store refused; nothing or all of it was committed, and it can be handed in again.
        """
        try:
            return await self._take(arrived, counts)
        except UnfitError:
            self.dating.look_again()
            if len(arrived) == 1:  # its hole stays; who has the gateway's copy mended fills it
                counts.refused += 1
                return Taken()
            middle = len(arrived) // 2
            one, other = await self.take(arrived[:middle], counts), await self.take(arrived[middle:], counts)
            return Taken(one.acks | other.acks, one.early | other.early, one.events or other.events)
        except StoreError:
            self.dating.look_again()
            self.next, self._ids, self._epochs = {}, {}, {}  # it may have been restored meanwhile: ask it again
            raise

    async def _take(self, arrived: Sequence[Arrived], counts: Counts) -> Taken:
        if not self._ids:
            await self.load()
        fresh = Counts()
        new = [batch for batch in arrived if batch.end > self.next.get(batch.key, 0)]
        fresh.repeated = len(arrived) - len(new)
        opened = await asyncio.to_thread(self._open, new)
        fresh.refused = len(new) - len(opened)
        taken = Taken()
        epochs = {batch.gateway: batch.key[1] for batch in arrived}
        if opened or any(self._epochs.get(gateway) != epoch for gateway, epoch in epochs.items()):
            await self._commit(opened, epochs, fresh, taken)
        taken.acks = await self.sink.acks(epochs)
        for gateway, ack in taken.acks.items():
            self.next.update({(gateway, ack.epoch, stream): seq for stream, seq in ack.next.items()})
        for name in Counts.__slots__:
            setattr(counts, name, getattr(counts, name) + getattr(fresh, name))
        return taken

    def _open(self, batches: Sequence[Arrived]) -> list[tuple[Arrived, Content]]:
        opened = []
        for batch in batches:
            try:
                opened.append((batch, content(self._codec, batch.blob)))
            except StoreError:  # counted by its absence; if the gateway's own copy is damaged the hole is told
                continue
        return opened

    async def _commit(
        self, opened: list[tuple[Arrived, Content]], epochs: Mapping[str, str], fresh: Counts, taken: Taken
    ) -> None:
        sink = self.sink
        await self._know(opened)
        offers = [_Offer(self._ids[batch.key], batch, held) for batch, held in opened]
        ids = sorted({offer.stream for offer in offers})
        async with sink.transaction():
            if ids:
                cursors = await sink.lock(ids)
                waiting = await sink.parked(ids)
                expected = {id: cursor.next_seq for id, cursor in cursors.items()}
                todo = plan(expected, [*offers, *map(_Offer.parked, waiting)])
                fresh.repeated += sum(1 for offer in todo.repeated if offer.batch is not None)
                ready = [await self._ready(offer, skip) for offer, skip in todo.takes]
                takes = await without_repeats(sink, ready, todo.next)
                fresh.rows += await sink.write(takes)
                fresh.batches += len(ready)
                fresh.dropped += sum(take.end - take.first for take in takes if _is_gap(take))
                moved, runs = _moved(cursors, takes)
                await sink.advance(moved, runs)
                await self.dating.note((offer.batch for offer in offers if offer.batch), takes)
                if waiting:
                    await sink.unpark(moved)
                await self._park(todo, waiting, fresh, taken)
                taken.events = any(take.header.kind == "events" for take in takes)
            await sink.saw({g: e for g, e in epochs.items() if self._epochs.get(g) != e})
        self._epochs.update(epochs)
        self.dating.committed()

    async def _know(self, opened: list[tuple[Arrived, Content]]) -> None:
        unknown = {
            batch.key: str(held.kind if isinstance(held, Gap) else batch.header.kind)
            for batch, held in opened
            if batch.key not in self._ids
        }
        if unknown:
            self._ids.update(await self.sink.add_streams(unknown))
        await self.sink.prepare(opened)

    async def _ready(self, offer: _Offer, skip: int) -> Take:
        if offer.batch is not None and offer.content is not None:
            return Take(offer.stream, offer.batch.key, offer.batch.header, offer.content, skip)
        blob = await self.sink.parked_blob(Parked(offer.stream, offer.seq_first, offer.n))
        header, _ = read_header(blob)
        key = next(key for key, id in self._ids.items() if id == offer.stream)
        return Take(offer.stream, key, header, await asyncio.to_thread(content, self._codec, blob), skip)

    async def _park(self, todo: Plan[_Offer], waiting: Sequence[Parked], fresh: Counts, taken: Taken) -> None:
        room = dict.fromkeys(todo.next, MAX_PARKED)
        for parked in waiting:
            room[parked.stream] -= 1
        park: list[tuple[int, Arrived]] = []
        there = {(parked.stream, parked.seq_first) for parked in waiting}
        for offer in todo.early:
            if offer.batch is None:
                continue
            fresh.gaps += 1
            taken.early.add(offer.batch.gateway)
            if (offer.stream, offer.seq_first) in there:
                park.append((offer.stream, offer.batch))  # seen once more
            elif room[offer.stream] > 0:
                room[offer.stream] -= 1
                park.append((offer.stream, offer.batch))
        if park:
            await self.sink.park(park)

    async def renew(self, gateways: Collection[str] | None, *, force: bool = False) -> dict[str, Ack]:
        """New sessions: each of these gateways (None: all) sends everything from its watermark on. What to publish."""
        if gateways is None:
            if not self._ids:
                await self.load()
            gateways = {gateway for gateway, _, _ in self._ids}
        renewed = await self.sink.renew(gateways, secrets.token_hex(4), force=force)
        return await self.sink.acks(renewed) if renewed else {}

    async def give_up(self, counts: Counts, older_s: float = GIVE_UP_S) -> None:
        """Write off holes that no rewind has filled: ledgered as missing, and what waits behind them is taken next."""
        for stream, end in await self.sink.hopeless(older_s, GIVE_UP_SEEN):
            async with self.sink.transaction():
                cursor = (await self.sink.lock([stream]))[stream]
                if end <= cursor.next_seq:
                    continue
                run = Span(stream, cursor.next_seq, end, "missing", why="the gateway does not have it any more")
                joined, moved = spans(cursor, [run])
                await self.sink.advance({stream: moved}, joined)
            counts.missing += end - cursor.next_seq


@dataclass(frozen=True, slots=True)
class _Offer:
    """An arrived batch with what it holds, or one that is parked (both None)."""

    stream: int
    batch: Arrived | None
    content: Content | None
    waits: Parked | None = None

    @classmethod
    def parked(cls, waits: Parked) -> _Offer:
        return cls(waits.stream, None, None, waits)

    @property
    def seq_first(self) -> int:
        return self.batch.header.seq_first if self.batch else self.waits.seq_first if self.waits else 0

    @property
    def n(self) -> int:
        return self.batch.header.n if self.batch else self.waits.n if self.waits else 0


def _is_gap(take: Take) -> bool:
    return isinstance(take.content, Gap) and not take.content.there


def _moved(cursors: Mapping[int, Cursor], takes: Sequence[Take]) -> tuple[dict[int, Cursor], list[Span]]:
    """The streams' new places, and the runs of the ledger that grew or began."""
    runs: dict[int, list[Span]] = {}
    for take in takes:
        held = take.content
        if isinstance(held, Gap):
            state = "there" if held.there else "dropped"
            run = Span(take.stream, take.first, take.end, state, take.header.boot, held.why, held.when_ns)
        else:
            run = Span(take.stream, take.first, take.end, "taken", take.header.boot)
        runs.setdefault(take.stream, []).append(run)
    moved: dict[int, Cursor] = {}
    grown: list[Span] = []
    for stream, own in runs.items():
        joined, moved[stream] = spans(cursors[stream], own)
        grown += joined
    return moved, grown


def acks_of(rows: Iterable[Row]) -> dict[str, Ack]:
    """Acknowledgements of rows (gateway, session, epoch, stream or None, next sequence number)."""
    made: dict[str, Ack] = {}
    for gateway, session, epoch, stream, seq in rows:
        ack = made.setdefault(gateway, Ack(session, epoch, {}))
        if stream is not None:
            ack.next[stream] = seq
    return made


def ledger_of(
    streams: Iterable[Row], runs: Iterable[Row], waiting: Iterable[Row], rows: Mapping[int, int] | None
) -> list[StreamLedger]:
    """The ledger of rows as both stores keep them."""
    own: dict[int, list[Span]] = {}
    for row in runs:
        own.setdefault(row[0], []).append(Span(*row))
    parked = {stream: (first, n) for stream, first, n in waiting}
    made = []
    for id, gateway, epoch, stream, kind, next_seq in streams:
        sums = {"taken": 0, "there": 0, "dropped": 0, "missing": 0}
        for run in own.get(id, ()):
            sums[run.state] += run.end - run.first
        first, n = parked.get(id, (next_seq, 0))
        hole = (next_seq, first) if first > next_seq else None
        missing = sums["missing"] + (first - next_seq if hole else 0)
        counted = None if rows is None else rows.get(id, 0)
        made.append(
            StreamLedger(
                *(gateway, epoch, stream, kind, next_seq, sums["taken"], sums["there"], sums["dropped"], missing),
                *(int(n), hole, counted, tuple(own.get(id, ()))),
            )
        )
    return made
