"""What a node's readings are on their way to the disk, and up to which mark they are there."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from gateway.contract import Mark, Sample

_OVERHEAD = 18  # bytes a segment of a sample takes beside its records


class _Group:
    """What one future of the store covers: the mark after it, and its bytes."""

    __slots__ = ("bytes", "future", "mark")

    def __init__(self, future: asyncio.Future[None], mark: Mark) -> None:
        self.future = future
        self.mark = mark
        self.bytes = 0


class Handed:
    """Readings of one source, in the order in which the store was given them.

    Args:
        mark: how far the source is on disk, or None for a new one.
        stored: called when commits are done, with the newest mark that they put on disk; None when there is none.

    Attributes:
        durable: the mark on disk.
        taken: the mark that was handed over.
        refused: why the store did not take something; nothing that came after it counts as on disk.
        bytes: handed over and not on disk yet.
    """

    def __init__(self, mark: Mark | None, stored: Callable[[Mark | None], None]) -> None:
        self.durable = mark
        self.taken = mark
        self.refused = ""
        self.bytes = 0
        self._stored = stored
        self._groups: deque[_Group] = deque()

    def add(self, samples: Sequence[Sample], future: asyncio.Future[None]) -> None:
        """`samples` up to `taken` are handed over; `future` is of their commit."""
        assert self.taken is not None
        group = self._groups[-1] if self._groups else None
        if group is None or group.future is not future or group.mark.session != self.taken.session:
            group = _Group(future, self.taken)
            self._groups.append(group)
            future.add_done_callback(self._done)
        group.mark = self.taken
        size = sum(len(sample.data) + _OVERHEAD * len(sample.counts) for sample in samples)
        group.bytes += size
        self.bytes += size

    def again(self) -> None:
        """What was refused is taken anew."""
        self.refused, self.taken = "", self.durable

    def _done(self, _: asyncio.Future[None]) -> None:
        newest = None
        while self._groups and self._groups[0].future.done():
            group = self._groups.popleft()
            self.bytes -= group.bytes
            if not self.refused:
                self.refused = _failure(group.future)
            if not self.refused:
                newest = self.durable = group.mark
        self._stored(newest)


def _failure(future: asyncio.Future[None]) -> str:
    """Why a commit did not happen; empty when it did."""
    if future.cancelled():
        return "the store was stopped"
    error = future.exception()
    return str(error) or type(error).__name__ if error else ""
