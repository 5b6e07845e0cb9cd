"""Text sensors on pseudo terminals: readings, events, bad lines, polling, silence, unplugging."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from gateway.acquire import text
from gateway.acquire.text import TextSource
from gateway.clock import Clock
from gateway.config import load
from gateway.contract import SourceState
from gateway.errors import ConfigError
from gateway.report import status_text
from gateway.source_tables import TextLine
from gateway.source_tables import TextSource as Table
from sdk.cable import Cable
from tests.unit.held import held
from tests.unit.sinks import Collector
from tests.unit.status_samples import status

SCALE = TextLine(pattern="ST,GS,{weight:float kg}kg", stream="weight")


class Sensor:
    """What speaks at the far end of a cable; `heard` is what it was told."""

    def __init__(self, port: Path) -> None:
        self.cable = Cable(port)
        self.heard = b""
        self._fd = os.open(self.cable.far_end, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        self.answer = b""
        asyncio.get_running_loop().add_reader(self._fd, self._listen)

    def say(self, data: bytes) -> None:
        os.write(self._fd, data)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)
        self.cable.close()

    def _listen(self) -> None:
        self.heard += os.read(self._fd, 4096)
        if self.answer:
            self.say(self.answer)


def source(port: Path, *lines: TextLine, **more: Any) -> TextSource:
    return TextSource(Table(name="s", port=str(port), line=lines or (SCALE,), **more), Clock())


def test_a_scale_gives_readings_and_bad_lines_are_kept(tmp_path: Path) -> None:
    async def story() -> None:
        sensor, sink = Sensor(tmp_path / "tty"), Collector()
        made = source(tmp_path / "tty")
        async with sink.running(made):
            sensor.say(b"9kg\r\nST,GS,  +1.25kg\r\nUS,GS,  +1.30kg\r\nST,GS,  +1.50kg\r\n")
            await sink.has(1)
            sample = sink.samples_of("s/weight")[0]
            assert (sample.n, sample.newest()) == (2, {"weight": 1.5})
            assert sample.schema.spec() == "weight:d:kg"
            status = made.status()
            assert (status.state, status.readings, status.frames, status.bad) == (SourceState.OK, 2, 2, 1)
            assert status.bad_lines == ("fits no pattern: 'US,GS,  +1.30kg'",)
        sensor.close()
        assert sink.events == []

    asyncio.run(story())


def test_a_barcode_is_an_event_and_floods_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        sensor, sink = Sensor(tmp_path / "tty"), Collector()
        made = source(tmp_path / "tty", TextLine(pattern="{code:text}"), silent_s=0)
        async with sink.running(made):
            sensor.say(b"4006381333931\r")
            await sink.saw("text.read", "point")
            assert sink.events == [
                ("text.read", "point", "s: 4006381333931", {"line": "", "fields": {"code": "4006381333931"}})
            ]
            assert made.status().state is SourceState.OK
            monkeypatch.setattr(text, "EVENTS_S", 0)
            sensor.say(b"a\rb\r")
            while made.status().dropped < 2:
                await asyncio.sleep(0.001)
        sensor.close()
        assert len(sink.events) == 1 and sink.got == []

    asyncio.run(story())


def test_numbers_and_words_of_one_line(tmp_path: Path) -> None:
    async def story() -> None:
        sensor, sink = Sensor(tmp_path / "tty"), Collector()
        made = source(tmp_path / "tty", TextLine(pattern="{who:text},{n:int}", stream="count"))
        async with sink.running(made):
            sensor.say(b"ab,3\n")
            await sink.has(1)
            assert sink.got[0].newest() == {"n": 3}
            await sink.saw("text.read", "point")
            assert sink.events[0][3] == {"line": "count", "fields": {"who": "ab", "n": 3}}
        sensor.close()

    asyncio.run(story())


def test_what_speaks_only_when_asked_is_asked(tmp_path: Path) -> None:
    async def story() -> None:
        sensor, sink = Sensor(tmp_path / "tty"), Collector()
        sensor.answer = b"ST,GS,2kg\r\n"
        made = source(tmp_path / "tty", poll="W\r\n", poll_s=0.05)
        async with sink.running(made):
            begin = asyncio.get_running_loop().time()
            await sink.has(4)
            assert asyncio.get_running_loop().time() - begin > 0.1
            assert sensor.heard.startswith(b"W\r\nW\r\n")
        sensor.close()

    asyncio.run(story())


def test_silence_is_an_event_and_says_what_came_instead(tmp_path: Path) -> None:
    async def story() -> None:
        sensor, sink = Sensor(tmp_path / "tty"), Collector()
        made = source(tmp_path / "tty", silent_s=0.1)
        async with sink.running(made):
            sensor.say(b"x\nnonsense\n")
            await sink.saw("source.silent", "raised")
            assert "no good line on" in sink.events[0][2] and "'nonsense'" in sink.events[0][2]
            sensor.say(b"ST,GS,1kg\n")
            await sink.saw("source.silent", "cleared")
            assert made.status().state in (SourceState.OK, SourceState.SILENT)
        sensor.close()

    asyncio.run(story())


def test_unplugged_and_plugged_a_hundred_times_without_a_leak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "REOPEN_S", (0.01, 0.02))

    async def story() -> None:
        sensor, sink = Sensor(tmp_path / "tty"), Collector()
        made = source(tmp_path / "tty")
        async with sink.running(made):
            sensor.say(b"ST,GS,0kg\r\n")
            await sink.has(1)
            before = held()
            for n in range(1, 101):
                sensor.say(b"ST,G")  # half a line is not carried over
                sensor.cable.unplug()
                await sink.saw("source.lost", "raised")
                sink.events.clear()
                sensor.cable.plug()
                while made.status().state is SourceState.LOST:
                    sensor.say(b"ST,GS,%dkg\r\n" % n)
                    await asyncio.sleep(0.005)
                assert sink.got[-1].newest() == {"weight": n}
            assert held() == before
            assert made.status().bad == 0
        sensor.close()

    asyncio.run(story())


def test_while_the_store_takes_nothing_the_port_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "UNSTORED_MAX", 3)

    async def story() -> None:
        sensor, sink = Sensor(tmp_path / "tty"), Collector(held=True)
        made = source(tmp_path / "tty")
        async with sink.running(made):
            sensor.say(b"ST,GS,1kg\n" * 3)
            await sink.until(lambda: sum(s.n for s in sink.got) == 3)
            sensor.say(b"ST,GS,2kg\n")
            await asyncio.sleep(0.05)
            assert sum(s.n for s in sink.got) == 3
            sink.commit()
            await sink.until(lambda: sum(s.n for s in sink.got) == 4)
        sensor.close()

    asyncio.run(story())


def test_status_shows_the_bad_lines() -> None:
    import msgspec

    now = status()
    [first, *_] = now.sources
    ill = msgspec.structs.replace(first, bad=1, bad_lines=("fits no pattern: 'US'",))
    shown = status_text(msgspec.structs.replace(now, sources=(ill,)))
    assert f"bad lines of {first.name}\n  fits no pattern: 'US'" in shown


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ('pattern = "{n:int}"', r"source\[0\]: line\[0\]\.stream: missing"),
        ('pattern = "ok"\nstream = "x"', r"line\[0\]\.stream: its pattern keeps nothing"),
        ('pattern = "{n:imt}"\nstream = "x"', r"source\[0\]: pattern '\{n:imt\}', character 1: 'imt' is no type"),
        (
            'pattern = "a{n:int}"\nstream = "x"\n[[source.line]]\npattern = "b{n:hex}"\nstream = "x"',
            r"line\[1\]\.stream: 'x' has other fields above",
        ),
    ],
)
def test_wrong_tables_are_named(tmp_path: Path, lines: str, says: str) -> None:
    path = tmp_path / "gateway.toml"
    head = '[gateway]\nid = "g"\ndata_dir = "d"\n[[source]]\nkind = "text"\nname = "s"\nport = "tty"\n[[source.line]]\n'
    path.write_text(head + lines)
    with pytest.raises(ConfigError, match=says):
        load(path)
