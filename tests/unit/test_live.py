"""The edge node's session: births, data, deaths, rebirths and commands, as a host is told them."""

from __future__ import annotations

import asyncio
import itertools
import time
from pathlib import Path

import pytest

from gateway.contract import SourceState
from gateway.sync import sparkplug
from tests.unit.live_bench import PRESS_BIRTH, Bench, alarm, assert_consecutive, played
from tests.unit.samples import counted


@pytest.mark.tck(
    "tck-id-message-flow-device-birth-publish-dbirth-match-edge-node-topic",
    "tck-id-message-flow-device-birth-publish-dbirth-payload",
    "tck-id-message-flow-device-birth-publish-dbirth-payload-seq",
    "tck-id-message-flow-device-birth-publish-dbirth-topic",
    "tck-id-message-flow-device-birth-publish-nbirth-wait",
    "tck-id-message-flow-edge-node-birth-publish-nbirth-payload",
    "tck-id-message-flow-edge-node-birth-publish-nbirth-payload-bdSeq",
    "tck-id-message-flow-edge-node-birth-publish-nbirth-payload-seq",
    "tck-id-message-flow-edge-node-birth-publish-nbirth-topic",
    "tck-id-operational-behavior-data-commands-rebirth-datatype",
    "tck-id-operational-behavior-data-commands-rebirth-name",
    "tck-id-operational-behavior-data-commands-rebirth-name-aliases",
    "tck-id-operational-behavior-data-commands-rebirth-value",
    "tck-id-payloads-alias-birth-requirement",
    "tck-id-payloads-alias-uniqueness",
    "tck-id-payloads-metric-datatype-req",
    "tck-id-payloads-name-birth-data-requirement",
    "tck-id-payloads-name-requirement",
    "tck-id-payloads-nbirth-bdseq",
    "tck-id-payloads-nbirth-rebirth-req",
    "tck-id-payloads-nbirth-seq",
    "tck-id-payloads-sequence-num-req-nbirth",
    "tck-id-topic-structure",
    "tck-id-topic-structure-namespace-a",
    "tck-id-topic-structure-namespace-device-id-associated-message-types",
    "tck-id-topic-structure-namespace-device-id-non-associated-message-types",
    "tck-id-topics-dbirth-metric-reqs",
    "tck-id-topics-dbirth-metrics",
    "tck-id-topics-dbirth-topic",
    "tck-id-topics-nbirth-bdseq-included",
    "tck-id-topics-nbirth-metric-reqs",
    "tck-id-topics-nbirth-metrics",
    "tck-id-topics-nbirth-rebirth-metric",
    "tck-id-topics-nbirth-seq-num",
    "tck-id-topics-nbirth-topic",
    "tck-id-operational-behavior-data-publish-dbirth",
    "tck-id-operational-behavior-data-publish-dbirth-values",
    "tck-id-operational-behavior-data-publish-nbirth",
    "tck-id-operational-behavior-data-publish-nbirth-values",
)
def test_a_birth_names_everything_that_will_ever_come(tmp_path: Path) -> None:
    async def scenario() -> None:
        bench = Bench(tmp_path)
        bench.press(0)
        bench.live.source("cam", SourceState.OK)
        bench.connect()
        node, *devices = bench.link.told
        assert [m.topic for m in bench.link.told] == [
            "spBv1.0/plant/NBIRTH/line-1",
            "spBv1.0/plant/DBIRTH/line-1/press",
            "spBv1.0/plant/DBIRTH/line-1/cam",
        ]
        assert [m.seq for m in bench.link.told] == [0, 1, 2]
        assert node.values() == {"bdSeq": 0, "Node Control/Rebirth": False, "Alarm/too-hot": False, "Clock/known": True}
        assert node.metric("bdSeq").datatype == sparkplug.INT64
        rebirth = node.metric("Node Control/Rebirth")
        assert (rebirth.datatype, rebirth.alias) == (sparkplug.BOOLEAN, None)
        press = devices[0]
        assert sorted(press.values()) == PRESS_BIRTH
        assert press.values()["power/count"] == 2 and press.values()["power/half"] == 1.0
        assert press.values()["Source/state"] == "ok"
        label = press.metric("inference/press-state/label")  # no window was judged yet
        assert label.null and label.value is None
        assert press.metric("power/half").properties == {"engUnit": (sparkplug.STRING, "A")}
        everything = [metric for message in bench.link.told for metric in message.metrics]
        assert all(metric.name and metric.datatype and metric.timestamp for metric in everything)
        aliases = [m.alias for m in everything if m.name not in ("bdSeq", "Node Control/Rebirth")]
        assert None not in aliases and len(set(aliases)) == len(aliases)

    played(scenario)


