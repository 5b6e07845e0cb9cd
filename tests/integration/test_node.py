"""The project's firmware in a real MicroPython, on a line that is cut: nothing lost, nothing twice."""

from __future__ import annotations

import asyncio
import itertools
import struct
from array import array
from pathlib import Path

import pytest

from firmware_tools.wire import Wire
from gateway.acquire import node as acquire_node
from gateway.contract import SourceState
from gateway.errors import SourceError
from gateway.link.messages import Command, Hello, Nak, Reply, SayHello
from gateway.link.receiver import Receiver
from sdk.testing import MicroPythonNode
from tests.unit.fake_node import FakeSink, running
from tests.unit.held import held

FIRMWARE = Path(__file__).parents[2] / "firmware_tools" / "node_firmware"


@pytest.fixture(params=["micropython", "cpython"])
def cpython(request: pytest.FixtureRequest) -> bool:
    if request.param == "micropython":
        pytest.importorskip("micropython_unix", reason="no MicroPython wheel for this platform")
    return bool(request.param == "cpython")


def make(folder: Path, cpython: bool, **config: object) -> MicroPythonNode:
    return MicroPythonNode(FIRMWARE, folder / "node", folder / "tty", config=config, cpython=cpython)


@pytest.mark.parametrize(("rate", "frame"), [(250, 10), (500, 1)])
def test_five_seconds_with_an_unplug_lose_nothing(tmp_path: Path, cpython: bool, rate: int, frame: int) -> None:
    async def story() -> None:
        sink = FakeSink()
        async with make(tmp_path, cpython, rate=rate, frame=frame, ring=1000) as node:
            assert node.is_micropython is not cpython
            async with running(node.port, sink) as source:
                await sink.has(2 * rate)
                node.unplug()
                await sink.saw("source.lost", "raised")
                node.replug()
                await sink.has(5 * rate)
                status = source.status()
                assert (status.state, status.dropped, status.bad) == (SourceState.OK, 0, 0)
        assert sink.values == list(range(len(sink.values)))

    asyncio.run(story())


def test_a_hundred_replugs_lose_and_leak_nothing(
    tmp_path: Path, cpython: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acquire_node, "REOPEN_S", (0.01, 0.02))

    async def story() -> None:
        sink = FakeSink()
        async with make(tmp_path, cpython, rate=400, frame=4, ring=1000) as node:
            async with running(node.port, sink, patience_s=50) as source:
                await sink.has(40)
                before = held()
                for k in range(1, 101):
                    node.unplug()
                    await sink.saw("source.lost", "raised", times=k)
                    node.replug()
                    await sink.has(len(sink.values) + 8)
                assert held() == before
                status = source.status()
                assert (status.state, status.dropped) == (SourceState.OK, 0)
        assert sink.values == list(range(len(sink.values)))

    asyncio.run(story())


def test_times_advance_with_the_rate(tmp_path: Path, cpython: bool) -> None:
    async def story() -> None:
        sink = FakeSink()
        async with make(tmp_path, cpython, rate=200, frame=10) as node, running(node.port, sink) as source:
            await sink.has(200)
            span = sink.firsts[-1] - sink.firsts[0]
            assert abs(span - (len(sink.firsts) - 1) * 50_000_000) < 5_000_000
            assert source.clock_uncertainty_ns < 5_000_000

    asyncio.run(story())


def test_a_ring_that_runs_over_says_how_much(tmp_path: Path, cpython: bool) -> None:
    async def story() -> None:
        sink = FakeSink()
        async with make(tmp_path, cpython, rate=500, frame=5, ring=16) as node:
            async with running(node.port, sink):
                await sink.has(50)
                node.unplug()
                await sink.saw("source.lost", "raised")
                await asyncio.sleep(0.5)  # 250 readings; the ring takes 80
                node.replug()
                await sink.saw("source.overrun", "point")
                resumed = len(sink.values)
                await sink.has(resumed + 100)
            gap = next(k for k, (a, b) in enumerate(itertools.pairwise(sink.values)) if b != a + 1)
            missing = sink.values[gap + 1] - sink.values[gap] - 1
            [told] = [detail for name, _, detail in sink.events if name == "source.overrun"]
            assert told["readings"] == missing > 0
            rest = sink.values[gap + 1 :]
            assert rest == list(range(rest[0], rest[0] + len(rest)))

    asyncio.run(story())


def test_a_restarted_gateway_goes_on_where_the_disk_is(tmp_path: Path, cpython: bool) -> None:
    async def story() -> None:
        async with make(tmp_path, cpython, rate=400, frame=4) as node:
            first = FakeSink()
            async with running(node.port, first):
                await first.has(200)
            second = FakeSink()
            async with running(node.port, second, first.marks[-1]) as source:
                await second.has(200)
                assert source.status().dropped == 0
            values = first.values + second.values
            assert values == list(range(len(values)))

    asyncio.run(story())


