"""A sink that keeps what any source pours in, and says when there is enough of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from gateway.contract import Frame, Mark, Sample, Severity, Source

PATIENCE_S = 30.0


class Collector:
    """A `gateway.contract.Sink`; it commits at once, or when `commit` is called if `held`."""

    wait_s = 0.02

    def __init__(self, *, held: bool = False) -> None:
        self.got: list[Sample] = []
        self.events: list[tuple[str, str, str, dict[str, Any]]] = []  # name, state, message, detail
        self._held = held
        self._group: asyncio.Future[None] | None = None
        self._waiters: list[asyncio.Future[None]] = []

    def samples(self, samples: Sequence[Sample], mark: Mark | None, since: float | None = None) -> asyncio.Future[None]:
        self.got.extend(samples)
        if self._group is None:
            self._group = asyncio.get_running_loop().create_future()
        group = self._group
        if not self._held:
            self.commit()
        self._tell()
        return group

    def commit(self) -> None:
        group, self._group = self._group, None
        assert group
        group.set_result(None)

    def frame(self, frame: Frame) -> None:
        raise AssertionError(f"{frame.source} gave a picture")

    def event(self, name: str, state: str, severity: Severity, message: str, **detail: Any) -> None:
        self.events.append((name, state, message, detail))
        self._tell()

    def samples_of(self, stream: str) -> list[Sample]:
        return [sample for sample in self.got if sample.stream == stream]

    def names(self) -> list[tuple[str, str]]:
        return [event[:2] for event in self.events]

    async def has(self, samples: int, stream: str = "") -> None:
        await self.until(lambda: len(self.samples_of(stream) if stream else self.got) >= samples)

    async def saw(self, name: str, state: str) -> None:
        await self.until(lambda: (name, state) in self.names())

    async def until(self, true: Callable[[], bool]) -> None:
        """Wait until something that a source does makes `true` so."""
        while not true():
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter

    @asynccontextmanager
    async def running(self, source: Source, patience_s: float = PATIENCE_S) -> AsyncIterator[None]:
        """The source runs into this sink as long as the block, at most `patience_s`."""
        async with asyncio.timeout(patience_s), asyncio.TaskGroup() as tasks:
            task = tasks.create_task(source.run(self), name="source")
            try:
                yield
            finally:
                task.cancel()

    def _tell(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
