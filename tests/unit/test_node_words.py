"""What a node logs and how it fails becomes events, not too many of them; another node's readings are refused."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.acquire import node
from gateway.acquire.nodewords import AT_ONCE, EVERY_S, NodeWords
from gateway.contract import Severity, SourceState
from gateway.link.framing import Deframer
from gateway.link.messages import Log, Nak
from tests.unit.fake_node import FakeNode, FakeSink, running

TRACE = 'Traceback (most recent call last):\r\n  File "main.py", line 3, in <module>\r\n{}\r\n'
PROMPT = "MicroPython v1.24.0 on 2024-10-25; Raspberry Pi Pico with RP2040\r\n>>> "


class Heard:
    def __init__(self) -> None:
        self.events: list[tuple[str, str, dict[str, Any]]] = []
        self.time = 0.0
        self.words = NodeWords(self._point, lambda: self.time)
        self._deframer, self._seen = Deframer(), 0

    def _point(self, name: str, severity: Severity, message: str, **detail: Any) -> None:
        assert severity is Severity.WARNING
        self.events.append((name, message, detail))

    def feed(self, chunk: bytes) -> None:
        """As `NodeSource` does."""
        frames = self._deframer.feed(chunk)
        new, self._seen = self._deframer.said - self._seen, self._deframer.said
        self.words.lines(list(self._deframer.lines)[-new:] if new else [])
        if not frames:
            self.words.tail(self._deframer.rest(), final=False)


@given(st.lists(st.sampled_from(["NameError: x", "OSError: 5", "ValueError: "]), max_size=AT_ONCE), st.data())
def test_each_traceback_is_told_once_wherever_the_chunks_are_cut(errors: list[str], data: st.DataObject) -> None:
    ends = data.draw(st.lists(st.sampled_from(["", PROMPT, "hello\r\n"]), min_size=len(errors), max_size=len(errors)))
    wire = b"\0".join((TRACE.format(e) + end).encode() for e, end in zip(errors, ends, strict=True)) + b"\0"
    heard = Heard()
    while wire:
        cut = data.draw(st.integers(1, len(wire)))
        heard.feed(wire[:cut])
        wire = wire[cut:]
    assert [detail["traceback"][-1] for _, _, detail in heard.events] == [e.strip() for e in errors]


@given(st.lists(st.binary(max_size=300)))
def test_noise_does_no_harm(chunks: list[bytes]) -> None:
    heard = Heard()
    for chunk in chunks:
        heard.feed(chunk)
        heard.words.tail(chunk.decode(errors="replace"), final=True)
    assert len(heard.events) <= AT_ONCE


def test_a_traceback_before_the_prompt_is_told_at_once_and_names_the_place() -> None:
    heard = Heard()
    heard.feed((TRACE.format("NameError: name 'x' isn't defined") + PROMPT).encode())
    [(name, message, _)] = heard.events
    assert name == "node.traceback" and "NameError: name 'x'" in message and 'File "main.py", line 3' in message


def test_a_flood_is_counted() -> None:
    heard = Heard()
    for n in range(AT_ONCE + 7):
        heard.words.log(40, f"sensor {n}")
    assert len(heard.events) == AT_ONCE
    heard.time += EVERY_S
    heard.words.log(40, "again")
    assert heard.events[-1][1] == "the node logs: again; 7 more were not told"


def test_only_warnings_are_events() -> None:
    heard = Heard()
    heard.words.log(20, "fine")
    heard.words.lines(["hello"])
    assert heard.events == []


def test_logs_and_tracebacks_of_a_node_reach_the_sink(tmp_path: Path) -> None:
    async def story() -> None:
        sink = FakeSink()
        with FakeNode(tmp_path / "tty") as fake:
            async with running(fake.port, sink) as source:
                await fake.hears(Nak(0))
                fake.say(Log(40, b"sensor: EIO"))
                await sink.saw("node.log", "point")
                fake.write((TRACE.format("OSError: 19") + PROMPT).encode())
                await sink.saw("node.traceback", "point")
                fake.hello()  # the tail is cut off by a zero now, and is not told again
                fake.count_to(1)
                await sink.has(1)
                told = [detail["message"] for name, _, detail in sink.events if name.startswith("node.")]
                assert told[0] == "m: the node logs: sensor: EIO" and "OSError: 19" in told[1] and len(told) == 2
                assert "OSError: 19" in source.log

    asyncio.run(story())


def test_another_node_on_the_port_is_refused_by_name(tmp_path: Path) -> None:
    async def story() -> None:
        sink = FakeSink()
        with FakeNode(tmp_path / "tty") as fake:
            fake.count_to(3)
            async with running(fake.port, sink, node="press-4") as source:
                await sink.saw("source.failing", "raised")
                assert source.status().state is SourceState.FAILING
                [event] = sink.events
                assert "node 'fake' is on" in event[2]["message"] and "'press-4'" in event[2]["message"]
                assert sink.values == []
            async with running(fake.port, sink, node="fake"):
                await sink.has(3)

    asyncio.run(story())


def test_two_nodes_whose_cables_are_swapped_keep_their_readings_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node, "REFUSED_S", 0.02)
    monkeypatch.setattr(node, "REOPEN_S", (0.01, 0.02))

    async def story() -> None:
        first, second = FakeSink(), FakeSink()
        with FakeNode(tmp_path / "a", name="saw") as saw, FakeNode(tmp_path / "b", name="mill") as mill:
            a, b = running(saw.port, first, node="saw"), running(mill.port, second, node="mill")
            async with a, b:
                saw.count_to(3)
                mill.count_to(5)
                await first.has(3)
                await second.has(5)
                for way in (1, 2):
                    for fake in (saw, mill):
                        fake.unplug()
                    saw.port, mill.port = mill.port, saw.port
                    for fake in (saw, mill):
                        fake.plug()
                        fake.count_to(len(fake.frames) + 2)
                    if way == 1:
                        for sink in (first, second):
                            await sink.saw("source.failing", "raised")
                await first.has(7)
                await second.has(9)
        assert (first.values, second.values) == (list(range(7)), list(range(9)))
        [refused] = [detail["message"] for name, state, detail in first.events if name == "source.failing"][:1]
        assert "node 'mill' is on" in refused and "'saw' should be" in refused

    asyncio.run(story())


def test_a_port_by_usb_identity_is_looked_up(tmp_path: Path) -> None:
    async def story() -> None:
        sink = FakeSink()
        async with running("usb:fffe:fffe:NONE", sink):
            await sink.saw("source.lost", "raised")
        assert "usb:fffe:fffe:NONE" in sink.events[0][2]["message"]

    asyncio.run(story())