def test_a_rebooted_node_is_another_session(tmp_path: Path, cpython: bool) -> None:
    async def story() -> None:
        sink = FakeSink()
        async with make(tmp_path, cpython, rate=400, frame=4) as node, running(node.port, sink):
            await sink.has(100)
            begin = asyncio.get_running_loop().time()
            await node.restart()
            await sink.saw("source.restarted", "point")
            before = len(sink.values)
            await sink.has(before + 100)
            assert asyncio.get_running_loop().time() - begin < 4  # its own HELLO, not silence, brought it back
            assert len({mark.session for mark in sink.marks}) == 2

    asyncio.run(story())


def test_a_command_sets_the_counter_and_is_answered(tmp_path: Path, cpython: bool) -> None:
    async def story() -> None:
        sink = FakeSink()
        async with make(tmp_path, cpython, rate=400, frame=4) as node, running(node.port, sink) as source:
            await sink.has(40)
            await source.write("power/n", 1_000_000)
            await sink.has(len(sink.values) + 40)
            assert 1_000_000 in sink.values and sink.values[-1] > 1_000_000
            with pytest.raises(SourceError, match=r"no such command, only: power/n"):
                await source.write("power/x", 1)
            with pytest.raises(SourceError, match="a whole number"):
                await source.write("power/n", "many")
            before = len(sink.values)
            await sink.has(before + 40)  # a refusal does not stop the node

    asyncio.run(story())


def test_a_line_that_is_said_again_is_obeyed_once_and_nonsense_is_answered(tmp_path: Path, cpython: bool) -> None:
    async def story() -> None:
        receiver = Receiver("m")
        values: list[int] = []
        replies: list[tuple[int, bytes]] = []
        async with make(tmp_path, cpython, rate=400, frame=4) as node, Wire(str(node.port)) as wire:

            async def until(readings: int, answers: int) -> None:
                async with asyncio.timeout(20):
                    while len(values) < readings or len(replies) < answers:
                        for sample in receiver.feed(await wire.some(5), 0):
                            values.extend(array("I", sample.data))
                        while receiver.messages:
                            match receiver.messages.popleft():
                                case Hello() as hello if hello.asked:
                                    receiver.start(hello, hello.oldest)
                                    await wire.write(Nak(hello.oldest).to_line())
                                case Reply() as reply:
                                    replies.append((reply.id, reply.json))

            await wire.write(SayHello().to_line())
            await until(20, 0)
            line = Command(77, b'{"set": "power/n", "value": 1000000}').to_line()
            for _ in range(3):
                await wire.write(line)
                await until(len(values) + 20, len(replies) + 1)
            assert replies == [(77, b"{}")] * 3 and values.count(1_000_000) == 1
            for number, text in enumerate((b"{", b"[]", b"1", b'{"set": 1}', b'{"set": [], "value": 0}', b"\xff"), 78):
                await wire.write(b"CMD %d %s\n" % (number, text))
                await until(0, len(replies) + 1)
                assert replies[-1][0] == number and replies[-1][1].startswith(b'{"error": ')
            await until(len(values) + 20, 0)  # it is well

    asyncio.run(story())


def test_recorded_readings_are_replayed_in_a_loop(tmp_path: Path, cpython: bool) -> None:
    shape = struct.pack("<6f", 0.5, 110, 0.75, 165, 1.0, 220)
    channels = [["i", "f", "A"], ["p", "f", "W"]]

    async def story() -> None:
        sink = FakeSink(raw=True)
        node = MicroPythonNode(
            FIRMWARE, tmp_path / "node", tmp_path / "tty", files={"shape.bin": shape}, cpython=cpython,
            config={"sensor": "replay", "file": "shape.bin", "channels": channels, "rate": 1000, "frame": 25},
        )  # fmt: skip
        async with node, running(node.port, sink):
            await sink.has(1000)
        got = bytes(sink.raw)
        assert got == (shape * (len(got) // len(shape) + 1))[: len(got)]
        assert sink.streams == {"m/power"}

    asyncio.run(story())


def test_a_broken_firmware_says_why(tmp_path: Path, cpython: bool) -> None:
    async def story() -> None:
        with pytest.raises(SourceError, match="sensor") as refused:
            async with make(tmp_path, cpython, sensor="psychic"):
                raise AssertionError("it started")
        assert "psychic" in str(refused.value)

    asyncio.run(story())
