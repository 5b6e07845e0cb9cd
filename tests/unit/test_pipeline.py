"""Order and counting of pipelines, with an engine that answers when it is told to."""

import asyncio
from array import array
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NamedTuple

import msgspec
import pytest

from gateway import pipeline as module
from gateway.clock import Clock
from gateway.config import PipelineTable
from gateway.contract import (
    Channel,
    Detection,
    Frame,
    Inference,
    PipelineStatus,
    Result,
    Sample,
    Schema,
    Severity,
    Stamp,
)
from gateway.errors import ModelError
from gateway.infer.media import split
from gateway.pipeline import CameraPipeline, Pipeline, RegionPipeline, SensorPipeline

CLOCK = Clock()


class Said(NamedTuple):
    result: Result
    backend: str = "test fp32 x1"
    bundle: str = "f" * 12
    took_us: int = 1
    picture: bytes = b""


class Engine:
    """An engine whose answers the test gives. `asked` are the jobs that wait; a new one wakes `until`."""

    def __init__(self, answer: Callable[[bytes, str], Result | ModelError] | None = None) -> None:
        self.asked: list[tuple[bytes, str, asyncio.Future[Said]]] = []
        self.media: list[str] = []
        self._answer = answer
        self._changed = asyncio.Event()

    async def run(self, data: bytes, media: str, of: tuple[str, int] = ("", -1)) -> Said:
        self.media.append(media)
        if self._answer is not None:
            result = self._answer(data, media)
            if isinstance(result, ModelError):
                raise result
            return Said(result)
        future: asyncio.Future[Said] = asyncio.get_running_loop().create_future()
        self.asked.append((data, media, future))
        self._changed.set()
        return await future

    async def until(self, n: int) -> None:
        while len(self.asked) < n:
            self._changed.clear()
            await self._changed.wait()


class Told:
    """What pipelines say: inferences, pictures that were looked at as a whole, events."""

    def __init__(self) -> None:
        self.inferences: list[Inference] = []
        self.looked: list[tuple[str, int]] = []
        self.events: list[tuple[str, str]] = []
        self._changed = asyncio.Event()

    def done(self, inference: Inference, frame: Frame | None) -> None:
        self.inferences.append(inference)
        self._changed.set()

    def looks(self, name: str, stamp: Stamp, inferences: Sequence[Inference], frame: Frame) -> None:
        self.looked.append((name, len(inferences)))
        self._changed.set()

    def notify(self, name: str, state: str, severity: Severity, message: str) -> None:
        self.events.append((name, state))
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()


def running(pipeline: Pipeline, scenario: Coroutine[Any, Any, None]) -> None:
    async def main() -> None:
        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            task = group.create_task(pipeline.run(), name="pipeline")
            await scenario
            task.cancel()

    asyncio.run(main())


def counts(status: PipelineStatus) -> tuple[int, int, int]:
    return status.inferences, status.skipped, status.thinned


# --- sensors ------------------------------------------------------------------------------------------------------

SENSOR = PipelineTable(name="state", source="press", stream="power", model="m", hop=1)
SCHEMA = Schema((Channel("p", "B"),))


def readings(*values: int) -> Sample:
    n = len(values)
    return Sample("press/power", SCHEMA, array("q", [0]), array("q", [1]), array("H", [n]), bytes(values))


def sensor(engine: Engine, told: Told) -> SensorPipeline:
    return SensorPipeline(SENSOR, 1, engine, CLOCK, told.done, told.notify)


def test_waiting_windows_are_handed_over_together_and_told_in_order() -> None:
    engine, told = Engine(), Told()
    pipe = sensor(engine, told)

    async def scenario() -> None:
        pipe.sample(readings(*range(module.TOGETHER + 3)))
        await engine.until(module.TOGETHER)
        assert [data[0] for data, _, _ in engine.asked] == list(range(module.TOGETHER))
        for data, _, future in reversed(engine.asked[1:]):  # the first is the last to be answered
            future.set_result(Said(Result(str(data[0]))))
        assert told.inferences == []
        engine.asked[0][2].set_result(Said(Result("0")))
        await engine.until(module.TOGETHER + 3)
        for data, _, future in engine.asked[module.TOGETHER :]:
            future.set_result(Said(Result(str(data[0]))))
        await told.until(lambda: len(told.inferences) == module.TOGETHER + 3)

    running(pipe, scenario())
    assert [i.result.label for i in told.inferences] == [str(i) for i in range(module.TOGETHER + 3)]
    assert [i.input_seq for i in told.inferences] == list(range(module.TOGETHER + 3))
    assert counts(pipe.status()) == (module.TOGETHER + 3, 0, 0)


