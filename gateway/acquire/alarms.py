"""Named deadlines that share one timer of the event loop, so that an idle source has no tick."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Alarms:
    """`ring` is called when at least one deadline may have passed; `due` then names which."""

    def __init__(self, ring: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._ring = ring
        self._at: dict[str, float] = {}
        self._handle: asyncio.TimerHandle | None = None

    def set(self, name: str, delay_s: float) -> None:
        """Due in `delay_s` seconds; replaces an earlier deadline of that name."""
        when = self._at[name] = self._loop.time() + delay_s
        if self._handle is None or when < self._handle.when():
            self._arm(when)

    def clear(self, name: str) -> None:
        self._at.pop(name, None)  # the timer stays: ringing for nothing is cheaper than re-arming

    def is_set(self, name: str) -> bool:
        return name in self._at

    def due(self) -> list[str]:
        """The names whose time has come, each once."""
        if self._handle is not None:
            return []
        now = self._loop.time()
        names = [name for name, when in self._at.items() if when <= now]
        for name in names:
            del self._at[name]
        if self._at and self._handle is None:
            self._arm(min(self._at.values()))
        return names

    def close(self) -> None:
        self._at.clear()
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _arm(self, when: float) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._handle = self._loop.call_at(when, self._rang)

    def _rang(self) -> None:
        self._handle = None
        self._ring()
