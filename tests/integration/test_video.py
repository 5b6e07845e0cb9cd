"""Real FFmpeg on a real file and a real RTSP server: thinned out, paced, stopped, killed, refused, and back again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from gateway.acquire import video
from gateway.acquire.video import VideoSource
from gateway.clock import Clock
from gateway.contract import SourceState
from gateway.source_tables import VideoSource as VideoConfig
from tests.integration.harness import free_port
from tests.unit.simulated_camera import PictureSink

SERVER = Path(__file__).with_name("rtsp_server.py")
SILENT_S = 3.0


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(video, "AGAIN_S", (0.05, 0.2))
    yield


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One second of 25 fps, from black to white."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.time_base = 320, 240, "yuv420p", Fraction(1, 25)
        for number in range(25):
            grey = np.full((240, 320, 3), number * 10, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode())
    return path


@asynccontextmanager
async def running(url: str, sink: PictureSink, password: str = "", **settings: Any) -> AsyncIterator[VideoSource]:
    table = VideoConfig(name="gate", url=url, **{"silent_s": 20.0, "fps": 100.0, **settings})
    source = VideoSource(table, url, Clock(), password)
    async with asyncio.timeout(55), asyncio.TaskGroup() as tasks:
        task = tasks.create_task(source.run(sink), name="source")
        try:
            yield source
        finally:
            task.cancel()


@asynccontextmanager
async def server(codec: str, port: int, password: str = "") -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        "/usr/bin/python3", str(SERVER), codec, str(port), password, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout
    try:
        assert await process.stdout.readline() == b"ready\n"
        yield process
    finally:
        process.kill()
        await process.wait()


def picture(data: bytes) -> Any:
    seen = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert seen is not None
    return seen


def reader() -> int:
    """The pid of our one child that reads a video."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    [found] = [pid for pid in children if b"videochild" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return int(found)


def test_a_film_is_shown_at_its_pace_and_thinned_out(film: Path) -> None:
    async def story() -> None:
        sink = PictureSink()
        async with running(str(film), sink, fps=5.0, loop=False) as source:
            await sink.until_slowly(lambda: source.status().state is SourceState.SILENT)
        assert len(sink.frames) == 5
        greys = [int(picture(frame.data)[120, 160, 0]) for frame in sink.frames]
        assert picture(sink.frames[0].data).shape == (240, 320, 3)
        assert greys == pytest.approx([0, 50, 100, 150, 200], abs=12)
        span = sink.frames[-1].stamp.mono_ns - sink.frames[0].stamp.mono_ns
        assert 0.7e9 < span < 5e9  # 0.8 s of film; the machine may add

    asyncio.run(story())


def test_a_film_begins_again(film: Path) -> None:
    async def story() -> None:
        sink = PictureSink()
        async with running(str(film), sink) as source:
            await sink.has_frames(40)
            assert source.status().detail == "mpeg4 320 x 240, 25 fps"
        assert sink.events == []

    asyncio.run(story())


def test_what_is_no_film_is_said(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("this is no film" * 100)

    async def story() -> None:
        sink = PictureSink()
        async with running(str(tmp_path / "text.mp4"), sink):
            await sink.saw("source.lost", "raised")
        assert "text.mp4: Invalid data found" in str(sink.events)

    asyncio.run(story())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_reader_that_is_killed_or_hangs_is_replaced(film: Path, number: signal.Signals) -> None:
    async def story() -> None:
        sink = PictureSink()
        async with running(str(film), sink, silent_s=SILENT_S):
            await sink.has_frames(3)
            hit = reader()
            os.kill(hit, number)
            await sink.saw("source.lost" if number is signal.SIGKILL else "source.silent", "cleared")
            assert reader() != hit

    asyncio.run(story())


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_a_network_camera_that_hangs_and_dies_comes_back(transport: str) -> None:
    port = free_port()

    async def story() -> None:
        sink = PictureSink()
        async with running(f"rtsp://127.0.0.1:{port}/cam", sink, transport=transport, silent_s=SILENT_S) as source:
            await sink.saw("source.lost", "raised")
            assert "Connection refused" in source.status().detail
            async with server("jpeg", port) as process:
                await sink.has_frames(5)
                assert source.status().detail.startswith("mjpeg 320 x 240")
                assert picture(sink.frames[-1].data).shape == (240, 320, 3)
                process.send_signal(signal.SIGSTOP)
                await sink.saw("source.silent", "raised")
                process.send_signal(signal.SIGCONT)
                await sink.saw("source.silent", "cleared")
            seen = len(sink.frames)
            async with server("jpeg", port):
                await sink.has_frames(seen + 3)
        lost = [event for event in sink.names() if event == ("source.lost", "raised")]
        assert len(lost) >= 2

    asyncio.run(story())


def test_bare_jpegs_over_tcp() -> None:
    jpeg = cv2.imencode(".jpg", np.full((240, 320, 3), 90, np.uint8))[1].tobytes()
    over = asyncio.Event()

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                writer.write(jpeg)
                await writer.drain()
                await asyncio.sleep(0.05)
        except OSError:  # the reader was ended
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            over.set()

    async def story() -> None:
        sink = PictureSink()
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as listening:
            port = listening.sockets[0].getsockname()[1]
            async with running(f"tcp://127.0.0.1:{port}", sink):
                await sink.has_frames(5)
            await over.wait()
        assert {frame.data for frame in sink.frames} == {jpeg}
        assert sink.events == []

    asyncio.run(story())


def test_a_network_camera_with_a_password() -> None:
    port = free_port()
    url = f"rtsp://127.0.0.1:{port}/cam"

    async def story() -> None:
        async with server("raw", port, "s3cret"):
            sink = PictureSink()
            async with running(url, sink, "wrong", username="me"):
                await sink.saw("source.lost", "raised")
            assert "401" in str(sink.events) and "wrong" not in str(sink.events)
            async with running(url, sink, "s3cret", username="me", fps=5.0) as source:
                await sink.has_frames(3)
                assert "s3cret" not in f"{sink.events} {source.status()}"
            assert picture(sink.frames[-1].data).shape == (120, 160, 3)  # encoded by us

    asyncio.run(story())
