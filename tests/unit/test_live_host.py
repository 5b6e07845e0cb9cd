"""The primary host's STATE, and what a host is told afterwards of an outage."""

from __future__ import annotations

import contextlib
import time
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.contract import SourceState
from gateway.sync import history
from gateway.sync.hoststate import MAX_STATE, PrimaryHost
from gateway.sync.mqtt import Message
from tests.unit.live_bench import HOST, REBIRTH, Bench, played
from tests.unit.samples import counted


@pytest.mark.tck(
    "tck-id-message-flow-edge-node-birth-publish-phid-wait",
    "tck-id-message-flow-edge-node-birth-publish-phid-wait-id",
    "tck-id-message-flow-edge-node-birth-publish-phid-wait-online",
    "tck-id-operational-behavior-edge-node-birth-sequence-wait",
    "tck-id-operational-behavior-primary-application-state-with-multiple-servers-state-subs",
)
def test_birth_waits_for_its_primary_host_and_no_other(tmp_path: Path) -> None:
    async def scenario() -> None:
        bench = Bench(tmp_path, primary_host="scada")
        bench.press(0)
        bench.connect()
        assert bench.link.subscribed[HOST] == 1
        assert bench.live.status().state == "waiting"
        bench.press(3)
        bench.ncmd(REBIRTH)
        assert not bench.host(True, 5, topic="spBv1.0/STATE/scada2")
        assert bench.host(False, 5)
        for payload in (b"", b"ONLINE", b'{"online": true}', b'{"online": 1, "timestamp": 9}', b"\xff", b"[" * 2000):
            assert bench.live.message(Message(HOST, payload, True))
        assert bench.link.told == []
        assert bench.host(True, 5)
        assert bench.link.kinds == ["NBIRTH", "DBIRTH"]
        assert bench.live.status().state == "born"
        bench.host(True, 6)
        assert len(bench.link.told) == 2  # once is enough

    played(scenario)


@pytest.mark.tck("tck-id-message-flow-edge-node-birth-publish-phid-wait-timestamp")
def test_an_older_online_does_not_count(tmp_path: Path) -> None:
    async def scenario() -> None:
        bench = Bench(tmp_path, primary_host="scada")
        bench.connect()
        bench.host(False, 1000)
        bench.host(True, 999)
        assert bench.link.told == []
        bench.host(True, 1000)
        assert bench.link.kinds == ["NBIRTH"]

    played(scenario)


@pytest.mark.tck(
    "tck-id-message-flow-edge-node-birth-publish-phid-offline",
    "tck-id-operational-behavior-edge-node-termination-host-offline",
    "tck-id-operational-behavior-edge-node-termination-host-offline-reconnect",
    "tck-id-operational-behavior-edge-node-termination-host-offline-timestamp",
    "tck-id-operational-behavior-primary-application-state-with-multiple-servers-walk",
)
def test_when_the_host_goes_the_node_dies_leaves_and_waits_anew(tmp_path: Path) -> None:
    async def scenario() -> None:
        bench = Bench(tmp_path, primary_host="scada")
        bench.press(0)
        bench.connect()
        bench.host(True, 1000)
        bench.link.take()
        bench.host(False, 999)  # the late death of an earlier session
        assert bench.link.told == [] and bench.link.reconnects == []
        bench.host(False, 1000)
        (death,) = bench.link.take()
        assert death.kind == "NDEATH" and death.values() == {"bdSeq": 0}
        assert len(bench.link.reconnects) == 1 and "scada" in bench.link.reconnects[0]
        bench.press(3)
        bench.live.stop()
        bench.connect()  # the retained word is still "offline"
        bench.host(False, 1000)
        bench.press(6)
        assert bench.link.told == [] and len(bench.link.reconnects) == 1
        bench.host(True, 2000)
        assert bench.link.kinds == ["NBIRTH", "DBIRTH"]
        assert bench.link.told[0].values()["bdSeq"] == 1
        assert bench.link.told[1].values()["power/count"] == 8

    played(scenario)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=12))
