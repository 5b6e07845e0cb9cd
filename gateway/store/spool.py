"""The spool: everything that was taken, on disk before it is acknowledged, until the consumer has it.

One SQLite file in WAL mode with synchronous=FULL. The event loop collects what sources pour in; one writer thread
encodes and commits it as a group; the futures that `append_*` returned are done when the commit is on disk. There is no
timer while nothing comes in. A disk that refuses is retried with the same group: the futures just stay open, sources
stop reading, nothing is acknowledged. What is delivered makes room; what is not is only touched when the policy says so
(`gateway.store.retention`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gateway.clock import Clock
from gateway.contract import Batch, BatchKind, Mark, Sample, Severity, SpoolStatus
from gateway.errors import StoreError
from gateway.store.pace import PIECES, Pace
from gateway.store.retention import Policy
from gateway.store.state import Watermarks, lowest, source_of
from gateway.store.tables import DamagedBatch, Tables
from gateway.store.writer import Group, Mend, Unfit, Writer

FLUSH_BYTES = 256 << 10  # a group of this size is not kept waiting
_SOON_S = 0.002  # not worth another wake-up


class Notify(Protocol):
    def __call__(self, name: str, state: str, severity: Severity, message: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Settings:
    """What the config says about the spool; see `Spool.open`."""

    max_bytes: int
    policy: Policy
    ballast_bytes: int
    card_tbw: float


class Spool:
    """The durable store of one gateway; made by `Spool.open`.

    Attributes:
        epoch: 16 bytes, made with the file; part of every batch's key.
        on_commit: called in the loop with the batches of each commit, in their order.
        head: the id of the newest batch on disk.
        listening: whether anybody waits for readings right now (an uplink is up); while nobody does, commits are made
            as rarely as the durability window allows.
    """

    make_writer: type[Writer] = Writer  # a thread; in a replay the loop itself

    def __init__(self, path: Path, clock: Clock, pace: Pace, settings: Settings, notify: Notify) -> None:
        self._path = path
        self._pace = pace
        self._card_tbw = settings.card_tbw
        self._notify = notify
        self._loop = asyncio.get_running_loop()
        self._tables = Tables(path, clock, settings.max_bytes, settings.policy, settings.ballast_bytes)
        self._uplinks = settings.policy.uplinks
        self.epoch = self._tables.state.epoch
        self.head = self._tables.state.head
        self.listening: Callable[[], bool] = lambda: True
        self.on_commit: Callable[[Sequence[Batch]], None] = lambda _: None
        self._open_group: Group | None = None
        self._writing = False
        self._timer: asyncio.TimerHandle | None = None
        self._confirmed = {uplink: dict(seqs) for uplink, seqs in self._tables.state.confirmed.items()}
        self._writer = self.make_writer(self._tables, self._loop, self, self._confirmed)
        self._idle = asyncio.Event()  # set whenever the writer has answered
        self._state, self._detail = "ok", ""
        self._commits = 0
        self._took_ms: deque[float] = deque(maxlen=512)

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        path: Path,
        clock: Clock,
        *,
        commit_s: float,
        max_bytes: int,
        notify: Notify,
        durability_s: float = 0.0,
        policy: Policy | None = None,
        ballast_bytes: int = 0,
        card_tbw: float = 0.0,
        wear_day: float = 0.0,
    ) -> AsyncIterator[Spool]:
        """Open or make the spool at `path`; on leaving, everything handed in so far is on disk.

        Args:
            commit_s, durability_s, wear_day: see `gateway.store.pace.Pace`.
            max_bytes: of the file.
            policy: limits, priorities, and which uplinks there are; one uplink named main when left out.
            ballast_bytes: kept beside the file for the day the disk is full; at most an eighth of `max_bytes`.
            card_tbw: what the disk is good for, terabytes written; 0 when nobody knows.

        Raises:
            StoreError: the file cannot be opened or belongs to a newer version.
        """
        settings = Settings(max_bytes, policy or Policy(), ballast_bytes, card_tbw)
        spool = cls(path, clock, Pace(commit_s, durability_s, wear_day), settings, notify)
        spool._writer.start()
        try:
            if (recovered := spool._tables.recovered) is not None:
                # not at once: whoever opens the spool is about to put what it is told into it
                told = f"{path}: {recovered.text()}"
                spool._loop.call_soon(notify, "store.rebuilt", "point", Severity.ALARM, told)
            yield spool
        finally:
            await spool._close()

    # --- taking -----------------------------------------------------------------------------------------------

    def append_samples(
        self, samples: Sequence[Sample], mark: Mark | None, since: float | None = None
    ) -> asyncio.Future[None]:
        """Take readings, and how far their source has come; the future is done when both are on disk.

        `since` is when the oldest of them came (loop time, default now): a commit follows within `commit_s` of it.
        """
        group = self._group(since)
        for sample in samples:
            group.samples.setdefault(sample.stream, []).append(sample)
            group.bytes += len(sample.data) + 18 * len(sample.firsts)
            source = source_of(sample.stream)
            pieces = group.pieces[source] = group.pieces.get(source, 0) + len(sample.firsts)
            if pieces >= PIECES and not group.urgent:
                group.urgent = True
                self._arm(group)
        if mark is not None:
            group.marks[mark.source] = mark
        return self._grown(group)

    def append_row(self, stream: str, kind: BatchKind, row: bytes) -> asyncio.Future[None]:
        """Take one inference or event, as one line of JSON."""
        group = self._group(None)
        group.rows.setdefault((stream, kind), []).append(row)
        group.bytes += len(row)
        if kind is BatchKind.EVENTS and not group.urgent:
            group.urgent = True
            self._arm(group)
        return self._grown(group)

    def _group(self, since: float | None) -> Group:
        group = self._open_group
        now = self._loop.time()
        if since is None:
            since = now
        if group is None:
            group = self._open_group = Group(self._loop.create_future(), since, self._pace.begins(now))
            self._arm(group)
        elif since < group.since:
            group.since = since
            self._arm(group)
        return group

    def _arm(self, group: Group) -> None:
        """Flush when the oldest of the group has waited its time; a busy writer does so when it is done."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._writing:
            eager = group.urgent or not group.steady
            now, due = self._loop.time(), self._pace.due(group.since, eager=eager, listening=self.listening())
            # what is as good as due goes in the next turn of the loop: sources read in this turn share the commit
            self._timer = self._loop.call_at(now if due - now < _SOON_S else due, self._flush)

    def _grown(self, group: Group) -> asyncio.Future[None]:
        if self._writing:
            return group.done
        if group.bytes >= FLUSH_BYTES:
            self._flush()
        return group.done

    def _flush(self) -> None:
        """Hand the open group to the writer, which is idle."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        group, self._open_group = self._open_group, None
        if group is not None:
            self._writing = True
            self._pace.ends(self._loop.time())
            self._writer.put(group)

    # --- what the writer says ------------------------------------------------------------------------------------

    def committed(self, group: Group, batches: Sequence[Batch], took_ms: float) -> None:
        self._writing = False
        self._idle.set()
        self._commits += 1
        self._took_ms.append(took_ms)
        self._pace.took(took_ms / 1e3, self._loop.time())
        if batches:
            self.head = batches[-1].id
        if not group.done.done():
            group.done.set_result(None)
        self.on_commit(batches)
        if (waiting := self._open_group) is not None:
            if waiting.bytes >= FLUSH_BYTES:
                self._flush()
            else:
                self._arm(waiting)

    def refused(self, state: str, detail: str) -> None:
        self._state, self._detail = state, detail
        self._idle.set()
        advice = "free some space or raise store.max_mib" if state == "full" else "check the disk"
        message = f"{self._path}: cannot store: {detail}; nothing is acknowledged until it can; {advice}"
        self._notify(f"store.{state}", "raised", Severity.ALARM, message)

    def accepted(self) -> None:
        was, self._state, self._detail = self._state, "ok", ""
        self._notify(f"store.{was}", "cleared", Severity.ALARM, f"{self._path}: storing again, nothing was lost")

    def dropping(self, on: bool, dropped: int) -> None:
        """Tell, once, that undelivered readings go; and that they do no more."""
        message = (
            f"{self._path}: full: the oldest undelivered readings of the lowest priority are deleted, {dropped} so far; "
            "`octogate ledger` says which; give it more room or bring an uplink back"
            if on
            else f"{self._path}: there is room again; {dropped} readings and rows were deleted in all"
        )
        self._notify("store.dropping", "raised" if on else "cleared", Severity.ALARM, message)

    def mended(self, work: Mend, lost: int, error: StoreError | None) -> None:
        if lost:
            message = f"{self._path}: batch {work.id} is damaged: {lost} readings or rows are lost; see octogate ledger"
            self._notify("store.damaged", "point", Severity.ALARM, message)
        if work.done.done():
            return
        if error is None:
            work.done.set_result(None)
        else:
            work.done.set_exception(error)

    def noted(self, work: Unfit, new: bool) -> None:
        if not work.done.done():
            work.done.set_result(new)

    async def _close(self) -> None:
        """Store what is still open, then end the writer; a disk that refuses ends it too."""
        while (self._open_group is not None or self._writing) and self._state == "ok":
            if not self._writing:
                self._flush()
            self._idle.clear()
            await self._idle.wait()
        await asyncio.to_thread(self._writer.close)
        self._tables.close()

    # --- giving back ------------------------------------------------------------------------------------------

    def mark(self, source: str) -> Mark | None:
        """How far a source had been taken when the spool was opened."""
        return self._tables.state.marks.get(source)

    def newest(self, source: str) -> dict[str, int]:
        """Stream -> when its newest reading was taken, monotonic ns, for a source's streams that have one of this boot."""
        return self._tables.newest(source)

    def next_seq(self) -> Mapping[str, int]:
        """Readings or rows on disk, by stream."""
        return self._tables.state.next_seq

    def kind(self, stream: str) -> BatchKind:
        """What a stream holds; KeyError for one that is not on disk."""
        return self._tables.state.kinds[stream]

    def confirm(self, watermark: Mapping[str, int], uplink: str = "main") -> None:
        """The consumer behind an uplink has committed everything before these sequence numbers."""
        known = self._confirmed.setdefault(uplink, {})
        for stream, seq in watermark.items():
            if seq > known.get(stream, -1):
                known[stream] = seq

    def confirmed(self, uplink: str = "main") -> Mapping[str, int]:
        """An uplink's watermark as far as it is known here."""
        return dict(self._confirmed.get(uplink, {}))

    def watermarks(self) -> Watermarks:
        """What every configured uplink's consumer has."""
        return Watermarks(self.epoch.hex(), {name: dict(self._confirmed.get(name, {})) for name in self._uplinks})

    def sending(self, stream: str, seq: int) -> None:
        """Everything of a stream before `seq` may be on its way to a consumer: it is dropped last."""
        maybe_sent = self._tables.upkeep.maybe_sent
        maybe_sent[stream] = max(seq, maybe_sent.get(stream, 0))

    def delivered(self, stream: str) -> int:
        """What every configured uplink has of a stream."""
        return lowest(self._confirmed, self._uplinks, stream)

    def uplink(self, name: str) -> UplinkStore:
        """The spool as one uplink sees it."""
        return UplinkStore(self, name)

    async def read_after(self, batch_id: int, max_bytes: int = 1 << 20) -> list[Batch]:
        """Batches that follow `batch_id`, oldest first, about `max_bytes` of them; gaps in place of what is damaged.

        Raises:
            StoreError: the file cannot be read.
        """
        while True:
            try:
                return await asyncio.to_thread(self._tables.read_after, batch_id, max_bytes)
            except DamagedBatch as damaged:
                work = Mend(damaged.id, self._loop.create_future())
                self._writer.put(work)
                await work.done

    async def fit(self, batch: Batch, largest: int, uplink: str) -> list[Batch]:
        """A batch as smaller ones of at most `largest` bytes; a gap for what does not fit even alone, ledgered and told.

        Sending goes on after the id of each: only the last has the batch's own.
        """
        parts = await asyncio.to_thread(self._tables.split, batch, largest)
        for part in parts:
            if not part.size:
                continue
            seq, n = part.batch.seq_first, part.batch.n
            work = Unfit(batch.stream, seq, n, self._loop.create_future())
            self._writer.put(work)
            if await work.done:
                what = f"{batch.stream} {seq}" if n == 1 else f"{batch.stream} {seq} to {seq + n - 1}"
                message = (
                    f"uplink '{uplink}' cannot send {what}: {part.size} bytes, the broker takes {largest}; a gap is "
                    "sent in its place, see octogate ledger; raise the broker's limit or uplink.max_packet_kib"
                )
                self._notify("uplink.too_large", "point", Severity.ALARM, message)
        return [part.batch for part in parts]

    async def rewind_point(self, watermark: Mapping[str, int]) -> int:
        """The batch id to send after, so that nothing from this watermark on is missing."""
        if self._open_group is not None:
            self._arm(self._open_group)  # somebody listens again: what waits need not wait as long
        return await asyncio.to_thread(self._tables.rewind_point, dict(watermark))

    def status(self) -> SpoolStatus:
        took = sorted(self._took_ms) or [0.0]
        upkeep = self._tables.upkeep
        worn = upkeep.books.wear()
        return SpoolStatus(
            path=str(self._path),
            epoch=self.epoch.hex(),
            state=self._state,
            bytes=self._tables.size_bytes(),
            batches=sum(totals.batches for totals in tuple(upkeep.books.totals.values())),
            backlog=sum(max(0, seq - self.delivered(s)) for s, seq in self.next_seq().items()),
            commits=self._commits,
            commit_p50_ms=round(took[len(took) // 2], 3),
            commit_p99_ms=round(took[len(took) * 99 // 100], 3),
            detail=self._detail,
            dropped=upkeep.dropped,
            damaged=upkeep.damaged,
            written_mb_day=round(worn.per_day / 1e6, 1),
            written_mb=round(worn.written / 1e6, 1),
            card_years=worn.years_left(self._card_tbw),
        )


class UplinkStore:
    """The spool as one uplink sees it: its own watermark, everything else shared."""

    def __init__(self, spool: Spool, name: str) -> None:
        self._spool = spool
        self.name = name
        self.read_after = spool.read_after
        self.rewind_point = spool.rewind_point
        self.sending = spool.sending

    @property
    def epoch(self) -> bytes:
        return self._spool.epoch

    @property
    def head(self) -> int:
        return self._spool.head

    async def fit(self, batch: Batch, largest: int) -> list[Batch]:
        """See `Spool.fit`."""
        return await self._spool.fit(batch, largest, self.name)

    def confirm(self, watermark: Mapping[str, int]) -> None:
        """This uplink's consumer has committed everything before these sequence numbers."""
        self._spool.confirm(watermark, self.name)

    def confirmed(self) -> Mapping[str, int]:
        """This uplink's watermark."""
        return self._spool.confirmed(self.name)
