"""The daemon's side of a video: pictures out of shared memory, children that hang, crash or talk nonsense."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.acquire import video, videowire
from gateway.acquire.video import VideoSource, with_login
from gateway.acquire.videowire import Kind, Mismatch, Told
from gateway.clock import Clock
from gateway.contract import SourceState
from gateway.source_tables import VideoSource as VideoConfig
from tests.unit.fake_video_child import JPEG
from tests.unit.held import descriptors
from tests.unit.simulated_camera import PictureSink

CHILD = Path(__file__).with_name("fake_video_child.py")


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(video, "AGAIN_S", (0.001, 0.002))
    monkeypatch.setattr(video, "UNFIT_S", 0.01)
    yield


@asynccontextmanager
async def running(mode: str, sink: PictureSink, **settings: Any) -> AsyncIterator[VideoSource]:
    table = VideoConfig(name="gate", **{"url": "rtsp://cam/1", "silent_s": 30.0, "picture_kib": 16, **settings})
    command = [sys.executable, "-I", "-S", str(CHILD), mode]
    source = VideoSource(table, table.url, Clock(), command=command)
    async with asyncio.timeout(50), asyncio.TaskGroup() as tasks:
        task = tasks.create_task(source.run(sink), name="source")
        try:
            yield source
        finally:
            task.cancel()


def test_pictures_and_counters_arrive_and_a_file_ends() -> None:
    async def story() -> None:
        sink = PictureSink()
        async with running("two and end", sink, url="film.mp4", loop=False) as source:
            await sink.has_frames(2)
            await sink.until(lambda: source.status().state is SourceState.SILENT)
            assert [(frame.source, frame.seq, frame.data) for frame in sink.frames] == [
                ("gate", i, JPEG) for i in (0, 1)
            ]
            status = source.status()
            assert (status.frames, status.dropped, status.bad) == (2, 5, 1)
            assert status.detail == "every picture was shown"

    asyncio.run(story())


def test_readers_that_die_a_hundred_times_leave_nothing_behind() -> None:
    async def story() -> None:
        sink = PictureSink()
        async with running("one and crash", sink) as source:
            await sink.has_frames(3)
            await sink.until(lambda: source.status().state is SourceState.LOST)
            before = descriptors()
            await sink.has_frames(103)
            await sink.until(lambda: source.status().state is SourceState.LOST)
            assert abs(descriptors() - before) <= 8  # of the one at hand
            assert len(asyncio.all_tasks()) <= 3
        assert sink.names().count(("source.lost", "raised")) >= 103

    before = descriptors()
    asyncio.run(story())
    assert descriptors() == before


def test_a_reader_that_hangs_is_killed_and_replaced() -> None:
    async def story() -> None:
        sink = PictureSink()
        async with running("hang", sink, silent_s=0.6):
            await sink.has_frames(2)
        assert ("source.silent", "raised") in sink.names()
        assert ("source.silent", "cleared") in sink.names()
        assert "nothing came for 0.6 s; its reader was killed" in str(sink.events)

    asyncio.run(story())


def test_a_reader_that_shows_life_is_left_alone() -> None:
    async def story() -> None:
        sink = PictureSink()
        async with running("alive", sink, silent_s=2.0):  # it takes 2.6 s to its picture
            await sink.has_frames(1)
        assert sink.events == []

    asyncio.run(story())


@pytest.mark.parametrize(
    ("mode", "event", "words"),
    [
        ("fault", "source.lost", "rtsp://cam/1: Connection refused"),
        ("unusable", "source.failing", "install octogate[video]"),
        ("crash", "source.lost", "exit status 3: cannot go on"),
        ("nonsense", "source.lost", "it sent a packet of 9 bytes"),
        ("wild slot", "source.lost", "in slot 7"),
        ("wild size", "source.lost", "a picture of 16385 bytes"),
        ("two and end", "source.lost", "the stream has ended"),
    ],
)
def test_what_goes_wrong_is_said(mode: str, event: str, words: str) -> None:
    async def story() -> None:
        sink = PictureSink()
        async with running(mode, sink):
            await sink.saw(event, "raised")
        assert words in str(sink.events)

    asyncio.run(story())


def test_the_password_is_in_the_url_of_the_reader_and_nowhere_else() -> None:
    assert with_login("rtsp://cam/1", "me", "p@ss:/word") == "rtsp://me:p%40ss%3A%2Fword@cam/1"
    assert with_login("rtsp://cam/1", "", "x") == "rtsp://cam/1"
    assert with_login("film.mp4", "me", "x") == "film.mp4"

    async def story() -> None:
        sink = PictureSink()
        table = VideoConfig(name="gate", url="rtsp://cam/1", username="me")
        command = [sys.executable, "-I", "-S", str(CHILD), "hang"]
        source = VideoSource(table, table.url, Clock(), "secret", command)
        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
            task = tasks.create_task(source.run(sink), name="source")
            await sink.has_frames(1)
            children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
            lines = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children]
            assert any(b"fake_video_child" in line for line in lines)
            assert not any(b"secret" in line for line in lines)
            task.cancel()
        assert "secret" not in f"{sink.events} {source.status()}"

    asyncio.run(story())


@given(
    kind=st.sampled_from(Kind), slot=st.integers(0, 1), size=st.integers(0, 99), text=st.text(max_size=80),
    dropped=st.integers(0, 2**32 - 1), at=st.integers(0, 2**62),
)  # fmt: skip
def test_what_is_told_arrives(kind: Kind, slot: int, size: int, text: str, dropped: int, at: int) -> None:
    told = Told(kind, slot, size, at, dropped, 3, text)
    assert videowire.unpack(videowire.pack(told), 99) == told


@given(packet=st.binary(max_size=60))
def test_whatever_comes_is_understood_or_refused(packet: bytes) -> None:
    try:
        told = videowire.unpack(packet, 1000)
    except Mismatch:
        return
    assert told.slot < videowire.SLOTS and told.size <= 1000
