"""One pipeline: what a source pours, through a model, to an inference.

Sensor windows wait in order and are never skipped for speed; of a camera only the newest picture waits, older ones are
counted as skipped.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol

import msgspec

from gateway.analyse.windows import Window, Windows
from gateway.clock import Clock
from gateway.config import PipelineTable
from gateway.contract import Frame, Inference, PipelineStatus, Result, Sample, Schema, Severity, Stamp
from gateway.errors import ModelError

MAX_WAITING = 4096  # windows: hours of a failed model must not fill the memory


class Answer(Protocol):
    """What an engine gives for one piece of work."""

    @property
    def result(self) -> Result: ...
    @property
    def backend(self) -> str: ...
    @property
    def bundle(self) -> str: ...
    @property
    def took_us(self) -> int: ...
    @property
    def picture(self) -> bytes: ...


class Engine(Protocol):
    async def run(self, data: bytes, media: str) -> Answer: ...


Done = Callable[[Inference, Frame | None], None]
Notify = Callable[[str, str, Severity, str], None]


class Pipeline:
    """Feeds one model from one source; `done` is called with every inference, in order."""

    def __init__(self, table: PipelineTable, engine: Engine, clock: Clock, done: Done, notify: Notify) -> None:
        self.name = table.name
        self._table = table
        self._engine = engine
        self._clock = clock
        self._done = done
        self._notify = notify
        self._wake = asyncio.Event()
        self._failing = False
        self._inferences = 0
        self._skipped = 0
        self.newest: Inference | None = None

    async def run(self) -> None:
        """Work off what waits; ends by cancellation."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self._work_off()

    async def _work_off(self) -> None:
        raise NotImplementedError

    def status(self) -> PipelineStatus:
        return PipelineStatus(
            name=self.name,
            source=self._table.source,
            model=self._table.model,
            inferences=self._inferences,
            skipped=self._skipped,
            newest=self.newest,
        )

    async def _infer(self, data: bytes, media: str, stamp: Stamp, seq: int, frame: Frame | None) -> None:
        try:
            answer = await self._engine.run(data, media)
        except ModelError as error:
            self._skipped += 1
            if not self._failing:
                self._failing = True
                self._notify("pipeline.failing", "raised", Severity.WARNING, f"{self.name}: {error}")
            return
        if self._failing:
            self._failing = False
            self._notify("pipeline.failing", "cleared", Severity.WARNING, f"{self.name}: inferring again")
        self._inferences += 1
        self.newest = Inference(
            pipeline=self.name,
            stamp=stamp,
            model=self._table.model,
            bundle=answer.bundle,
            backend=answer.backend,
            took_us=answer.took_us,
            result=answer.result,
            input_seq=seq,
        )
        if frame is not None and answer.picture:  # what people see and what is kept is what the model saw
            frame = msgspec.structs.replace(frame, data=answer.picture, media="image/jpeg")
        self._done(self.newest, frame)


class SensorPipeline(Pipeline):
    """Windows of a node's stream."""

    def __init__(
        self, table: PipelineTable, length: int, engine: Engine, clock: Clock, done: Done, notify: Notify
    ) -> None:
        super().__init__(table, engine, clock, done, notify)
        self.stream = f"{table.source}/{table.stream}"
        self._windows = Windows(length, table.hop or max(1, length // 2))
        self._waiting: deque[tuple[Window, Schema]] = deque()

    def sample(self, sample: Sample) -> None:
        """Take readings of this pipeline's stream."""
        windows = self._windows.feed(sample)
        if not windows:
            return
        self._waiting.extend((window, sample.schema) for window in windows)
        while len(self._waiting) > MAX_WAITING:
            self._waiting.popleft()
            self._skipped += 1
        self._wake.set()

    async def _work_off(self) -> None:
        while self._waiting:
            window, schema = self._waiting.popleft()
            stamp = self._clock.at(window.end_ns)
            await self._infer(window.data, f"records;{schema.spec()}", stamp, window.first, None)


class CameraPipeline(Pipeline):
    """The newest picture of a camera."""

    def __init__(self, table: PipelineTable, engine: Engine, clock: Clock, done: Done, notify: Notify) -> None:
        super().__init__(table, engine, clock, done, notify)
        self._frame: Frame | None = None

    def frame(self, frame: Frame) -> None:
        """Take a picture; one that still waits is replaced by it."""
        if self._frame is not None:
            self._skipped += 1
        self._frame = frame
        self._wake.set()

    async def _work_off(self) -> None:
        while (frame := self._frame) is not None:
            self._frame = None
            await self._infer(frame.data, frame.media, frame.stamp, frame.seq, frame)