@pytest.mark.tck(
    "tck-id-payloads-alias-data-cmd-requirement",
    "tck-id-payloads-dbirth-seq",
    "tck-id-payloads-dbirth-seq-inc",
    "tck-id-payloads-ddata-seq",
    "tck-id-payloads-ddata-seq-inc",
    "tck-id-payloads-ndata-seq",
    "tck-id-payloads-ndata-seq-inc",
    "tck-id-payloads-sequence-num-always-included",
    "tck-id-payloads-sequence-num-incrementing",
    "tck-id-topics-dbirth-seq",
    "tck-id-topics-ddata-seq-num",
    "tck-id-topics-ddata-topic",
    "tck-id-topics-ndata-seq-num",
    "tck-id-topics-ndata-topic",
)
def test_seq_runs_over_all_messages_and_wraps_after_255(tmp_path: Path) -> None:
    async def scenario() -> None:
        bench = Bench(tmp_path)
        bench.born()
        bench.live.stop()
        bench.connect()
        for round_ in range(1, 150):
            count = len(bench.link.told)
            bench.press(3 * round_)
            bench.live.event(alarm("raised" if round_ % 2 else "cleared"))
            await bench.link.until(lambda count=count: len(bench.link.told) >= count + 2)  # type: ignore[misc]
        assert_consecutive(bench.link.told)
        assert len(bench.link.told) > 256 + 10
        data = [m for m in bench.link.told if m.kind in ("DDATA", "NDATA")]
        assert {m.topic for m in data} == {"spBv1.0/plant/DDATA/line-1/press", "spBv1.0/plant/NDATA/line-1"}
        # names only in births; the datatype is in data too, for npm's decoder
        assert all(not m.name and m.alias and m.datatype and m.timestamp for d in data for m in d.metrics)

    played(scenario)


@pytest.mark.tck(
    "tck-id-operational-behavior-data-publish-dbirth-change",
    "tck-id-operational-behavior-data-publish-nbirth-change",
    "tck-id-principles-rbe-recommended",
    "tck-id-topics-ddata-payload",
    "tck-id-topics-ndata-payload",
)
def test_only_what_changed_is_told(tmp_path: Path) -> None:
    async def scenario() -> None:
        bench = Bench(tmp_path)
        bench.press(0)
        bench.infer("idle")
        bench.connect()
        alias = {m.name: m.alias for message in bench.link.take() for m in message.metrics}
        bench.press(0)  # the same values once more
        bench.infer("idle")
        bench.live.event(alarm("cleared"))
        bench.live.source("press", SourceState.OK)
        bench.infer("running")  # the score stays
        await bench.link.until(lambda: "DDATA" in bench.link.kinds)
        bench.live.event(alarm("raised"))
        await bench.link.until(lambda: "NDATA" in bench.link.kinds)
        ddata, ndata = bench.link.told
        assert [(m.alias, m.value) for m in ddata.metrics] == [(alias["inference/press-state/label"], "running")]
        assert [(m.alias, m.value) for m in ndata.metrics] == [(alias["Alarm/too-hot"], True)]

    played(scenario)


def test_nothing_is_scheduled_while_nothing_happens_and_values_wait_for_their_interval(tmp_path: Path) -> None:
    async def scenario() -> None:
        bench = Bench(tmp_path, interval_s=0.3)
        bench.born()
        loop = asyncio.get_running_loop()
        assert bench.live._timer is None
        started = loop.time()
        bench.press(3)
        await bench.link.until(lambda: len(bench.link.told) == 1)
        assert loop.time() - started < 0.25  # the first change after a pause is told at once
        at = loop.time()
        for first in range(6, 60, 3):
            bench.press(first)
        await bench.link.until(lambda: len(bench.link.told) == 2)
        assert loop.time() - at > 0.25
        assert [m.value for m in bench.link.told[1].metrics] == [59, 29.5]  # the newest of many
        assert bench.live._timer is None

    played(scenario)


