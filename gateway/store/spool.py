"""The spool: everything that was taken, on disk before it is acknowledged, until the consumer has it.

One SQLite file in WAL mode with synchronous=FULL. The event loop collects what sources pour in; one writer thread
encodes and commits it as a group; the futures that `append_*` returned are done when the commit is on disk. There is no
timer while nothing comes in. A disk that refuses is retried with the same group: the futures just stay open, sources
stop reading, nothing is acknowledged and nothing that is stored is touched.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

from gateway.clock import Clock
from gateway.contract import Batch, BatchKind, Mark, Sample, Severity, SpoolStatus
from gateway.store.tables import Tables

FLUSH_BYTES = 256 << 10  # a group of this size is not kept waiting
_SOON_S = 0.002  # not worth another wake-up
_RETRY_S = (0.1, 0.2, 0.5, 1.0, 2.0)


class Notify(Protocol):
    def __call__(self, name: str, state: str, severity: Severity, message: str) -> None: ...


class Group:
    """What one commit takes: filled by the loop, written by the writer thread."""

    __slots__ = ("bytes", "done", "marks", "rows", "samples", "since")

    def __init__(self, done: asyncio.Future[None], since: float) -> None:
        self.done = done
        self.since = since  # loop time of the oldest thing in it
        self.samples: dict[str, list[Sample]] = {}
        self.rows: dict[tuple[str, BatchKind], list[bytes]] = {}
        self.marks: dict[str, Mark] = {}
        self.bytes = 0


class Spool:
    """The durable store of one gateway; made by `Spool.open`.

    Attributes:
        epoch: 16 bytes, made with the file; part of every batch's key.
        on_commit: called in the loop with the batches of each commit, in their order.
        head: the id of the newest batch on disk.
    """

    def __init__(self, path: Path, clock: Clock, commit_s: float, max_bytes: int, notify: Notify) -> None:
        self._path = path
        self._commit_s = commit_s
        self._notify = notify
        self._loop = asyncio.get_running_loop()
        self._tables = Tables(path, clock, max_bytes)
        self.epoch = self._tables.epoch
        self.head = self._tables.head
        self.on_commit: Callable[[Sequence[Batch]], None] = lambda _: None
        self._open_group: Group | None = None
        self._writing = False
        self._timer: asyncio.TimerHandle | None = None
        self._work: queue.SimpleQueue[Group | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._write_forever, name="spool", daemon=True)
        self._confirmed: dict[str, int] = {}
        self._idle = asyncio.Event()  # set whenever the writer has answered
        self._state, self._detail = "ok", ""
        self._commits = 0
        self._took_ms: deque[float] = deque(maxlen=512)

    @classmethod
    @asynccontextmanager
    async def open(
        cls, path: Path, clock: Clock, *, commit_s: float, max_bytes: int, notify: Notify
    ) -> AsyncIterator[Spool]:
        """Open or make the spool at `path`; on leaving, everything handed in so far is on disk.

        Raises:
            StoreError: the file cannot be opened, is damaged or belongs to a newer version.
        """
        spool = cls(path, clock, commit_s, max_bytes, notify)
        spool._thread.start()
        try:
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
        if mark is not None:
            group.marks[mark.source] = mark
        return self._grown(group)

    def append_row(self, stream: str, kind: BatchKind, row: bytes) -> asyncio.Future[None]:
        """Take one inference or event, as one line of JSON."""
        group = self._group(None)
        group.rows.setdefault((stream, kind), []).append(row)
        group.bytes += len(row)
        return self._grown(group)

    def _group(self, since: float | None) -> Group:
        group = self._open_group
        if since is None:
            since = self._loop.time()
        if group is None:
            group = self._open_group = Group(self._loop.create_future(), since)
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
            now, due = self._loop.time(), group.since + self._commit_s
            # what is as good as due goes in the next turn of the loop: sources read in this turn share the commit
            self._timer = self._loop.call_at(now if due - now < _SOON_S else due, self._flush)

    def _grown(self, group: Group) -> asyncio.Future[None]:
        if group.bytes >= FLUSH_BYTES and not self._writing:
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
            self._work.put(group)

    def _committed(self, group: Group, batches: Sequence[Batch], took_ms: float) -> None:
        self._writing = False
        self._idle.set()
        self._commits += 1
        self._took_ms.append(took_ms)
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

    # --- writing (in the writer thread) -----------------------------------------------------------------------

    def _write_forever(self) -> None:
        while (group := self._work.get()) is not None:
            started = time.perf_counter()
            batches = self._write_stubbornly(group)
            if batches is None:
                return
            took_ms = (time.perf_counter() - started) * 1e3
            self._loop.call_soon_threadsafe(self._committed, group, batches, took_ms)
        self._tables.keep_watermark(dict(self._confirmed))

    def _write_stubbornly(self, group: Group) -> list[Batch] | None:
        """Commit, however often the disk says no; None when the spool closes first."""
        tries = 0
        while True:
            try:
                batches = self._tables.commit(group.samples, group.rows, group.marks, dict(self._confirmed))
            except sqlite3.Error as error:
                full = "full" in str(error)
                wait = _RETRY_S[min(tries, len(_RETRY_S) - 1)]
                if tries == 0:
                    self._loop.call_soon_threadsafe(self._refused, "full" if full else "failing", str(error))
                tries += 1
                if self._closing.wait(wait):
                    return None
            else:
                if tries > 0:
                    self._loop.call_soon_threadsafe(self._accepted)
                return batches

    def _refused(self, state: str, detail: str) -> None:
        self._state, self._detail = state, detail
        self._idle.set()
        advice = "free some space or raise store.max_mib" if state == "full" else "check the disk"
        message = f"{self._path}: cannot store: {detail}; nothing is acknowledged until it can; {advice}"
        self._notify(f"store.{state}", "raised", Severity.ALARM, message)

    def _accepted(self) -> None:
        was, self._state, self._detail = self._state, "ok", ""
        self._notify(f"store.{was}", "cleared", Severity.ALARM, f"{self._path}: storing again, nothing was lost")

    async def _close(self) -> None:
        """Store what is still open, then end the writer; a disk that refuses ends it too."""
        while (self._open_group is not None or self._writing) and self._state == "ok":
            if not self._writing:
                self._flush()
            self._idle.clear()
            await self._idle.wait()
        self._closing.set()
        self._work.put(None)
        await asyncio.to_thread(self._thread.join)
        self._tables.close()

    # --- giving back ------------------------------------------------------------------------------------------

    def mark(self, source: str) -> Mark | None:
        """How far a source had been taken when the spool was opened."""
        return self._tables.marks.get(source)

    def next_seq(self) -> Mapping[str, int]:
        """Readings or rows on disk, by stream."""
        return self._tables.next_seq

    def kind(self, stream: str) -> BatchKind:
        """What a stream holds; KeyError for one that is not on disk."""
        return self._tables.kinds[stream]

    def confirm(self, watermark: Mapping[str, int]) -> None:
        """The consumer has committed everything before these sequence numbers."""
        for stream, seq in watermark.items():
            if seq > self._confirmed.get(stream, -1):
                self._confirmed[stream] = seq

    def confirmed(self) -> Mapping[str, int]:
        """The consumer's watermark as far as it is known here."""
        return {**self._tables.confirmed, **self._confirmed}

    async def read_after(self, batch_id: int, max_bytes: int = 1 << 20) -> list[Batch]:
        """Batches that follow `batch_id`, oldest first, about `max_bytes` of them."""
        return await asyncio.to_thread(self._tables.read_after, batch_id, max_bytes)

    async def rewind_point(self, watermark: Mapping[str, int]) -> int:
        """The batch id to send after, so that nothing from this watermark on is missing."""
        return await asyncio.to_thread(self._tables.rewind_point, dict(watermark))

    def status(self) -> SpoolStatus:
        confirmed = self.confirmed()
        took = sorted(self._took_ms) or [0.0]
        return SpoolStatus(
            path=str(self._path),
            epoch=self.epoch.hex(),
            state=self._state,
            bytes=self._tables.size_bytes(),
            batches=self._tables.batches,
            backlog=sum(max(0, seq - confirmed.get(s, 0)) for s, seq in self.next_seq().items()),
            commits=self._commits,
            commit_p50_ms=round(took[len(took) // 2], 3),
            commit_p99_ms=round(took[len(took) * 99 // 100], 3),
            detail=self._detail,
        )
