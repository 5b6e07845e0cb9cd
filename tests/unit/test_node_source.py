"""`NodeSource` against a node that does what the test says."""

from __future__ import annotations

import asyncio
from array import array
from pathlib import Path

import pytest

from gateway.acquire import node, port
from gateway.contract import Mark, SourceState
from gateway.errors import StoreError
from gateway.link import messages
from gateway.link.messages import Ack, Data, Nak, SayHello
from tests.unit.fake_node import FakeNode, FakeSink, running
from tests.unit.held import held


def test_readings_in_order_are_acknowledged_when_stored(tmp_path: Path) -> None:
    async def story() -> None:
        sink = FakeSink(held=True)
        with FakeNode(tmp_path / "tty") as fake:
            async with running(fake.port, sink) as source:
                await fake.hears(Nak(0))
                fake.count_to(30)
                await sink.has(30)
                assert sink.values == list(range(30))
                assert not [line for line in fake.heard if isinstance(line, Ack)]
                sink.commit()
                await fake.hears(Ack(30))
                assert [line for line in fake.heard if isinstance(line, Ack)] == [Ack(30)]  # once a commit
                status = source.status()
                assert (status.state, status.readings, status.frames) == (SourceState.OK, 30, 30)
                assert "fake" in status.detail and sink.marks[-1] == Mark("m", 7, 30)

    asyncio.run(story())


def test_times_are_of_this_clock(tmp_path: Path) -> None:
    async def story() -> None:
        sink = FakeSink()
        with FakeNode(tmp_path / "tty") as fake:
            async with running(fake.port, sink) as source:
                fake.count_to(1)
                await sink.has(1)
                assert 0 < source.clock_uncertainty_ns < 500_000_000

    asyncio.run(story())


def test_a_gap_is_asked_for_again(tmp_path: Path) -> None:
    async def story() -> None:
        sink = FakeSink()
        with FakeNode(tmp_path / "tty") as fake:
            fake.deaf = {5, 12, 40}
            async with running(fake.port, sink) as source:
                await fake.hears(Nak(0))
                fake.count_to(30)
                await sink.has(30)
                fake.count_to(60)
                await sink.has(60)
                assert sink.values == list(range(60))
                assert source.status().gaps == 2

    asyncio.run(story())


def test_a_nak_that_was_lost_is_said_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "ANSWER_S", 0.05)

    async def story() -> None:
        sink = FakeSink()
        with FakeNode(tmp_path / "tty") as fake:
            async with running(fake.port, sink):
                await fake.hears(Nak(0))
                fake.deaf, fake.deaf_to_naks = {5}, 2
                fake.count_to(8)
                await sink.has(8)
                assert sink.values == list(range(8))
                assert fake.heard.count(Nak(5)) == 3

    asyncio.run(story())


def test_the_mark_says_where_to_go_on(tmp_path: Path) -> None:
    async def story() -> None:
        with FakeNode(tmp_path / "tty") as fake:
            fake.count_to(20)
            sink = FakeSink()
            async with running(fake.port, sink, Mark("m", 7, 12)):
                await sink.has(8)
                assert sink.values == list(range(12, 20))
            assert fake.heard.index(Ack(12)) < fake.heard.index(Nak(12))

    asyncio.run(story())


def test_another_session_starts_at_the_oldest(tmp_path: Path) -> None:
    async def story() -> None:
        with FakeNode(tmp_path / "tty", session=8) as fake:
            fake.count_to(20)
            sink = FakeSink()
            async with running(fake.port, sink, Mark("m", 7, 12)):
                await sink.has(20)
                assert sink.values == list(range(20))
                assert ("source.restarted", "point") in sink.names()

    asyncio.run(story())


def test_a_node_that_reboots_on_the_line_is_taken_up(tmp_path: Path) -> None:
    async def story() -> None:
        sink = FakeSink()
        with FakeNode(tmp_path / "tty") as fake:
            async with running(fake.port, sink):
                await fake.hears(Nak(0))
                fake.count_to(10)
                await sink.has(10)
                fake.session, fake.frames, fake.oldest = 9, [], 0
                fake.hello()
                await fake.hears(Nak(0), times=2)
                fake.count_to(3)
                await sink.has(13)
                assert sink.values[10:] == [0, 1, 2] and sink.marks[-1] == Mark("m", 9, 3)

    asyncio.run(story())


def test_what_the_ring_overwrote_is_told(tmp_path: Path) -> None:
    async def story() -> None:
        sink = FakeSink()
        with FakeNode(tmp_path / "tty") as fake:
            fake.count_to(20)
            fake.oldest, fake.lost = 15, (15, 15)
            async with running(fake.port, sink, Mark("m", 7, 4)) as source:
                await sink.saw("source.overrun", "point")
                await sink.has(5)
                assert sink.values == list(range(15, 20))
                assert source.status().dropped == 11

    asyncio.run(story())


