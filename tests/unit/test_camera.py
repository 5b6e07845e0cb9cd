"""A USB camera as a source, against a simulation of the kernel's buffer queue."""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from gateway.acquire import camera, v4l2
from gateway.acquire.camera import CameraSource
from gateway.clock import Clock
from gateway.contract import SourceState
from gateway.source_tables import CameraSource as CameraConfig
from tests.unit.simulated_camera import JPEG, USUAL, PictureSink, SimulatedCamera

Story = Callable[[SimulatedCamera, PictureSink, CameraSource], Awaitable[None]]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(camera, "REOPEN_S", (0.001, 0.002))
    monkeypatch.setattr(camera, "UNFIT_S", 0.001)
    yield


@asynccontextmanager
async def running(sim: SimulatedCamera, sink: PictureSink, **settings: Any) -> AsyncIterator[CameraSource]:
    table = CameraConfig(name="cam", device="/dev/sim", **{"fps": 30.0, **settings})
    source = CameraSource(table, table.device, Clock(), sim)
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        task = tasks.create_task(source.run(sink), name="source")
        try:
            yield source
        finally:
            task.cancel()


def tell(story: Story, sim: SimulatedCamera | None = None, **settings: Any) -> tuple[SimulatedCamera, PictureSink]:
    """Runs a story with a camera that streams; afterwards nothing may be open."""
    sim = sim or SimulatedCamera()
    sink = PictureSink()

    async def whole() -> None:
        async with running(sim, sink, **settings) as source:
            await story(sim, sink, source)

    asyncio.run(whole())
    assert sim.held == 0
    return sim, sink


def test_pictures_come_with_the_kernels_time_and_their_padding_cut_off() -> None:
    async def story(sim: SimulatedCamera, sink: PictureSink, source: CameraSource) -> None:
        await sim.streams()
        before = time.monotonic_ns() - 5_000_000
        sim.deliver(JPEG + bytes(5000), at_ns=before)
        await sink.has_frames(1)
        [frame] = sink.frames
        assert (frame.source, frame.seq, frame.data, frame.media) == ("cam", 0, JPEG, "image/jpeg")
        assert frame.stamp.mono_ns == before // 1000 * 1000
        status = source.status()
        assert (status.state, status.frames, status.dropped, status.bad) == (SourceState.OK, 1, 0, 0)
        assert status.detail == "MJPG 640 x 480, 30 fps"
        assert sim.queued == sim.buffers == 4

    tell(story)


@pytest.mark.parametrize("at_ns", [0, 2**62])
def test_a_time_that_cannot_be_is_not_believed(at_ns: int) -> None:
    async def story(sim: SimulatedCamera, sink: PictureSink, source: CameraSource) -> None:
        await sim.streams()
        sim.deliver(at_ns=at_ns)
        await sink.has_frames(1)
        assert 0 <= time.monotonic_ns() - sink.frames[0].stamp.mono_ns < 5e9

    tell(story)


def test_the_newest_wins_and_what_it_replaced_is_counted() -> None:
    async def story(sim: SimulatedCamera, sink: PictureSink, source: CameraSource) -> None:
        await sim.streams()
        now = time.monotonic_ns()
        for number in range(6):  # the driver has four buffers: the last two are lost there
            assert sim.deliver(JPEG[:-2] + bytes([number]) + JPEG[-2:], at_ns=now + number) is (number < 4)
        await sink.has_frames(1)
        assert sink.frames[0].data[-3] == 3
        assert source.status().dropped == 3
        sim.deliver()
        await sink.has_frames(2)
        assert source.status().dropped == 5  # the sequence says so
        assert sim.queued == 4

    tell(story)


@pytest.mark.parametrize(
    ("data", "flags"),
    [(b"\0" * 50, 0), (JPEG[:-2], 0), (JPEG[2:], 0), (JPEG, v4l2.FLAG_ERROR), (b"", 0), (b"\xff\xd8", 0)],
)
def test_what_is_no_whole_picture_is_counted_as_bad(data: bytes, flags: int) -> None:
    async def story(sim: SimulatedCamera, sink: PictureSink, source: CameraSource) -> None:
        await sim.streams()
        sim.deliver(data, flags=flags)
        sim.deliver(JPEG)
        await sink.has_frames(1)
        assert (sink.frames[0].data, source.status().bad, source.status().dropped) == (JPEG, 1, 0)
        sim.deliver(JPEG)
        sim.deliver(data, flags=flags)  # a broken newer one does not cost the whole older one
        await sink.has_frames(2)
        assert (source.status().bad, sim.queued) == (2, 4)

    tell(story)


def test_a_faster_camera_is_thinned_out_and_that_is_no_loss() -> None:
    async def story(sim: SimulatedCamera, sink: PictureSink, source: CameraSource) -> None:
        await sim.streams()
        start = time.monotonic_ns() - 2 * 10**9
        for number in range(31):  # a second of 30 fps, one at a time
            sim.deliver(at_ns=start + number * 33_333_333)
            await sink.until(lambda: sim.queued == 4)
        await sink.until(lambda: source.status().frames == len(sink.frames))
        assert 5 <= len(sink.frames) <= 6
        assert source.status().dropped == 0

    tell(story, SimulatedCamera({v4l2.MJPG: {(640, 480): (30.0,)}}), fps=5.0)


