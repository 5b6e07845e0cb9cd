"""Recording what running sources say: who may, for how long, and what is in the file."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from gateway import taps
from gateway.clock import Clock
from gateway.config import Config, GatewayTable, PicturesSource
from gateway.contract import Frame, Severity, Sink, SourceState, SourceStatus
from gateway.errors import ControlError
from gateway.recording import EVENT, FRAME, GONE, HEARD, OPENED, REFUSED, Reading, Refusal, Told, parse_frame
from gateway.source_tables import TextLine, TextSource
from gateway.sources import make_source
from gateway.taps import Taps
from tests.unit.sinks import Collector
from tests.unit.test_text import Sensor


class Camera:
    """A source that shows one picture when it is asked to."""

    name = "cam"

    def __init__(self) -> None:
        self.go = asyncio.Event()

    async def run(self, sink: Sink) -> None:
        await self.go.wait()
        sink.event("source.failing", "raised", Severity.WARNING, "cam: dark", lux=1)
        sink.frame(Frame("cam", 4, Clock().now(), b"jpeg"))

    def status(self) -> SourceStatus:
        return SourceStatus("cam", "pictures", SourceState.OK, "")


class Shown(Collector):
    def __init__(self) -> None:
        super().__init__()
        self.frames: list[Frame] = []

    def frame(self, frame: Frame) -> None:
        self.frames.append(frame)


def config(folder: Path) -> Config:
    line = TextLine(pattern="W={w:float kg}", stream="w")
    scale = TextSource(name="scale", port=str(folder / "tty"), line=(line,), silent_s=0)
    cam = PicturesSource(name="cam", folder=".")
    return Config(GatewayTable(id="g", data_dir="data"), source=(scale, cam), base=str(folder))


def records(path: Path) -> list[tuple[str, int, bytes]]:
    with Reading(path) as reading:
        names = [source.name for source in reading.meta.sources]
        found = [(names[record.source], record.kind, record.body) for record in reading.records()]
        assert reading.ended
    return found


def test_a_line_that_is_unplugged_is_recorded_from_the_middle(tmp_path: Path) -> None:
    async def story() -> None:
        sensor, sink, made = Sensor(tmp_path / "tty"), Collector(), Taps(config(tmp_path))
        source = make_source(made._config.source[0], made._config, None, Clock())
        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
            running = tasks.create_task(made.run(source, sink), name="source")
            while source.status().state is not SourceState.OK:  # the port is opened
                await asyncio.sleep(0)
            sensor.say(b"W=1\r\n")
            await sink.has(1)
            made.start(tmp_path / "x", ["scale"])
            sensor.say(b"W=2\r\n")
            await sink.has(2)
            sensor.cable.unplug()
            await sink.saw("source.lost", "raised")
            while made.status().records < 4:  # an attempt to open it has failed
                await asyncio.sleep(0)
            sensor.cable.plug()
            await sink.saw("source.lost", "cleared")
            sensor.say(b"W=3\r\n")
            await sink.has(3)
            made.close()
            running.cancel()
        sensor.close()

    asyncio.run(story())
    found = records(tmp_path / "x")
    kinds = [kind for _, kind, _ in found]
    assert kinds[:4] == [OPENED, HEARD, GONE, REFUSED] and kinds[-2:] == [OPENED, HEARD]
    assert found[1][2][8:] == b"W=2\r\n" and found[2][2] in (b"unplugged", b"Input/output error")
    refused = [msgspec.json.decode(body, type=Refusal) for _, kind, body in found if kind == REFUSED]
    assert all("No such file" in refusal.what for refusal in refused)


def test_pictures_and_their_events_are_recorded_and_shown(tmp_path: Path) -> None:
    async def story() -> None:
        cam, sink, made = Camera(), Shown(), Taps(config(tmp_path))
        made.start(tmp_path / "x", [])
        cam.go.set()
        await made.run(cam, sink)
        made.close()
        assert len(sink.frames) == 1 and sink.names() == [("source.failing", "raised")]
        [(_, _, told), (name, _, picture)] = records(tmp_path / "x")
        head, data = parse_frame(picture)
        assert (name, data, head.seq, head.stamp) == ("cam", b"jpeg", 4, sink.frames[0].stamp)
        assert msgspec.json.decode(told, type=Told).detail == {"lux": 1}
        assert [kind for _, kind, _ in records(tmp_path / "x")] == [EVENT, FRAME]

    asyncio.run(story())


def test_who_asks_no_more_ends_the_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taps, "LEASE_S", 0.05)

    async def story() -> None:
        made = Taps(config(tmp_path))
        ended = asyncio.Event()
        close = made.close

        def closed() -> None:
            close()
            ended.set()

        monkeypatch.setattr(made, "close", closed)
        status = await made.control({"do": "start", "path": str(tmp_path / "x"), "sources": []})
        assert status.running
        await asyncio.wait_for(ended.wait(), 20)
        assert not (await made.control({"do": "status"})).running and records(tmp_path / "x") == []

    asyncio.run(story())


def test_what_cannot_be_recorded_says_why(tmp_path: Path) -> None:
    async def story() -> None:
        made = Taps(config(tmp_path))
        with pytest.raises(ControlError, match=r"no source 'oven'.*scale, cam"):
            made.start(tmp_path / "x", ["oven"])
        made.start(tmp_path / "x", [])
        with pytest.raises(ControlError, match="under way"):
            made.start(tmp_path / "y", [])
        assert not (await made.control({"do": "stop"})).running
        for args in ({"do": "start"}, {"do": "sing"}, {}):
            with pytest.raises(ControlError, match="record"):
                await made.control(args)

    asyncio.run(story())
