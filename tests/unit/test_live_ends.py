"""The edge node's rebirths, deaths and commands, as a host is told them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gateway.contract import SourceState
from gateway.sync import sparkplug
from gateway.sync.mqtt import Message
from gateway.sync.sparkplug import Metric, encode
from tests.unit.live_bench import PRESS_BIRTH, REBIRTH, Bench, alarm, assert_consecutive, played
from tests.unit.samples import counted


@pytest.mark.tck(
    "tck-id-operational-behavior-data-commands-rebirth-action-1",
    "tck-id-operational-behavior-data-commands-rebirth-action-2",
    "tck-id-operational-behavior-data-commands-rebirth-action-3",
    "tck-id-payloads-dbirth-order",
    "tck-id-payloads-ddata-order",
    "tck-id-payloads-ndata-order",
)
def test_a_rebirth_is_a_whole_birth_with_the_same_bdseq_before_any_data(tmp_path: Path) -> None:
    async def scenario() -> None:
        bench = Bench(tmp_path)
        bench.connect()
        bench.live.stop()
        bench.born()
        bench.press(3)  # its data is due
        bench.live.event(alarm("raised"))
        assert bench.ncmd(REBIRTH)
        assert bench.link.kinds == ["NBIRTH", "DBIRTH", "DBIRTH"]
        node, press, _ = bench.link.told
        assert node.values() == {"bdSeq": 1, "Node Control/Rebirth": False, "Alarm/too-hot": True, "Clock/known": True}
        assert press.values()["power/count"] == 5
        await asyncio.sleep(0.05)
        assert bench.link.kinds == ["NBIRTH", "DBIRTH", "DBIRTH"]  # what was due stands in the birth
        bench.press(6)
        await bench.link.until(lambda: len(bench.link.told) == 4)
        assert_consecutive(bench.link.told)

    played(scenario)


def test_what_is_no_rebirth_makes_none(tmp_path: Path) -> None:
    async def scenario() -> None:
        bench = Bench(tmp_path)
        assert bench.ncmd(REBIRTH)  # before the birth
        bench.born()
        assert bench.ncmd(encode([Metric(sparkplug.BOOLEAN, False, "Node Control/Rebirth")], 1, None))
        assert bench.ncmd(encode([Metric(sparkplug.STRING, "true", "Node Control/Rebirth")], 1, None))
        assert bench.dcmd("press", Metric(sparkplug.BOOLEAN, True, "Node Control/Rebirth"))
        assert bench.ncmd(REBIRTH, retain=True)
        assert bench.ncmd(b"\xff\xff\xff")
        assert not bench.live.message(Message("octo/v1/line-1/ack", b"{}"))
        assert bench.link.told == []
        assert [what.rpartition(" ")[2] for what, _ in bench.refused] == [
            "Control/Rebirth",
            "spBv1.0/plant/NCMD/line-1",
            "spBv1.0/plant/NCMD/line-1",
        ]

    played(scenario)


@pytest.mark.tck(
    "tck-id-operational-behavior-device-ddeath",
    "tck-id-payloads-ddeath-seq",
    "tck-id-payloads-ddeath-seq-inc",
    "tck-id-payloads-ddeath-seq-number",
    "tck-id-topics-ddeath-seq-num",
    "tck-id-topics-ddeath-topic",
)
@pytest.mark.parametrize("state", [SourceState.LOST, SourceState.FAILING])
def test_a_lost_source_dies_and_is_born_again_when_it_is_back(tmp_path: Path, state: SourceState) -> None:
    async def scenario() -> None:
        bench = Bench(tmp_path)
        bench.press(0)
        bench.connect()
        bench.press(3)
        bench.live.source("press", state)
        bench.live.source("press", SourceState.LOST)
        assert bench.live.status().devices == 0
        bench.live.event(alarm("raised"))
        await bench.link.until(lambda: "NDATA" in bench.link.kinds)
        assert bench.link.kinds == ["NBIRTH", "DBIRTH", "DDEATH", "NDATA"]  # no data of a dead device
        assert bench.link.told[2].topic == "spBv1.0/plant/DDEATH/line-1/press"
        assert bench.link.told[2].metrics == []
        bench.ncmd(REBIRTH)
        assert bench.link.kinds[4:] == ["NBIRTH"]
        bench.live.source("press", SourceState.OK)
        bench.press(6)
        await bench.link.until(lambda: "DBIRTH" in bench.link.kinds[5:])
        assert bench.link.told[-1].values()["power/count"] == 8
        assert bench.live.status().devices == 1
        assert_consecutive(bench.link.told)

    played(scenario)


def test_a_silent_source_stays_born_with_stale_values(tmp_path: Path) -> None:
    async def scenario() -> None:
        bench = Bench(tmp_path)
        bench.born()
        bench.live.source("press", SourceState.SILENT)
        await bench.link.until(lambda: len(bench.link.told) == 1)
        (stale,) = bench.link.take()
        assert stale.kind == "DDATA"
        qualities = [m.properties.get("Quality") for m in stale.metrics]
        assert sorted(qualities, key=str) == [(3, 500)] * 4 + [None]
        assert [m.value for m in stale.metrics if not m.properties] == ["silent"]
        bench.ncmd(REBIRTH)
        assert bench.link.take()[1].metric("power/count").properties["Quality"] == (3, 500)
        bench.live.source("press", SourceState.OK)
        bench.press(3)
        await bench.link.until(lambda: len(bench.link.told) == 1)
        assert [m.properties.get("Quality") for m in bench.link.told[0].metrics].count((3, 192)) == 4

    played(scenario)


def test_of_a_source_with_one_dead_device_only_its_values_are_stale(tmp_path: Path) -> None:
    async def scenario() -> None:
        bench = Bench(tmp_path)
        bench.born()
        for state, stale in ((SourceState.OK, ["press/other"]), (SourceState.OK, ["press/power"])):
            bench.live.source("press", state, stale)
        await bench.link.until(lambda: len(bench.link.told) == 1)
        (told,) = bench.link.take()
        assert told.kind == "DDATA" and [m.properties.get("Quality") for m in told.metrics] == [(3, 500)] * 2
        bench.ncmd(REBIRTH)
        birth = bench.link.take()[1]
        assert birth.metric("power/count").properties["Quality"] == (3, 500)
        assert "Quality" not in birth.metric("Source/state").properties
        bench.live.source("press", SourceState.OK)
        await bench.link.until(lambda: len(bench.link.told) == 1)
        assert [m.properties.get("Quality") for m in bench.link.told[0].metrics] == [(3, 192)] * 2

    played(scenario)


def test_a_stream_that_is_new_or_has_other_channels_brings_a_new_birth_of_its_device(tmp_path: Path) -> None:
    async def scenario() -> None:
        bench = Bench(tmp_path)
        bench.born()
        bench.live.sample(counted("press/other", 0, 1))
        bench.press(3)
        await bench.link.until(lambda: len(bench.link.told) == 1)
        (birth,) = bench.link.told
        assert birth.kind == "DBIRTH"
        assert sorted(birth.values()) == sorted([*PRESS_BIRTH, "other/count", "other/half"])

    played(scenario)


@pytest.mark.tck(
    "tck-id-operational-behavior-edge-node-intentional-disconnect-ndeath",
    "tck-id-payloads-ndeath-will-message-publisher",
)
def test_an_intended_end_is_said_and_nothing_after_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        bench = Bench(tmp_path)
        will = bench.born()
        bench.press(3)
        bench.live.leave()
        bench.press(6)
        bench.live.source("press", SourceState.LOST)
        bench.ncmd(REBIRTH)
        await asyncio.sleep(0.05)
        (death,) = bench.link.told
        assert (death.topic, death.seq, death.values()) == (will.topic, None, will.values())
        bench.live.leave()
        assert len(bench.link.told) == 1

    played(scenario)


@pytest.mark.tck("tck-id-message-flow-device-dcmd-subscribe", "tck-id-message-flow-edge-node-ncmd-subscribe")
def test_commands_are_subscribed_at_qos_1_before_the_birth(tmp_path: Path) -> None:
    async def scenario() -> None:
        bench = Bench(tmp_path)
        bench.connect()
        assert bench.link.subscribed == {
            "spBv1.0/plant/NCMD/line-1": 1,
            "spBv1.0/plant/DCMD/line-1/press": 1,
            "spBv1.0/plant/DCMD/line-1/cam": 1,
        }

    played(scenario)


def test_a_write_is_passed_on_by_name_or_alias_and_only_if_it_fits(tmp_path: Path) -> None:
    async def scenario() -> None:
        bench = Bench(tmp_path)
        bench.press(0)
        bench.connect()
        alias = bench.link.told[1].metric("power/half").alias
        assert bench.dcmd(
            "press",
            Metric(sparkplug.UINT32, 7, "power/count"),
            Metric(sparkplug.FLOAT, 0.5, alias=alias),
            Metric(sparkplug.STRING, "7", "power/count"),
            Metric(sparkplug.UINT32, 7, "power/none"),
            Metric(sparkplug.UINT32, 7, alias=999),
        )
        assert bench.ncmd(encode([Metric(sparkplug.BOOLEAN, True, "Alarm/too-hot")], 1, None))
        assert bench.written == [("press", "power/count", 7), ("press", "power/half", 0.5)]
        assert [what for what, _ in bench.refused] == [
            "press: power/count",
            "press: power/none",
            "press: alias 999",
            "line-1: Alarm/too-hot",
        ]
        assert bench.link.kinds == ["NBIRTH", "DBIRTH"]

    played(scenario)