@pytest.mark.tck(
    "tck-id-payloads-dbirth-timestamp",
    "tck-id-payloads-ddata-timestamp",
    "tck-id-payloads-ddeath-timestamp",
    "tck-id-payloads-metric-timestamp-in-UTC",
    "tck-id-payloads-nbirth-timestamp",
    "tck-id-payloads-ndata-timestamp",
    "tck-id-payloads-timestamp-in-UTC",
    "tck-id-topics-dbirth-timestamp",
    "tck-id-topics-ddata-timestamp",
    "tck-id-topics-nbirth-timestamp",
    "tck-id-topics-ndata-timestamp",
    "tck-id-operational-behavior-data-publish-dbirth-order",
    "tck-id-operational-behavior-data-publish-nbirth-order",
)
def test_messages_say_when_they_were_sent_and_metrics_when_they_were_taken(tmp_path: Path) -> None:
    async def scenario() -> None:
        bench = Bench(tmp_path)
        before_ms = time.time_ns() // 1_000_000
        taken = time.monotonic_ns() - 5_000_000_000
        step = 5_000_000
        bench.live.sample(counted("press/power", taken // step - 2, 3))
        bench.infer("idle", taken - 1_000_000_000)
        will = bench.connect()
        bench.live.event(alarm("raised"))
        bench.infer("running", time.monotonic_ns())
        await bench.link.until(lambda: {"NDATA", "DDATA"} <= set(bench.link.kinds))
        bench.live.source("press", SourceState.LOST)
        after_ms = time.time_ns() // 1_000_000
        assert {"NBIRTH", "DBIRTH", "NDATA", "DDATA", "DDEATH"} == set(bench.link.kinds)
        for message in (will, *bench.link.told):
            assert message.timestamp is not None
            assert before_ms <= message.timestamp <= after_ms
            stamps = [metric.timestamp or 0 for metric in message.metrics]
            # two looks at the clocks round to milliseconds each by itself
            assert all(later >= earlier - 1 for earlier, later in itertools.pairwise(stamps))
        power = bench.link.told[1].metric("power/count")
        assert power.timestamp is not None
        assert abs(power.timestamp - (before_ms - 5000)) < 1000

    played(scenario)


@pytest.mark.tck(
    "tck-id-message-flow-edge-node-birth-publish-will-message-payload",
    "tck-id-message-flow-edge-node-birth-publish-will-message-payload-bdSeq",
    "tck-id-payloads-nbirth-bdseq-repeat",
    "tck-id-payloads-ndeath-bdseq",
    "tck-id-payloads-ndeath-seq",
    "tck-id-topics-nbirth-bdseq-increment",
    "tck-id-topics-nbirth-bdseq-matching",
    "tck-id-topics-ndeath-payload",
    "tck-id-topics-ndeath-seq",
    "tck-id-topics-ndeath-topic",
)
def test_each_connect_has_its_own_bdseq_even_across_restarts(tmp_path: Path) -> None:
    async def scenario() -> None:
        bench = Bench(tmp_path)
        for number in range(300):
            if number % 7 == 3:
                bench.restarted()
            if number % 5 == 0:
                bench.live.will()  # an attempt that found nobody sent no CONNECT
            will = bench.connect()
            assert (will.topic, will.seq) == ("spBv1.0/plant/NDEATH/line-1", None)
            assert will.values() == {"bdSeq": number % 256}
            (birth,) = bench.link.take()
            assert birth.values()["bdSeq"] == number % 256
            bench.live.stop()

    played(scenario)


@pytest.mark.parametrize("text", ["", "x", "999", "-4", "9" * 100])
def test_a_broken_bdseq_file_starts_at_zero_and_one_that_cannot_be_written_does_not_matter(
    tmp_path: Path, text: str
) -> None:
    async def scenario() -> None:
        (tmp_path / "bdseq").write_text(text)
        bench = Bench(tmp_path)
        assert bench.connect().values() == {"bdSeq": 0}
        (tmp_path / "bdseq").unlink()
        (tmp_path / "bdseq").mkdir()
        assert bench.connect().values() == {"bdSeq": 1}
        assert bench.connect().values() == {"bdSeq": 2}

    played(scenario)