def test_no_common_version_says_what_to_do(tmp_path: Path) -> None:
    async def story() -> None:
        sink = FakeSink()
        with FakeNode(tmp_path / "tty", versions=(2, 3)) as fake:
            async with running(fake.port, sink) as source:
                await sink.saw("source.failing", "raised")
                assert source.status().state is SourceState.FAILING
                assert "[2, 3]" in source.status().detail and "update" in source.status().detail

    asyncio.run(story())


def test_a_missing_device_is_waited_for(tmp_path: Path) -> None:
    async def story() -> None:
        sink, fake = FakeSink(), FakeNode(tmp_path / "tty")
        async with running(fake.port, sink) as source:
            await sink.saw("source.lost", "raised")
            assert "No such file" in source.status().detail and "by-id" in source.status().detail
            with fake:
                fake.count_to(3)
                await sink.has(3)
                await sink.saw("source.lost", "cleared")

    asyncio.run(story())


def test_a_port_that_is_taken_says_so(tmp_path: Path) -> None:
    async def story() -> None:
        with FakeNode(tmp_path / "tty") as fake:
            sink = FakeSink()
            holder = port.SerialPort(str(fake.port), 115200, 0.02)
            async with running(fake.port, sink) as source:
                await sink.saw("source.lost", "raised")
                assert "another program" in source.status().detail
                holder.close()
                await fake.hears(SayHello())

    asyncio.run(story())


def test_unplugged_a_hundred_times_nothing_is_lost_or_leaked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "REOPEN_S", (0.01, 0.02))

    async def story() -> None:
        sink = FakeSink()
        with FakeNode(tmp_path / "tty") as fake:
            async with running(fake.port, sink):
                await fake.hears(Nak(0))
                fake.count_to(5)
                await sink.has(5)
                before = held()
                for k in range(1, 101):
                    fake.unplug()
                    fake.count_to(5 + k * 7)  # unheard
                    fake.plug()
                    await sink.has(5 + k * 7)
                assert sink.values == list(range(5 + 100 * 7))
                assert held() == before

    asyncio.run(story())


def test_silence_is_an_event_and_ends_with_data(tmp_path: Path) -> None:
    async def story() -> None:
        sink = FakeSink()
        with FakeNode(tmp_path / "tty") as fake:
            async with running(fake.port, sink, silent_s=0.2) as source:
                await fake.hears(Nak(0))
                await sink.saw("source.silent", "raised")
                assert source.status().state is SourceState.SILENT
                fake.count_to(3)
                await sink.saw("source.silent", "cleared")
                assert sink.values == [0, 1, 2]

    asyncio.run(story())


def test_no_firmware_on_the_node_says_so(tmp_path: Path) -> None:
    async def story() -> None:
        sink = FakeSink()
        with FakeNode(tmp_path / "tty") as fake:
            fake.mute = True
            async with running(fake.port, sink, silent_s=0.2) as source:
                await fake.hears(SayHello())
                fake.write(b"Traceback (most recent call last):\r\nImportError: no module named 'octolink'\r\n>>> ")
                await sink.saw("source.silent", "raised")
                assert "firmware" in source.status().detail and "ImportError" in sink.events[0][2]["message"]

    asyncio.run(story())


def test_what_the_store_refused_is_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "REOPEN_S", (0.01, 0.02))

    async def story() -> None:
        sink = FakeSink(held=True)
        with FakeNode(tmp_path / "tty") as fake:
            async with running(fake.port, sink):
                await fake.hears(Nak(0))
                fake.count_to(4)
                await sink.has(4)
                sink.commit()
                await fake.hears(Ack(4))
                fake.count_to(9)
                await sink.has(9)
                sink.held = False
                sink.commit(StoreError("disk full"))
                await sink.saw("source.failing", "raised")
                await fake.hears(Ack(9))
                assert sink.values == [*range(9), *range(4, 9)]

    asyncio.run(story())


def test_a_slow_store_stops_the_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "UNSTORED_MAX", 2000)

    async def story() -> None:
        sink = FakeSink(held=True)
        with FakeNode(tmp_path / "tty") as fake:
            async with running(fake.port, sink):
                await fake.hears(Nak(0))
                for seq in range(20):
                    records = array("I", range(seq * 50, seq * 50 + 50)).tobytes()
                    fake.frames.append(messages.encode(Data(0, 10, records), seq, seq * 1000))
                    fake.write(fake.frames[-1])
                    await sink.has(min(seq + 1, 10) * 50)  # past 2000 bytes on their way nothing more is read
                assert len(sink.values) < 1000
                sink.held = False
                sink.commit()
                await sink.has(1000)
                assert sink.values == list(range(1000))

    asyncio.run(story())
