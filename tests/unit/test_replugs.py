"""Each kind of source, gone and back a hundred times, into a real spool: nothing leaks, nothing acknowledged is lost.

A USB camera's and a video's hundred are in test_camera.py and test_video.py: they give no readings.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.acquire import modbus, node, replay, text
from gateway.acquire.modbus import ModbusSource
from gateway.acquire.modbus_map import load_map
from gateway.acquire.node import NodeSource
from gateway.acquire.replay import PictureReplay
from gateway.acquire.text import TextSource
from gateway.clock import Clock
from gateway.config import NodeSource as NodeTable
from gateway.config import PicturesSource
from gateway.contract import Frame, Mark, Sample, Source, SourceState
from gateway.link.messages import BlobChunk, Hello, encode
from gateway.source_tables import ModbusDevice, TextLine
from gateway.source_tables import ModbusSource as ModbusTable
from gateway.source_tables import TextSource as TextTable
from gateway.store.columns import Codec, expand
from gateway.store.spool import Spool
from sdk.cable import Cable
from sdk.simulated_bus import SDM120, Bus, floats
from tests.unit.fake_node import COUNTER, FakeNode
from tests.unit.held import held
from tests.unit.sinks import Collector

TIMES = 100
JPEG = b"\xff\xd8" + bytes(range(256)) * 8 + b"\xff\xd9"
Story = Callable[[int], Awaitable[None]]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (modbus, node, text):
        monkeypatch.setattr(module, "REOPEN_S", (0.002, 0.01))
    monkeypatch.setattr(replay, "RETRY_S", 0.002)


class SpoolSink(Collector):
    """Puts readings into a spool; `acked` are those whose commit it was told of."""

    def __init__(self, spool: Spool) -> None:
        super().__init__()
        self.spool = spool
        self.acked = 0
        self.frames: list[Frame] = []

    def samples(self, samples: Sequence[Sample], mark: Mark | None, since: float | None = None) -> asyncio.Future[None]:
        done = self.spool.append_samples(samples, mark, since)
        done.add_done_callback(lambda _: self._committed(sum(sample.n for sample in samples)))
        self.got.extend(samples)
        return done

    def frame(self, frame: Frame) -> None:
        self.frames.append(frame)
        self._tell()

    def _committed(self, n: int) -> None:
        self.acked += n
        self._tell()


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[Spool]:
    async with Spool.open(path, Clock(), commit_s=0.001, max_bytes=64 << 20, notify=lambda *_: None) as spool:
        yield spool


async def replug(source: Source, sink: SpoolSink, unplug: Story, plug: Story) -> None:
    """Gone and back TIMES; what is held then is what was held after the first time."""
    before = (0, 0, 0)
    async with sink.running(source, 55):
        while source.status().state is not SourceState.OK:  # which is no event when it starts
            await asyncio.sleep(0.001)
        for number in range(TIMES):
            await unplug(number)
            have = sink.acked, len(sink.frames)
            await plug(number)
            await sink.until(lambda have=have: (sink.acked, len(sink.frames)) > have and healthy(source))  # type: ignore[misc]
            before = before if number else held()
        assert held() == before


def healthy(source: Source) -> bool:
    return source.status().state is SourceState.OK


async def stored(path: Path) -> list[float]:
    """First values of all readings in a spool that was closed, in their order."""
    async with opened(path) as spool:
        batches = await spool.read_after(0, 64 << 20)
    codec = Codec()
    return [values[0] for batch in batches for _, values in expand(codec.decode_samples(batch.blob)[1])]


def lost(sink: SpoolSink) -> Callable[[], bool]:
    return lambda: sink.names()[-1:] == [("source.lost", "raised")]


def test_a_node(tmp_path: Path) -> None:
    async def story() -> tuple[SpoolSink, int]:
        with FakeNode(tmp_path / "tty") as fake:
            fake.count_to(5)
            source = NodeSource(NodeTable(name="m", port=str(fake.port)), None, Clock())

            async def unplug(number: int) -> None:
                fake.count_to(5 + 7 * number + 3)  # on the line when it is cut
                fake.unplug()
                fake.count_to(5 + 7 * number + 7)  # unheard
                await sink.until(lost(sink))

            async def plug(_: int) -> None:
                fake.plug()

            async with opened(tmp_path / "s.db") as spool:
                sink = SpoolSink(spool)
                await replug(source, sink, unplug, plug)
                await sink.until(lambda: sink.acked == 5 + 7 * TIMES)
            return sink, fake.oldest  # what the node was told to forget

    sink, forgotten = asyncio.run(story())
    assert sink.names().count(("source.lost", "raised")) == TIMES
    assert asyncio.run(stored(tmp_path / "s.db")) == list(range(5 + 7 * TIMES))
    assert forgotten <= sink.acked


class CameraNode(FakeNode):
    """A fake node with a serial camera; each time it is asked HELLO it sends one picture whole."""

    pictures = 0

    def hello(self) -> None:
        self.say(Hello((1,), "fake", self.session, "0", 0, len(self.frames), 10**6, (COUNTER,), cameras=("top",)))

    def picture(self, pieces: int = 99) -> None:
        parts = [BlobChunk(self.pictures, at, len(JPEG), JPEG[at : at + 512]) for at in range(0, len(JPEG), 512)]
        self.write(b"".join(encode(part, 0, 1000) for part in parts[:pieces]))


def test_a_serial_camera_on_a_node(tmp_path: Path) -> None:
    async def story() -> tuple[SpoolSink, int]:
        with CameraNode(tmp_path / "tty") as fake:
            fake.count_to(1)
            source = NodeSource(NodeTable(name="m", port=str(fake.port)), None, Clock())

            async def unplug(number: int) -> None:
                have = len(sink.frames)
                fake.pictures = number & 0xFF
                fake.picture()
                await sink.until(lambda: len(sink.frames) > have)
                fake.picture(pieces=2)  # under way when it is cut: gone
                fake.unplug()
                fake.count_to(number + 2)
                await sink.until(lost(sink))

            async def plug(_: int) -> None:
                fake.plug()

            async with opened(tmp_path / "s.db") as spool:
                sink = SpoolSink(spool)
                await replug(source, sink, unplug, plug)
                await sink.until(lambda: sink.acked == TIMES + 1)
            return sink, source.status().bad

    sink, bad = asyncio.run(story())
    assert [(frame.source, frame.seq, frame.data) for frame in sink.frames] == [
        ("m/top", n, JPEG) for n in range(TIMES)
    ]
    assert asyncio.run(stored(tmp_path / "s.db")) == list(range(TIMES + 1))
    assert bad == 0


def test_a_modbus_bus(tmp_path: Path) -> None:
    async def story() -> SpoolSink:
        device = ModbusDevice(name="a", unit=1, map="sdm120", period_s=0.01, timeout_s=0.05)
        table = ModbusTable(name="bus", port=str(tmp_path / "tty"), baud=115200, device=(device,))
        source = ModbusSource(table, [load_map("sdm120", tmp_path)], Clock())
        async with Bus(tmp_path / "tty", {1: floats(SDM120)}) as bus, opened(tmp_path / "s.db") as spool:

            async def unplug(_: int) -> None:
                bus.cable.unplug()
                await sink.until(lost(sink))

            async def plug(_: int) -> None:
                bus.cable.plug()

            sink = SpoolSink(spool)
            await replug(source, sink, unplug, plug)
            assert source.status().readings == sum(sample.n for sample in sink.got)
        return sink

    sink = asyncio.run(story())
    assert sink.acked == sum(sample.n for sample in sink.got) > TIMES  # closing the spool commits the last
    assert asyncio.run(stored(tmp_path / "s.db")) == [230.5] * sink.acked


def test_a_text_sensor(tmp_path: Path) -> None:
    async def story() -> SpoolSink:
        table = TextTable(
            name="s", port=str(tmp_path / "tty"), line=(TextLine(pattern="W={w:int kg}", stream="w"),), silent_s=0
        )
        source, cable = TextSource(table, Clock()), Cable(tmp_path / "tty")

        async def unplug(number: int) -> None:
            cable.say(b"\r\nW=%d\r\nW=9" % (2 * number))  # half a line is not carried over
            await sink.until(lambda: sum(sample.n for sample in sink.got) == 2 * number + 1)
            cable.unplug()
            await sink.until(lost(sink))

        async def plug(number: int) -> None:
            cable.plug()
            await sink.until(lambda: healthy(source))  # opening a terminal empties it
            cable.say(b"\r\nW=%d\r\n" % (2 * number + 1))

        async with opened(tmp_path / "s.db") as spool:
            sink = SpoolSink(spool)
            await replug(source, sink, unplug, plug)
            assert source.status().bad == 0
        cable.close()
        return sink

    sink = asyncio.run(story())
    assert sink.acked == 2 * TIMES
    assert asyncio.run(stored(tmp_path / "s.db")) == list(range(2 * TIMES))


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    folder, hidden = tmp_path / "pictures", tmp_path / "hidden"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.jpg").write_bytes(JPEG)

    async def story() -> SpoolSink:
        source = PictureReplay(PicturesSource(name="cam", folder="pictures", fps=200.0), folder, Clock())

        async def unplug(_: int) -> None:
            folder.rename(hidden)
            await sink.until(lambda: sink.names()[-1:] == [("source.failing", "raised")])

        async def plug(_: int) -> None:
            hidden.rename(folder)

        async with opened(tmp_path / "s.db") as spool:
            sink = SpoolSink(spool)
            await replug(source, sink, unplug, plug)
        return sink

    sink = asyncio.run(story())
    assert sink.names() == [("source.failing", "raised"), ("source.failing", "cleared")] * TIMES
    numbers = [frame.seq for frame in sink.frames]
    assert numbers == sorted(set(numbers)) and len(numbers) >= TIMES


def test_the_counter_of_what_is_held_sees_a_leak(tmp_path: Path) -> None:
    async def story() -> None:
        before = held()
        file = (tmp_path / "leak").open("wb")
        assert held() != before
        file.close()
        assert held() == before

    asyncio.run(story())
