"""One pipeline: what a source pours, through a model, to an inference.

Sensor windows wait in order and are never skipped for speed; of a camera only the newest picture waits, older ones are
counted as skipped. What looks closer at a picture (`after`) does so before the camera's next picture is taken.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import msgspec

from gateway.analyse.windows import Window, Windows
from gateway.cascade import choose
from gateway.clock import Clock
from gateway.config import PipelineTable
from gateway.contract import (
    Detection,
    Frame,
    Inference,
    Parent,
    PipelineStatus,
    Result,
    Sample,
    Schema,
    Severity,
    Stamp,
)
from gateway.errors import ModelError
from gateway.infer.media import with_regions

MAX_WAITING = 4096  # windows: hours of a failed model must not fill the memory
TOGETHER = 32  # windows handed to the engine at once, which may take several in one hop


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
    async def run(self, data: bytes, media: str, of: tuple[str, int] = ...) -> Answer: ...


Done = Callable[[Inference, Frame | None], None]
Looked = Callable[[str, Stamp, Sequence[Inference], Frame], None]
Notify = Callable[[str, str, Severity, str], None]


class Pipeline:
    """Feeds one model; `done` is called with every inference, in order."""

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
        self._thinned = 0
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
            thinned=self._thinned,
            after=self._table.after,
        )

    async def _answered(self, work: Awaitable[Answer], n: int = 1) -> Answer | None:
        """The answer, or None when there is none: then `n` more are counted as skipped, and an event tells."""
        try:
            answer = await work
        except ModelError as error:
            self._skipped += n
            if not self._failing:
                self._failing = True
                self._notify("pipeline.failing", "raised", Severity.WARNING, f"{self.name}: {error}")
            return None
        if self._failing:
            self._failing = False
            self._notify("pipeline.failing", "cleared", Severity.WARNING, f"{self.name}: inferring again")
        return answer

    def _inference(self, answer: Answer, result: Result, stamp: Stamp, seq: int, parent: Parent | None) -> Inference:
        self._inferences += 1
        self.newest = Inference(
            pipeline=self.name,
            stamp=stamp,
            model=self._table.model,
            bundle=answer.bundle,
            backend=answer.backend,
            took_us=answer.took_us,
            result=result,
            input_seq=seq,
            parent=parent,
        )
        return self.newest


class SensorPipeline(Pipeline):
    """Windows of a node's stream."""

    def __init__(
        self, table: PipelineTable, length: int, engine: Engine, clock: Clock, done: Done, notify: Notify
    ) -> None:
        super().__init__(table, engine, clock, done, notify)
        self.stream = f"{table.source}/{table.stream}"
        self._windows = Windows(length, table.hop or max(1, length // 2))
        self._waiting: deque[tuple[Window, Schema]] = deque()
        self._overflowing = False

    def sample(self, sample: Sample) -> None:
        """Take readings of this pipeline's stream."""
        windows = self._windows.feed(sample)
        if not windows:
            return
        self._waiting.extend((window, sample.schema) for window in windows)
        while len(self._waiting) > MAX_WAITING:
            self._waiting.popleft()
            self._skipped += 1
            if not self._overflowing:
                self._overflowing = True
                message = f"{self.name}: {MAX_WAITING} windows wait for '{self._table.model}'; the oldest are left out"
                self._notify("pipeline.overflow", "raised", Severity.ALARM, message)
        self._wake.set()

    async def _work_off(self) -> None:
        while self._waiting:
            together = [self._waiting.popleft() for _ in range(min(TOGETHER, len(self._waiting)))]
            if len(together) == 1:
                await self._infer(*together[0], None)
                continue
            async with asyncio.TaskGroup() as group:
                # a model's failure is one window's, not the group's: hence the future, which keeps it
                works = [
                    group.create_task(_kept(self._run(*one)), name=f"window {one[0].first} of {self.name}")
                    for one in together
                ]
                for one, work in zip(together, works, strict=True):
                    await self._infer(*one, work)
        if self._overflowing:
            self._overflowing = False
            message = f"{self.name}: no windows wait any more; {self._skipped} were left out so far"
            self._notify("pipeline.overflow", "cleared", Severity.ALARM, message)

    def _run(self, window: Window, schema: Schema) -> Awaitable[Answer]:
        return self._engine.run(window.data, f"records;{schema.spec()}", (self.stream, window.first))

    async def _infer(self, window: Window, schema: Schema, work: asyncio.Task[Answer | ModelError] | None) -> None:
        answer = await self._answered(self._run(window, schema) if work is None else _again(work))
        if answer is not None:
            stamp = self._clock.at(window.end_ns)
            self._done(self._inference(answer, answer.result, stamp, window.first, None), None)


async def _kept(work: Awaitable[Answer]) -> Answer | ModelError:
    """The answer or the error, so that a task group does not end for it."""
    try:
        return await work
    except ModelError as error:
        return error


async def _again(work: asyncio.Task[Answer | ModelError]) -> Answer:
    """The inverse of `_kept`."""
    answer = await work
    if isinstance(answer, ModelError):
        raise answer
    return answer


class CameraPipeline(Pipeline):
    """The newest picture of a camera, then what looks closer at it.

    Attributes:
        of: whose pictures: a source, or `<source>/<camera>` for a camera on a node.
        children: are given every inference; set before the pipeline runs.
    """

    def __init__(self, table: PipelineTable, engine: Engine, clock: Clock, done: Done, notify: Notify) -> None:
        super().__init__(table, engine, clock, done, notify)
        self.of = f"{table.source}/{table.stream}" if table.stream else table.source
        self.children: list[RegionPipeline] = []
        self._frame: Frame | None = None
        self._mistaken = False
        self._pace = Pace(table.max_fps) if table.max_fps else None

    def frame(self, frame: Frame) -> None:
        """Take a picture; one that still waits is replaced by it."""
        if self._pace is not None and not self._pace.due(frame.stamp.mono_ns):
            self._thinned += 1
            return
        if self._frame is not None:
            self._skipped += 1
        self._frame = frame
        self._wake.set()

    def mistaken(self) -> None:
        """Readings came where its pictures should: told once."""
        if not self._mistaken:
            self._mistaken = self._failing = True
            what = f"{self.name}: its model takes pictures, '{self.of}' gives readings (name a camera of the node)"
            self._notify("pipeline.failing", "raised", Severity.WARNING, what)

    async def _work_off(self) -> None:
        while (frame := self._frame) is not None:
            self._frame = None
            answer = await self._answered(self._engine.run(frame.data, self._media(frame), (frame.source, frame.seq)))
            if answer is None:
                continue
            if answer.picture:  # what people see, what is kept and looked at closer is what the model saw
                frame = msgspec.structs.replace(frame, data=answer.picture, media="image/jpeg")
            if (inference := self._judged(answer, frame)) is not None:
                self._done(inference, frame)
                await _look(self.children, frame, [inference])

    def _media(self, frame: Frame) -> str:
        return frame.media

    def _judged(self, answer: Answer, frame: Frame) -> Inference | None:
        """What is recorded of an answer; None is nothing."""
        return self._inference(answer, answer.result, frame.stamp, frame.seq, None)


_Found = tuple[Answer, Parent, Result]


class RegionPipeline(Pipeline):
    """Looks closer at what another pipeline detected; driven by that one, it has no task of its own.

    Each inference is of one region and names its parent. `looked` is called once for each picture that was answered, with
    all inferences of it; there are none when the parent found nothing to look at.
    """

    def __init__(
        self, table: PipelineTable, engine: Engine, clock: Clock, done: Done, looked: Looked, notify: Notify
    ) -> None:
        super().__init__(table, engine, clock, done, notify)
        self._looked = looked
        self.children: list[RegionPipeline] = []

    async def infer(self, frame: Frame, regions: Sequence[Parent]) -> list[_Found] | None:
        """What the model says of each region, in their order; None when it does not answer."""
        if not regions:
            return []
        media = with_regions(frame.media, (region.region for region in regions))
        answer = await self._answered(self._engine.run(frame.data, media, (frame.source, frame.seq)), len(regions))
        if answer is None:
            return None
        return [(answer, parent, result) for parent, result in zip(regions, answer.result.parts, strict=True)]

    def choose(self, detections: Sequence[Detection]) -> list[Parent]:
        """The regions to look at; those beyond `max_regions` are counted as skipped."""
        regions, more = choose(self._table, detections)
        self._skipped += more
        return regions

    def apply(self, frame: Frame, found: Sequence[_Found]) -> list[Inference]:
        """Tell what was found, region by region, then of the picture as a whole."""
        made = []
        for answer, parent, result in found:
            inference = self._inference(answer, result, frame.stamp, frame.seq, parent)
            self._done(inference, frame)
            made.append(inference)
        self._looked(self.name, frame.stamp, made, frame)
        return made


async def _look(children: Sequence[RegionPipeline], frame: Frame, parents: Sequence[Inference]) -> None:
    """Have children look at what was found on a picture: all models at once, what they say in the config's order."""
    if not children:
        return
    detections = [detection for parent in parents for detection in parent.result.detections]
    async with asyncio.TaskGroup() as group:
        works = [
            group.create_task(child.infer(frame, child.choose(detections)), name=f"regions for {child.name}")
            for child in children
        ]
    for child, work in zip(children, works, strict=True):
        found = work.result()
        if found is not None:  # a model that does not answer says nothing of the picture, not that nothing is there
            await _look(child.children, frame, child.apply(frame, found))


class Pace:
    """Lets pictures through at no more than `fps` a second, in the time of the pictures.

    What comes early by less than a tenth of the period is let through, so that a camera of about this very rate is not
    halved; the next one is then due as if it had been on time, so that the average holds.
    """

    def __init__(self, fps: float) -> None:
        self._period_ns = int(1e9 / fps)
        self._due_ns: int | None = None
        self._last_ns = 0

    def due(self, mono_ns: int) -> bool:
        """Whether a picture of this time is taken; asked in the order of the pictures."""
        period = self._period_ns
        if self._due_ns is not None:
            if mono_ns < self._due_ns - period // 10 or mono_ns - self._last_ns < period // 2:
                return False
            late = mono_ns - self._due_ns
            self._due_ns = (self._due_ns if late < period else mono_ns) + period
        else:
            self._due_ns = mono_ns + period
        self._last_ns = mono_ns
        return True
