"""Commands on their way to sources: taken at once, written one after the other, each with an event that says what came
of it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from typing import cast

from gateway.contract import Severity, Source, WritableSource
from gateway.errors import SourceError

MAX_WAITING = 100  # writes; more are refused
MAX_WHAT = 120  # characters of a refused command in an event
REFUSALS_S = 10.0  # one event about refused commands in this time: a host cannot fill the spool with them
WRITE_S = 5.0  # how long a source may take to confirm one

Value = bool | int | float | str
Notify = Callable[[str, str, Severity, str], None]


class Writes:
    """Routes writes to the sources that take them (`WritableSource`); the others are refused, never ignored.

    Args:
        sources: all of them, by name.
        notify: makes an event: name, state, severity, message.
    """

    def __init__(self, sources: Mapping[str, Source], notify: Notify) -> None:
        self._sources = sources
        self._notify = notify
        self._waiting: deque[tuple[WritableSource, str, Value]] = deque()
        self._wake = asyncio.Event()
        self._refused_at = -REFUSALS_S
        self._unsaid = 0

    def put(self, source: str, metric: str, value: Value) -> None:
        """Write `value` to a metric of a source, when its turn comes."""
        target = self._sources[source]
        if not hasattr(target, "write"):
            self.refuse(f"{source}: {metric}", "this kind of source takes no commands")
        elif len(self._waiting) >= MAX_WAITING:
            self.refuse(f"{source}: {metric}", f"{MAX_WAITING} writes are waiting already")
        else:
            self._waiting.append((cast(WritableSource, target), metric, value))
            self._wake.set()

    async def now(self, source: str, metric: str, value: Value) -> None:
        """Write at once, for somebody who waits for the answer.

        Raises:
            SourceError: there is no such source, it takes no commands, refused this one, or gave no answer in time.
        """
        target = self._sources.get(source)
        if target is None or not hasattr(target, "write"):
            able = [name for name, other in self._sources.items() if hasattr(other, "write")]
            raise SourceError(f"'{source}' takes no commands", hint=f"these do: {', '.join(able) or 'none'}")
        try:
            async with asyncio.timeout(WRITE_S):
                await cast(WritableSource, target).write(metric, value)
        except TimeoutError:
            raise SourceError(f"no answer within {WRITE_S:g} s") from None

    def refuse(self, what: str, why: str) -> None:
        """Say that a command was not obeyed, and why; soon after another one it is only counted."""
        now = asyncio.get_running_loop().time()
        if now - self._refused_at < REFUSALS_S:
            self._unsaid += 1
            return
        also = f"; {self._unsaid} more were refused since the last such event" if self._unsaid else ""
        self._refused_at, self._unsaid = now, 0
        self._notify("command.refused", "point", Severity.WARNING, f"{what[:MAX_WHAT]}: {why}{also}")

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                await self._write(*self._waiting.popleft())

    async def _write(self, source: WritableSource, metric: str, value: Value) -> None:
        try:
            await self.now(source.name, metric, value)
        except SourceError as error:
            self.refuse(f"{source.name}: {metric}", str(error))
        else:
            self._notify("command.done", "point", Severity.INFO, f"{source.name}: {metric} = {value!r:.100}")
