"""What a source has handed over and is not on disk yet, so that it can stop reading before memory fills."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Unstored:
    """Counts readings under way.

    Args:
        most: from so many on, `full` is true.
        changed: called when some of them are on disk.
    """

    def __init__(self, most: int, changed: Callable[[], None]) -> None:
        self._most = most
        self._changed = changed
        self._futures: dict[asyncio.Future[None], int] = {}
        self.count = 0

    @property
    def full(self) -> bool:
        return self.count >= self._most

    def add(self, future: asyncio.Future[None], readings: int) -> None:
        """Readings whose commit is `future`; those of one commit share it."""
        self.count += readings
        if future not in self._futures:
            future.add_done_callback(self._stored)
        self._futures[future] = self._futures.get(future, 0) + readings

    def _stored(self, future: asyncio.Future[None]) -> None:
        if not future.cancelled():
            future.exception()  # the store has told it already; what was not stored is not held here either
        self.count -= self._futures.pop(future)
        self._changed()
