"""Replays of recordings made by hand: lines of text, pictures' events, unplugs, answers; and the virtual clock."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.__main__ import main
from gateway.acquire.port import PortGone
from gateway.acquire.recorded import RecordedLine
from gateway.clock import Clock
from gateway.compare import compare, diff_text
from gateway.config import load
from gateway.contract import Frame, Stamp
from gateway.errors import ConfigError, SourceError, StoreError
from gateway.recording import (
    AGE,
    END,
    EVENT,
    FRAME,
    GONE,
    HEARD,
    LOSS,
    LOST,
    OPENED,
    REFUSED,
    SAID,
    FrameHead,
    Reading,
    Record,
    RecordingError,
    Refusal,
    Told,
    frame_body,
)  # fmt: skip
from gateway.replay import Player, replay
from gateway.virtual import VirtualLoop
from tests.unit.recordings import BEGIN_NS, WALL_NS, at, meta, write

CONFIG = """
[gateway]
id = "desk"
data_dir = "data"
[[source]]
kind = "text"
name = "scale"
port = "tty"
silent_s = 2.0
[[source.line]]
stream = "weight"
pattern = "W={weight:float kg}"
[[source]]
kind = "pictures"
name = "cam"
folder = "."
[[rule]]
kind = "threshold"
name = "heavy"
stream = "scale/weight"
channel = "weight"
above = 50
"""
SOURCES = ("scale", "text"), ("cam", "pictures")


def heard(seconds: float, text: bytes) -> Record:
    return at(seconds, HEARD, AGE.pack(10**6) + text)


def shift(path: Path, *, heavy: int = 60, end: bool = True) -> Path:
    refusal = msgspec.json.encode(Refusal("cannot open tty: No such file or directory", "plug it in"))
    told = msgspec.json.encode(Told("source.failing", "raised", "warning", "cam: no light", {"lux": 3}))
    picture = frame_body(FrameHead(7, Stamp("boot-of-the-floor", BEGIN_NS + 10**9, None, 0), "image/jpeg"), b"jpeg")
    return write(
        path, meta(*SOURCES),
        [at(0, OPENED, b"tty"), *(heard(0.1 * k, b"W=%d.5\r\n" % k) for k in range(1, 20))],
        [heard(2.0, b"W=%d\r\n" % heavy), at(2.1, GONE, b"unplugged"), at(2.3, REFUSED, refusal)],
        [at(2.5, EVENT, told, 1), at(2.6, FRAME, picture, 1), at(2.7, OPENED, b"tty"), heard(3.0, b"W=1\r\n")],
        [at(3.1, LOST, LOSS.pack(2, 50)), heard(9.0, b"W=2\r\n")] + [at(9.5, END)] * end,
    )  # fmt: skip


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "gateway.toml"
    path.write_text(CONFIG)
    return path


def events(spool: Path) -> list[str]:
    from gateway.contract import EVENTS_STREAM, Event
    from gateway.store.columns import Codec
    from gateway.store.query import Query

    with Query(spool) as query:
        rows = [
            msgspec.json.decode(row, type=Event)
            for _, blob in query.blobs(query.streams()[EVENTS_STREAM][0], 0)
            for row in Codec().decode_rows(blob)[1]
        ]
    for event in rows:
        assert event.stamp.wall_ns == event.stamp.mono_ns + WALL_NS and event.stamp.boot == "boot-of-the-floor"
    return [f"{(event.stamp.mono_ns - BEGIN_NS) / 1e9:.1f} {event.name} {event.state}" for event in rows]


def test_a_replay_is_the_shift_again_and_the_same_each_time(tmp_path: Path, config: Path) -> None:
    out = shift(tmp_path / "shift.octorec")
    done = replay(out, load(config), tmp_path / "one", 100)
    again = replay(out, load(config), tmp_path / "two", 30)
    assert (tmp_path / "one/spool.db").read_bytes() == (tmp_path / "two/spool.db").read_bytes()
    assert (done.digest, done.file) == (again.digest, again.file)
    assert (done.seconds, done.lost, done.lost_bytes, done.whole) == (9.5, 2, 50, True)
    assert done.streams["scale/weight"] == 22
    assert events(tmp_path / "one/spool.db") == [
        "2.0 heavy raised",
        "2.1 source.lost raised",
        "2.5 source.failing raised",
        "3.0 source.lost cleared",
        "3.0 heavy cleared",
        "5.0 source.silent raised",
        "9.0 source.silent cleared",
    ]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.builds(
            at,
            st.floats(0, 30),
            st.integers(OPENED, LOST),
            st.one_of(st.binary(max_size=40), st.just(AGE.pack(5) + b"W=3\r\n"), st.just(b"unplugged")),
            st.integers(0, 2),
        ),
        max_size=25,
    )
)
def test_any_records_are_played_or_refused(tmp_path_factory: pytest.TempPathFactory, records: list[Record]) -> None:
    folder = tmp_path_factory.mktemp("any")
    (folder / "gateway.toml").write_text(CONFIG)
    out = write(folder / "x.octorec", meta(*SOURCES), *([records] if records else []))
    with contextlib.suppress(RecordingError):  # a picture or an event that is none
        done = replay(out, load(folder / "gateway.toml"), folder / "one", 100_000)
        assert done.records == sum(record.source < len(SOURCES) for record in records)


def test_a_recording_without_its_end_is_played_as_far_as_it_goes(tmp_path: Path, config: Path) -> None:
    out = shift(tmp_path / "cut.octorec", end=False)
    out.write_bytes(out.read_bytes()[:-3])
    done = replay(out, load(config), tmp_path / "one", 100)
    assert not done.whole and done.unread > 0 and done.streams["scale/weight"] == 21


def test_a_difference_is_found_and_the_same_is_none(
    tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replay(shift(tmp_path / "a.octorec"), load(config), tmp_path / "a", 100)
    replay(shift(tmp_path / "b.octorec", heavy=40), load(config), tmp_path / "b", 100)
    assert main(["diff", str(tmp_path / "a"), str(tmp_path / "a")]) == 0
    assert capsys.readouterr().out.endswith("the same\n")
    assert main(["diff", str(tmp_path / "a"), str(tmp_path / "b"), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["events"] == 2 and found["events_a"]["heavy raised"] == 1 and "heavy raised" not in found["events_b"]
    text = diff_text(compare(tmp_path / "a", tmp_path / "b", 0.0))
    assert "heavy raised: scale/weight weight 60 is above 50\n    B  -" in text and text.endswith("different")


def test_a_spool_is_never_overwritten(tmp_path: Path, config: Path) -> None:
    out = shift(tmp_path / "shift.octorec")
    replay(out, load(config), tmp_path / "one", 100)
    with pytest.raises(StoreError, match="folder of its own"):
        replay(out, load(config), tmp_path / "one", 100)


def test_a_config_that_does_not_fit_says_so(tmp_path: Path, config: Path) -> None:
    other = write(tmp_path / "x", meta(("oven", "node")))
    with pytest.raises(ConfigError, match=r"none of the recorded sources \(oven\)"):
        replay(other, load(config), tmp_path / "one", 100)
    other = write(tmp_path / "y", meta(("scale", "node")))
    with pytest.raises(ConfigError, match="recorded as node"):
        replay(other, load(config), tmp_path / "one", 100)


def test_pictures_are_poured_as_they_were(tmp_path: Path, config: Path) -> None:
    frames: list[tuple[int, Frame]] = []

    class Sink:
        def frame(self, frame: Frame) -> None:
            frames.append((loop.mono_ns() - BEGIN_NS, frame))

        def event(self, *_: object, **__: object) -> None:
            pass

    loop = VirtualLoop(BEGIN_NS, 1000)
    with Reading(shift(tmp_path / "x")) as reading, asyncio.Runner(loop_factory=lambda: loop) as runner:
        player = Player(reading, load(config), Clock(mono=loop.mono_ns))

        async def story() -> None:
            player._sinks["cam"] = Sink()  # type: ignore[assignment]
            player.begin()
            await player.feed()

        runner.run(story())
    [(when, frame)] = frames
    assert abs(when - 2_600_000_000) < 1000 and frame.data == b"jpeg" and frame.seq == 7


def test_a_device_that_answers_waits_for_the_question() -> None:
    loop = VirtualLoop(BEGIN_NS, 1000)

    async def story() -> None:
        line = RecordedLine("bus", Clock(mono=loop.mono_ns), answers=True)
        line.put(at(0, OPENED, b"tty"))
        port = line.open("tty", None)  # type: ignore[arg-type]
        for record in (at(1, SAID, b"one?"), heard(1.2, b"one"), at(2, SAID, b"two?"), heard(2.3, b"two")):
            line.put(record)
        line.put(at(6, GONE, b"unplugged"))
        await asyncio.sleep(0.5)
        port.write(b"three?")
        port.write(b"one?")
        await port.wait()
        assert port.take() == b"one" and abs(loop.mono_ns() - BEGIN_NS - 700_000_000) < 1000
        port.write(b"two?")
        await port.wait()
        assert port.take() == b"two" and abs(loop.mono_ns() - BEGIN_NS - 1_000_000_000) < 1000
        with pytest.raises(PortGone, match="unplugged"):
            await port.wait()  # ends for that it is gone
            await port.wait()
        assert abs(loop.mono_ns() - BEGIN_NS - 6_000_000_000) < 1000
        port.close()
        with pytest.raises(SourceError, match="not there in the recording"):
            line.open("tty", None)  # type: ignore[arg-type]

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(story())


def test_time_passes_at_the_speed_that_is_asked_for() -> None:
    loop = VirtualLoop(10**9, 100)
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        began = time.monotonic()
        runner.run(asyncio.sleep(20))
        took = time.monotonic() - began
    assert took >= 0.2 and abs(loop.mono_ns() - 21 * 10**9) < 1000


def test_a_loop_with_nothing_to_wait_for_says_so() -> None:
    with closing(VirtualLoop(0, 100)) as loop, pytest.raises(RuntimeError, match="wait for ever"):
        loop.run_until_complete(loop.create_future())
