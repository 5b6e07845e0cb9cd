"""The thread that writes: one group after the other, however often the disk says no."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import sqlite3
import threading
import time
from collections.abc import Sequence
from typing import Protocol

from gateway.contract import Batch, BatchKind, Mark, Sample
from gateway.errors import StoreError
from gateway.store.recovery import suspect
from gateway.store.tables import Tables

RETRY_S = (0.1, 0.2, 0.5, 1.0, 2.0)
ROOM_TRIES = 64  # times that room is made for one group before it waits like any other that was refused


class Group:
    """What one commit takes: filled by the loop, written by the writer thread.

    Attributes:
        since: loop time of the oldest thing in it.
        steady: it is part of a steady flow.
        pieces: source -> frames of a node in it, about.
        urgent: an event is in it, or as much of a node as its ring can bear.
    """

    __slots__ = ("bytes", "done", "marks", "pieces", "rows", "samples", "since", "steady", "urgent")

    def __init__(self, done: asyncio.Future[None], since: float, steady: bool) -> None:
        self.done = done
        self.since = since
        self.steady = steady
        self.samples: dict[str, list[Sample]] = {}
        self.rows: dict[tuple[str, BatchKind], list[bytes]] = {}
        self.marks: dict[str, Mark] = {}
        self.pieces: dict[str, int] = {}
        self.bytes = 0
        self.urgent = False


class Mend:
    """A batch that cannot be read, to be noted and replaced by a gap."""

    def __init__(self, id: int, done: asyncio.Future[None]) -> None:
        self.id = id
        self.done = done


class Unfit:
    """Readings or rows too large for an uplink's broker, to be noted; `done` is whether that was new."""

    def __init__(self, stream: str, seq_first: int, n: int, done: asyncio.Future[bool]) -> None:
        self.stream = stream
        self.seq_first = seq_first
        self.n = n
        self.done = done


class Told(Protocol):
    """Who is told what became of the work, in the event loop."""

    def committed(self, group: Group, batches: Sequence[Batch], took_ms: float) -> None: ...
    def refused(self, state: str, detail: str) -> None: ...
    def accepted(self) -> None: ...
    def dropping(self, on: bool, dropped: int) -> None: ...
    def mended(self, work: Mend, lost: int, error: StoreError | None) -> None: ...
    def noted(self, work: Unfit, new: bool) -> None: ...


class Writer:
    """Owns the file while it runs.

    Args:
        confirmed: uplink -> watermark, filled by the loop; looked at when there is something to delete.
    """

    def __init__(
        self, tables: Tables, loop: asyncio.AbstractEventLoop, told: Told, confirmed: dict[str, dict[str, int]]
    ) -> None:
        self._tables = tables
        self._loop = loop
        self._told = told
        self._confirmed = confirmed
        self._work: queue.SimpleQueue[Group | Mend | Unfit | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="spool", daemon=True)
        self._dropping = False

    def start(self) -> None:
        self._thread.start()

    def put(self, work: Group | Mend | Unfit) -> None:
        """Hand over; of groups one at a time."""
        self._work.put(work)

    def close(self) -> None:
        """End it, and write the books; blocks."""
        self._closing.set()
        self._work.put(None)
        self._thread.join()

    # --- in the thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        tables = self._tables
        while (work := self._work.get()) is not None:
            if isinstance(work, Mend):
                self._mend(work)
                continue
            if isinstance(work, Unfit):
                self._note(work)
                continue
            started = time.perf_counter()
            batches = self._write_stubbornly(work)
            if batches is None:
                break
            took_ms = (time.perf_counter() - started) * 1e3
            self._loop.call_soon_threadsafe(self._told.committed, work, batches, took_ms)
            with contextlib.suppress(sqlite3.Error):  # the books can wait; a disk that is ill refuses commits as well
                tables.after_commit(self._snapshot())
            self._say_dropping()
        with contextlib.suppress(sqlite3.Error):
            tables.upkeep.run(self._snapshot())
            tables.upkeep.checkpoint(now=True)

    def _snapshot(self) -> dict[str, dict[str, int]]:
        return {uplink: dict(watermark) for uplink, watermark in list(self._confirmed.items())}

    def _write_stubbornly(self, group: Group) -> list[Batch] | None:
        """Commit, however often the disk says no; None when the spool closes first."""
        tries = rooms = 0
        while True:
            try:
                batches = self._tables.commit(group.samples, group.rows, group.marks)
            except sqlite3.Error as error:
                full = "full" in str(error)
                if full and rooms < ROOM_TRIES and self._make_room():
                    rooms += 1
                    continue
                rooms = 0
                if tries == 0:
                    state = "full" if full else "failing"
                    self._loop.call_soon_threadsafe(self._told.refused, state, str(error))
                wait = RETRY_S[min(tries, len(RETRY_S) - 1)]
                tries += 1
                if self._closing.wait(wait):
                    return None
            else:
                if tries > 0:
                    self._loop.call_soon_threadsafe(self._told.accepted)
                return batches

    def _make_room(self) -> bool:
        disk = not self._tables.at_limit()
        for disk_too in (disk, True):  # at its limit, and the disk full as well: deleting fails without the ballast
            with contextlib.suppress(sqlite3.Error):
                return self._tables.upkeep.make_room(self._snapshot(), disk=disk_too)
        return False

    def _say_dropping(self) -> None:
        upkeep = self._tables.upkeep
        if upkeep.dropping != self._dropping:
            self._dropping = upkeep.dropping
            self._loop.call_soon_threadsafe(self._told.dropping, self._dropping, upkeep.dropped)

    def _mend(self, work: Mend) -> None:
        lost, error = 0, None
        try:
            lost = self._tables.upkeep.mend(work.id)
        except sqlite3.Error as fault:
            suspect(self._tables.path)
            error = StoreError(f"{self._tables.path}: damaged: {fault}", hint="start again: it is rebuilt")
        self._loop.call_soon_threadsafe(self._told.mended, work, lost, error)

    def _note(self, work: Unfit) -> None:
        new = False
        with contextlib.suppress(sqlite3.Error):  # a full disk: the consumer's own ledger has it all the same
            new = self._tables.upkeep.unfit(work.stream, work.seq_first, work.n)
        self._loop.call_soon_threadsafe(self._told.noted, work, new)