@pytest.mark.parametrize(
    ("formats", "wanted", "media"),
    [
        (USUAL, "auto", "image/jpeg"),
        (USUAL, "mjpeg", "image/jpeg"),
        (USUAL, "yuyv", "image/x-yuyv;640;480;1280"),
        ({v4l2.YUYV: USUAL[v4l2.YUYV]}, "auto", "image/x-yuyv;640;480;1280"),
    ],
)
def test_formats_are_negotiated(formats: Any, wanted: str, media: str) -> None:
    async def story(sim: SimulatedCamera, sink: PictureSink, source: CameraSource) -> None:
        await sim.streams()
        yuyv = media != "image/jpeg"
        if yuyv:
            sim.deliver(bytes(1000))  # cut short
        sim.deliver(bytes(640 * 480 * 2) if yuyv else JPEG)
        await sink.has_frames(1)
        assert sink.frames[0].media == media
        assert (len(sink.frames[0].data), source.status().bad) == ((614400, 1) if yuyv else (len(JPEG), 0))

    tell(story, SimulatedCamera(formats, picture_bytes=640 * 480 * 2), format=wanted)


def test_unplugged_and_plugged_in_again_a_hundred_times() -> None:
    async def story(sim: SimulatedCamera, sink: PictureSink, source: CameraSource) -> None:
        held = 0
        for number in range(100):
            await sim.streams()
            held = held or sim.held
            assert sim.held == held  # nothing of the last one is left
            sim.deliver()
            await sink.has_frames(number + 1)
            sim.unplug()
            await sink.until(lambda: source.status().state is SourceState.LOST and not sim.held)
            sim.plug()
        assert len(asyncio.all_tasks()) == 2
        assert [frame.seq for frame in sink.frames] == list(range(100))

    _, sink = tell(story)
    assert sink.names().count(("source.lost", "raised")) == 100
    assert sink.names().count(("source.lost", "cleared")) == 99


@pytest.mark.parametrize("number", [errno.EIO, errno.EINVAL, errno.ENODEV])
def test_a_stream_that_fails_is_opened_again(number: int) -> None:
    async def story(sim: SimulatedCamera, sink: PictureSink, source: CameraSource) -> None:
        await sim.streams()
        sim.fails[v4l2.DQBUF] = number
        sim.deliver()
        await sink.saw("source.lost", "raised")
        sim.fails.clear()
        await sink.until(lambda: sim.streaming)
        sim.deliver()
        await sink.has_frames(1)

    tell(story)


def test_an_error_without_a_picture_does_not_spin() -> None:
    async def story(sim: SimulatedCamera, sink: PictureSink, source: CameraSource) -> None:
        await sim.streams()
        sim.stall()
        await sink.saw("source.lost", "raised")
        assert "reports an error" in str(sink.events)

    tell(story)


def test_a_silent_camera_is_opened_again() -> None:
    async def story(sim: SimulatedCamera, sink: PictureSink, source: CameraSource) -> None:
        await sim.streams()
        sim.deliver(b"nonsense")
        await sink.saw("source.silent", "raised")
        assert "no whole picture for 0.1 s, 1 broken ones" in source.status().detail
        await sink.until(lambda: sim.opened > 1 and sim.streaming)
        sim.deliver()
        await sink.saw("source.silent", "cleared")

    tell(story, silent_s=0.1)


def test_controls_are_set_by_name_with_their_automatic_off() -> None:
    async def story(sim: SimulatedCamera, sink: PictureSink, source: CameraSource) -> None:
        await sim.streams()
        assert sim.values == {0x009A0901: 1, 0x009A0902: 120, 0x00980913: 7}
        [(name, state, detail)] = sink.events
        assert (name, state) == ("source.fault", "point")
        for part in ("no control 'zoom'", "has: auto_exposure, exposure_time_absolute, gain", "no control 'focus'"):
            assert part in detail["message"]

    tell(story, controls={"exposure": 120, "gain": 7, "focus": 3, "zoom": 1})


def test_a_control_out_of_range_is_told_and_the_pictures_come_all_the_same() -> None:
    async def story(sim: SimulatedCamera, sink: PictureSink, source: CameraSource) -> None:
        await sim.streams()
        assert "gain = 101 is not within 0 to 100" in sink.events[0][2]["message"]
        sim.deliver()
        await sink.has_frames(1)

    tell(story, controls={"gain": 101})


def test_memory_is_bounded_by_the_config() -> None:
    async def story(sim: SimulatedCamera, sink: PictureSink, source: CameraSource) -> None:
        await sim.streams()
        assert sim.buffers == 3

    tell(story, SimulatedCamera(picture_bytes=4 << 20), memory_mib=16)


@pytest.mark.parametrize(
    ("sim", "settings", "words"),
    [
        (
            SimulatedCamera(picture_bytes=8 << 20),
            {"memory_mib": 16},
            "do not fit memory_mib = 16 (set it to 24 or more",
        ),
        (SimulatedCamera({v4l2.YUYV: USUAL[v4l2.YUYV]}), {"format": "mjpeg"}, "it has: YUYV"),
        (SimulatedCamera({0x32314247: USUAL[v4l2.YUYV]}), {}, "it has: GB12"),
    ],
)
def test_what_it_cannot_do_is_said(sim: SimulatedCamera, settings: dict[str, Any], words: str) -> None:
    async def story(sim: SimulatedCamera, sink: PictureSink, source: CameraSource) -> None:
        await sink.saw("source.failing", "raised")
        assert words in source.status().detail

    tell(story, sim, **settings)


@pytest.mark.parametrize(
    ("caps", "words"), [(v4l2.CAP_CAPTURE_MPLANE, "as CSI cameras do"), (v4l2.CAP_STREAMING, "captures no pictures")]
)
def test_what_is_no_usb_camera_is_refused_with_the_way_out(caps: int, words: str) -> None:
    sim = SimulatedCamera()
    sim.caps = caps

    async def story(sim: SimulatedCamera, sink: PictureSink, source: CameraSource) -> None:
        await sink.saw("source.lost", "raised")
        assert words in source.status().detail
        assert "docs/cameras.md" in source.status().detail

    tell(story, sim)
