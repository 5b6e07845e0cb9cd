"""An event loop whose time is not the machine's: it goes on when there is nothing left to do at the present moment.

So nothing is ever late, and what happens depends on what is put in only. Work that takes real time (a commit, a model)
must be done within a callback: the loop's time stands still meanwhile.
"""

from __future__ import annotations

import asyncio
import math
import selectors
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

from gateway.errors import OctogateError


class VirtualLoop(asyncio.SelectorEventLoop):
    """Begins at `start_ns`.

    Args:
        speed: at most so many of its seconds pass in a second.
    """

    def __init__(self, start_ns: int, speed: float) -> None:
        self._now_ns = self._start_ns = start_ns
        self._speed = speed
        self._began = time.monotonic()
        super().__init__(_Selector(self._advance))

    def time(self) -> float:
        return self._now_ns / 1e9

    def mono_ns(self) -> int:
        """The loop's time, nanoseconds."""
        return self._now_ns

    def run_in_executor(  # type: ignore[override]  # what asyncio.to_thread calls
        self, executor: Executor | None, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """Done at once: a thread would end when it likes."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except (OctogateError, OSError) as error:
            future.set_exception(error)
        return future

    def _advance(self, seconds: float) -> None:
        self._now_ns += math.ceil(seconds * 1e9)
        early = self._began + (self._now_ns - self._start_ns) / 1e9 / self._speed - time.monotonic()
        if early > 0:
            time.sleep(early)


class _Selector(selectors.DefaultSelector):
    """Instead of waiting until something comes: lets the time pass."""

    def __init__(self, advance: Callable[[float], None]) -> None:
        super().__init__()
        self._advance = advance

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("nothing is left to do, and no timer is set: it would wait for ever")
        if timeout > 0:
            self._advance(timeout)
        return super().select(0)