def test_one_windows_failure_is_its_own() -> None:
    def answer(data: bytes, media: str) -> Result | ModelError:
        return ModelError("bad") if data[0] in (1, 2) else Result(str(data[0]))

    engine, told = Engine(answer), Told()
    pipe = sensor(engine, told)

    async def scenario() -> None:
        pipe.sample(readings(0, 1, 2, 3))
        await told.until(lambda: len(told.inferences) == 2)

    running(pipe, scenario())
    assert [i.result.label for i in told.inferences] == ["0", "3"]
    assert told.events == [("pipeline.failing", "raised"), ("pipeline.failing", "cleared")]
    assert counts(pipe.status()) == (2, 2, 0)


def test_no_window_is_skipped_under_overload_until_the_documented_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 100)
    engine, told = Engine(), Told()
    pipe = sensor(engine, told)

    async def scenario() -> None:
        pipe.sample(readings(0))
        await engine.until(1)  # in the engine, which is slow
        pipe.sample(readings(*range(1, 101)))
        assert counts(pipe.status()) == (0, 0, 0) and told.events == []
        pipe.sample(readings(101, 102))
        pipe.sample(readings(103))
        assert told.events == [("pipeline.overflow", "raised")], "told once"
        answered = 0
        while answered < 101:
            await engine.until(answered + 1)
            for _, _, future in engine.asked[answered:]:
                future.set_result(Said(Result("x")))
                answered += 1
        await told.until(lambda: len(told.events) == 2)

    running(pipe, scenario())
    assert told.events[-1] == ("pipeline.overflow", "cleared")
    assert [data[0] for data, _, _ in engine.asked] == [0, *range(4, 104)]
    assert counts(pipe.status()) == (101, 3, 0)


# --- cameras ------------------------------------------------------------------------------------------------------

OBJECTS = PipelineTable(name="objects", source="dock", model="m")
FACES = PipelineTable(name="faces", source="dock", model="f", after="objects", labels=("person",), max_regions=2)
PLATES = PipelineTable(name="plates", source="dock", model="p", after="objects", labels=("car",), margin=0.0)
DIGITS = PipelineTable(name="digits", source="dock", model="d", after="plates", min_score=0.0)

PERSON, CAR = ("person", 0.9, 0.0, 0.0, 0.5, 0.5), ("car", 0.8, 0.5, 0.5, 1.0, 1.0)


def frame(seq: int) -> Frame:
    return Frame("dock", seq, Stamp("boot", seq * 100_000_000, None, 0), b"jpeg %d" % seq)


def seen(*objects: tuple[str, float, float, float, float, float]) -> Result:
    return Result(detections=tuple(Detection(*each) for each in objects))


def parts(data: bytes, media: str) -> Result:
    """An answer for each region: its left edge as label."""
    return Result(parts=tuple(Result(f"{region[0]:g}") for region in split(media)[1]))


class Cascade:
    """objects -> (faces, plates -> digits)."""

    def __init__(self, table: PipelineTable = OBJECTS, plates: Callable[[bytes, str], Any] = parts) -> None:
        self.told = Told()
        self.top = Engine()
        self.faces, self.plates, self.digits = Engine(parts), Engine(plates), Engine(parts)
        told = self.told
        self.pipe = CameraPipeline(table, self.top, CLOCK, told.done, told.notify)
        self.children = [
            RegionPipeline(each, engine, CLOCK, told.done, told.looks, told.notify)
            for each, engine in ((FACES, self.faces), (PLATES, self.plates), (DIGITS, self.digits))
        ]
        self.pipe.children = self.children[:2]
        self.children[1].children = self.children[2:]

    def answer(self, n: int, result: Result) -> None:
        self.top.asked[n][2].set_result(Said(result))


def test_the_newest_picture_wins_and_a_pictures_regions_come_before_the_next() -> None:
    cascade = Cascade()
    told = cascade.told

    async def scenario() -> None:
        cascade.pipe.frame(frame(1))
        await cascade.top.until(1)
        for seq in (2, 3, 4):
            cascade.pipe.frame(frame(seq))
        cascade.answer(0, seen(PERSON, CAR, PERSON, PERSON))
        await cascade.top.until(2)
        assert cascade.top.asked[1][0] == b"jpeg 4"
        # by now everything of the first picture is told
        assert [(i.pipeline, i.input_seq) for i in told.inferences] == [
            ("objects", 1), ("faces", 1), ("faces", 1), ("plates", 1),
        ]  # fmt: skip
        cascade.answer(1, seen())
        await told.until(lambda: len(told.looked) == 6)

    running(cascade.pipe, scenario())
    assert counts(cascade.pipe.status()) == (2, 2, 0)
    faces = cascade.children[0].status()
    assert counts(faces) == (2, 1, 0) and faces.after == "objects", "the third person was beyond max_regions"
    assert told.looked[:3] == [("faces", 2), ("plates", 1), ("digits", 0)]
    assert told.looked[3:] == [("faces", 0), ("plates", 0), ("digits", 0)]
    assert len(cascade.faces.media) == 1, "one job for all regions; none where nothing was found"