def test_the_newest_word_of_a_host_counts_in_whatever_order_it_arrives(words: list[tuple[bool, int]]) -> None:
    host, newest = PrimaryHost("scada"), -1
    for online, at in words:
        heard = host.hear(b'{"timestamp": %d, "online": %s}' % (at, b"true" if online else b"false"))
        assert heard == (at >= newest)
        newest = max(at, newest)
        if heard:
            assert host.online is online
    host.reset()
    assert not host.online and host.hear(b'{"online": true, "timestamp": 0}')


@given(st.binary(max_size=100))
def test_garbage_never_puts_a_host_online(data: bytes) -> None:
    host = PrimaryHost("scada")
    with contextlib.suppress(UnicodeDecodeError):
        if b"true" not in data:
            host.hear(data)
    assert not host.online
    assert not host.hear(b'{"online": true, "timestamp": 1, "more": "' + b"x" * MAX_STATE + b'"}')


def test_what_was_missed_follows_the_births_as_historical(tmp_path: Path) -> None:
    async def scenario() -> None:
        bench = Bench(tmp_path, flush=True, interval_s=0.1)
        step_ns = 5_000_000
        start = time.monotonic_ns() // step_ns - 400
        for first in range(0, 100, 2):  # a sample of two readings every 10 ms, for half a second
            bench.live.sample(counted("press/power", start + first, 2))
        bench.infer("idle", start * step_ns)
        bench.live.source("cam", SourceState.OK)
        bench.connect()
        assert bench.link.kinds == ["NBIRTH", "DBIRTH", "DBIRTH", "DDATA"]
        births, flushed = bench.link.told[:3], bench.link.told[3]
        assert not any(m.historical for message in births for m in message.metrics)
        assert all(m.historical and m.timestamp and m.datatype for m in flushed.metrics)
        names = {m.alias: m.name for message in births for m in message.metrics}
        counts = [m for m in flushed.metrics if names[m.alias] == "power/count"]
        assert [m.value for m in counts] == [start + first for first in (1, 21, 41, 61, 81)]  # one an interval
        stamps = [m.timestamp or 0 for m in counts]
        assert all(later - earlier in (99, 100, 101) for earlier, later in pairwise(stamps))
        assert [m.value for m in flushed.metrics if names[m.alias].endswith("label")] == ["idle"]
        bench.link.take()
        bench.ncmd(REBIRTH)
        assert bench.link.kinds == ["NBIRTH", "DBIRTH", "DBIRTH"]  # once is enough

    played(scenario)


def test_history_is_bounded_and_keeps_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "KEPT", 20)
    monkeypatch.setattr(history, "MESSAGE", 8)

    async def scenario() -> None:
        bench = Bench(tmp_path, flush=True, interval_s=0.001)
        for number in range(50):
            bench.live.sample(counted("press/power", number, 1))
        bench.connect()
        flushed = bench.link.told[2:]
        assert [message.kind for message in flushed] == ["DDATA"] * 3
        values = [m.value for message in flushed for m in message.metrics if m.datatype == 7]
        assert values == list(range(40, 50))  # half of 20: there are two devices
        # of a device that is dead when the node is born, it waits for the device
        bench.live.source("press", SourceState.LOST)
        bench.link.take()
        bench.live.stop()
        bench.live.sample(counted("press/power", 60, 1))
        bench.connect()
        assert bench.link.kinds == ["NBIRTH"]
        bench.live.source("press", SourceState.OK)
        await bench.link.until(lambda: "DDATA" in bench.link.kinds)
        assert bench.link.kinds == ["NBIRTH", "DBIRTH", "DDATA"]

    played(scenario)


def test_without_the_option_nothing_historical_is_sent(tmp_path: Path) -> None:
    async def scenario() -> None:
        bench = Bench(tmp_path)
        for number in range(10):
            bench.press(number)
        bench.connect()
        assert bench.link.kinds == ["NBIRTH", "DBIRTH"]

    played(scenario)
