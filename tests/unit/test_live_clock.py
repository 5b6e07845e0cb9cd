"""The live plane before the time of day is known, when it becomes known, and when it is set."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.clock import NOT_BEFORE_NS, UNDISCIPLINED_NS
from gateway.contract import SourceState
from tests.unit.live_bench import Bench, played
from tests.unit.spools import DAY, YEAR, Times

MS = 10**6
KNOWN = NOT_BEFORE_NS + 30 * DAY


def clock_bench(folder: Path, times: Times, *, flush: bool = False) -> Bench:
    return Bench(folder, flush=flush, clock=times.clock())


@pytest.mark.tck("tck-id-payloads-timestamp-in-UTC", "tck-id-payloads-metric-timestamp-in-UTC")
def test_timestamps_are_those_of_the_gateways_clock(tmp_path: Path) -> None:
    async def scenario() -> None:
        times = Times(wall=KNOWN)
        bench = clock_bench(tmp_path, times)
        sample = bench.press(0)
        bench.live.source("cam", SourceState.OK)
        will = bench.connect()
        node, press, _ = bench.link.told
        assert will.timestamp == node.timestamp == press.timestamp == KNOWN // MS
        assert node.metric("Clock/known").value is True
        read_ns = sample.firsts[-1] + sample.steps[-1] * (sample.counts[-1] - 1)
        assert press.metric("power/count").timestamp == max(0, read_ns + KNOWN - times.mono) // MS

    played(scenario)


def test_before_the_time_is_known_values_go_out_and_say_so(tmp_path: Path) -> None:
    """Sparkplug has no message without a timestamp: it is what the machine tells, never negative."""

    async def scenario() -> None:
        for wall, said in ((3600 * 10**9, 3_600_000), (-5 * YEAR, 0)):
            bench = clock_bench(tmp_path, Times(wall=wall, error=UNDISCIPLINED_NS))
            bench.press(0)
            bench.connect()
            node, press = bench.link.told
            assert node.metric("Clock/known").value is False
            assert node.timestamp == press.timestamp == said
            assert press.metric("power/count").value == 2

    played(scenario)


@pytest.mark.parametrize("wall", [KNOWN + 20 * YEAR, 5], ids=["set ahead", "becomes unknown"])
def test_when_the_clock_is_set_everything_is_told_anew_with_its_right_time(tmp_path: Path, wall: int) -> None:
    async def scenario() -> None:
        times = Times(wall=KNOWN)
        bench = clock_bench(tmp_path, times)
        will = bench.born()
        times.wall = wall
        bench.live.clock_turned()
        node, press, cam = bench.link.take()
        assert (node.kind, press.kind, cam.kind) == ("NBIRTH", "DBIRTH", "DBIRTH")
        assert [node.seq, press.seq, cam.seq] == [0, 1, 2]
        assert node.metric("bdSeq").value == will.metric("bdSeq").value  # the same session
        assert node.metric("Clock/known").value is (wall > NOT_BEFORE_NS)
        assert node.timestamp == press.timestamp == wall // MS

    played(scenario)


def test_a_node_that_is_not_born_has_nothing_to_say_of_its_clock(tmp_path: Path) -> None:
    async def scenario() -> None:
        bench = clock_bench(tmp_path, Times(wall=KNOWN))
        bench.live.clock_turned()
        bench.born()
        bench.live.stop()
        bench.live.clock_turned()
        assert bench.link.told == []

    played(scenario)


def test_what_was_missed_waits_until_it_can_be_dated(tmp_path: Path) -> None:
    """A historian would file it under 1970; newest values are replaced by the rebirth, history is not."""

    async def scenario() -> None:
        times = Times(wall=3600 * 10**9, error=UNDISCIPLINED_NS)
        bench = clock_bench(tmp_path, times, flush=True)
        for i in range(4):
            bench.press(10 * i)
        bench.connect()
        assert bench.link.kinds == ["NBIRTH", "DBIRTH"]
        bench.link.take()
        times.wall = KNOWN
        bench.live.clock_turned()
        node, press, *flushed = bench.link.take()
        assert (node.kind, press.kind) == ("NBIRTH", "DBIRTH")
        assert flushed and {m.kind for m in flushed} == {"DDATA"}
        metrics = [metric for message in flushed for metric in message.metrics]
        assert all(m.historical and m.timestamp is not None for m in metrics)
        bench.live.clock_turned()
        assert [m.kind for m in bench.link.take()] == ["NBIRTH", "DBIRTH"]  # once

    played(scenario)