def test_children_name_their_parent() -> None:
    cascade = Cascade()
    told = cascade.told

    async def scenario() -> None:
        cascade.pipe.frame(frame(7))
        await cascade.top.until(1)
        cascade.answer(0, seen(CAR, PERSON))
        await told.until(lambda: len(told.looked) == 3)

    running(cascade.pipe, scenario())
    parent, face, plate = told.inferences
    assert parent.parent is None and face.parent is not None and plate.parent is not None
    assert (face.parent.pipeline, face.parent.detection, face.parent.label) == ("objects", 1, "person")
    assert face.parent.region == (0.0, 0.0, 0.55, 0.55) and face.parent.box == (0.0, 0.0, 0.5, 0.5)
    assert (plate.parent.detection, plate.parent.region, plate.result.label) == (0, (0.5, 0.5, 1.0, 1.0), "0.5")
    assert face.stamp == parent.stamp and face.input_seq == plate.input_seq == 7


def test_a_childs_detections_are_looked_at_in_turn() -> None:
    def plates(data: bytes, media: str) -> Result:
        return Result(parts=tuple(seen(("plate", 0.9, 0.6, 0.6, 0.7, 0.7)) for _ in split(media)[1]))

    cascade = Cascade(plates=plates)

    async def scenario() -> None:
        cascade.pipe.frame(frame(1))
        await cascade.top.until(1)
        cascade.answer(0, seen(CAR, CAR))
        await cascade.told.until(lambda: len(cascade.told.looked) == 3)

    running(cascade.pipe, scenario())
    digits = [i.parent for i in cascade.told.inferences if i.pipeline == "digits"]
    assert [(p.pipeline, p.detection) for p in digits if p] == [("plates", 0), ("plates", 1)]
    assert all(p and p.region == pytest.approx((0.59, 0.59, 0.71, 0.71)) for p in digits)


def test_a_child_that_fails_says_nothing_of_the_picture() -> None:
    cascade = Cascade(plates=lambda data, media: ModelError("gone"))

    async def scenario() -> None:
        cascade.pipe.frame(frame(1))
        await cascade.top.until(1)
        cascade.answer(0, seen(CAR, CAR, PERSON))
        await cascade.told.until(lambda: len(cascade.told.events) == 1 and len(cascade.told.looked) == 1)

    running(cascade.pipe, scenario())
    assert cascade.told.looked == [("faces", 1)]
    assert counts(cascade.children[1].status()) == (0, 2, 0)


def test_a_limit_of_pictures_a_second_is_counted_apart() -> None:
    cascade = Cascade(PipelineTable(name="objects", source="dock", model="m", max_fps=5))

    async def scenario() -> None:
        for seq in range(10):  # ten a second
            cascade.pipe.frame(frame(seq))
        await cascade.top.until(1)
        assert cascade.top.asked[0][0] == b"jpeg 8"

    running(cascade.pipe, scenario())
    assert counts(cascade.pipe.status()) == (0, 4, 5)


def test_a_raw_picture_is_the_jpeg_of_its_model_for_everybody_else() -> None:
    cascade, frames = Cascade(), list[Frame | None]()
    cascade.pipe._done = lambda inference, frame: frames.append(frame)
    seen_closer = list[tuple[bytes, str]]()

    def closer(data: bytes, media: str) -> Result:
        seen_closer.append((data, split(media)[0]))
        return parts(data, media)

    cascade.faces._answer = closer

    async def scenario() -> None:
        cascade.pipe.frame(msgspec.structs.replace(frame(1), data=b"raw", media="image/x-yuyv;2;1;4"))
        await cascade.top.until(1)
        assert cascade.top.asked[0][:2] == (b"raw", "image/x-yuyv;2;1;4")
        cascade.top.asked[0][2].set_result(Said(seen(PERSON), picture=b"as jpeg"))
        await cascade.told.until(lambda: ("faces", 1) in cascade.told.looked)

    running(cascade.pipe, scenario())
    assert [(f.data, f.media, f.seq) for f in frames if f] == [(b"as jpeg", "image/jpeg", 1)]
    assert seen_closer == [(b"as jpeg", "image/jpeg")], "regions are of the JPEG"


def test_readings_where_pictures_should_come_are_told_once() -> None:
    engine, told = Engine(lambda data, media: seen()), Told()
    table = PipelineTable(name="top", source="press", stream="top", model="m")
    pipe = CameraPipeline(table, engine, CLOCK, told.done, told.notify)
    for _ in range(3):
        pipe.mistaken()
    assert told.events == [("pipeline.failing", "raised")]

    async def scenario() -> None:
        pipe.frame(frame(1))  # the node has another program now
        await told.until(lambda: bool(told.inferences))

    running(pipe, scenario())
    assert told.events == [("pipeline.failing", "raised"), ("pipeline.failing", "cleared")]
