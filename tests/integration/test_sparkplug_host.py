"""A foreign host reads the edge node: names by alias, units, rebirth, deaths, primary host, what was missed."""

from __future__ import annotations

import asyncio
import math
import struct
import time
from array import array
from pathlib import Path

import pytest

from gateway.clock import Clock
from gateway.config import load
from gateway.contract import Channel, Sample, Schema, SourceState
from gateway.sync.uplink import Uplink
from sdk.ingest import Ingest
from tests.integration.foreign_host import ForeignHost, Line, foreign_host, values
from tests.integration.harness import broker, config, count, daemon, free_port, node, until
from tests.unit.test_backlog import Disk


def line_config(folder: Path, port: int, live: str = "") -> str:
    """The edge node plant/line-1."""
    more = f'[uplink.live]\ngroup = "plant"\nmin_interval_ms = 100\n{live}'
    return config(folder, port, more, gateway="line-1")


def has_counts(line: Line) -> bool:
    return any(metric["name"] == "count/n" for metric in line["metrics"])


def counted(line: Line) -> float:
    """The press's count; -1 where the line does not tell it."""
    return float(values(line).get("count/n", -1.0))


def assert_ordered(host: ForeignHost, since: int) -> None:
    """seq without a gap from each NBIRTH on, as a host checks it."""
    expected = None
    for line in host.lines[since:]:
        if line["kind"] == "NDEATH":
            assert line["seq"] is None
            expected = None
        elif line["kind"] == "NBIRTH":
            assert line["seq"] == 0
            expected = 1
        elif expected is not None:
            assert line["seq"] == expected, line
            expected = (expected + 1) % 256


@pytest.mark.timeout(400)  # the first run fetches the host's packages
@pytest.mark.tck(
    "tck-id-message-flow-edge-node-birth-publish-will-message",
    "tck-id-operational-behavior-data-commands-rebirth-action-2",
    "tck-id-operational-behavior-data-commands-rebirth-action-3",
    "tck-id-operational-behavior-device-ddeath",
    "tck-id-payloads-ndeath-bdseq",
    "tck-id-payloads-ndeath-will-message",
    "tck-id-topics-nbirth-bdseq-increment",
)
def test_a_foreign_host_follows_the_daemon_through_births_data_and_deaths(tmp_path: Path) -> None:
    async def scenario() -> None:
        port = free_port()
        with broker(port):
            async with foreign_host(port, "plant", "line-1") as host, node(tmp_path, rate=100) as press:
                async with daemon(tmp_path, line_config(tmp_path, port)) as gateway:
                    birth = await host.until("NBIRTH")
                    assert values(birth) == {"bdSeq": 0, "Node Control/Rebirth": False, "Clock/known": True}
                    device = await host.until("DBIRTH", "press", that=has_counts)
                    assert values(device)["Source/state"] == "ok"
                    counts = next(m for m in device["metrics"] if m["name"] == "count/n")
                    assert counts["type"] == "UInt32"
                    assert counts["properties"]["engUnit"] == {"type": "String", "value": "1"}
                    data = await host.until("DDATA", "press", that=has_counts)
                    assert not any(metric["named"] for metric in data["metrics"])
                    assert values(data)["count/n"] > values(device)["count/n"]
                    assert abs(data["timestamp"] - time.time() * 1000) < 60_000

                    at = host.mark()
                    host.ask("rebirth")
                    assert values(await host.until("NBIRTH", since=at))["bdSeq"] == 0
                    await host.until("DBIRTH", "press", since=at)

                    await host.until("DDATA", "press", that=lambda line: counted(line) > 500)
                    at = host.mark()
                    host.ask("write press count/n 7")  # the node counts on from there, and the host sees it
                    said = await gateway.until(lambda s: any(e.name == "command.done" for e in s.events), "the write")
                    assert "press: count/n = 7" in next(e for e in said.events if e.name == "command.done").message
                    written = await host.until("DDATA", "press", since=at, that=lambda line: 0 <= counted(line) < 500)
                    assert counted(written) >= 7
                    host.ask("write press count/none 7")
                    said = await gateway.until(lambda s: any(e.name == "command.refused" for e in s.events), "refusal")
                    assert "count/none" in next(e for e in said.events if e.name == "command.refused").message

                    at = host.mark()
                    press.unplug()
                    await host.until("DDEATH", "press", since=at)
                    press.replug()
                    await host.until("DBIRTH", "press", since=at)
                    await host.until("DDATA", "press", since=host.mark(), that=has_counts)

                    at = host.mark()
                    await gateway.kill()
                    assert values(await host.until("NDEATH", since=at)) == {"bdSeq": 0}
                    await gateway.start()
                    assert values(await host.until("NBIRTH", since=at))["bdSeq"] == 1
                    await host.until("DDATA", "press", since=at, that=has_counts)

                    at = host.mark()
                    assert await gateway.end() == 0
                    assert values(await host.until("NDEATH", since=at)) == {"bdSeq": 1}
                    assert host.kinds(at).count("NDEATH") == 1
                assert_ordered(host, 0)
                assert not any(line["retain"] for line in host.lines if line["kind"] != "ready")

    asyncio.run(scenario())


@pytest.mark.timeout(400)
@pytest.mark.tck(
    "tck-id-message-flow-edge-node-birth-publish-phid-offline",
    "tck-id-message-flow-edge-node-birth-publish-phid-wait",
    "tck-id-operational-behavior-edge-node-birth-sequence-wait",
    "tck-id-operational-behavior-edge-node-termination-host-offline",
)
def test_values_wait_for_the_primary_host_while_the_backlog_goes_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        port, db = free_port(), tmp_path / "consumer.db"
        live = 'primary_host = "scada"\nflush_historical = true'
        with broker(port):
            async with (
                foreign_host(port, "plant", "line-1") as host,
                Ingest.open(db, port=port),
                node(tmp_path, rate=100),
            ):
                async with daemon(tmp_path, line_config(tmp_path, port, live)) as gateway:
                    await until(lambda: count(db) > 0, "the backlog waits for no host")
                    first = count(db)  # the node's ring from before the daemon, in one piece
                    await until(lambda: count(db) > first + 100, "and goes on, a second of it")
                    status = await gateway.until(lambda s: s.uplink.live is not None, "its status")
                    assert status.uplink.live is not None and status.uplink.live.state == "waiting"
                    assert host.kinds() == ["ready"]

                    host.ask("online")
                    await host.until("DBIRTH", "press", that=has_counts)
                    missed = await host.until(
                        "DDATA", "press", that=lambda line: bool(line["metrics"][0].get("isHistorical"))
                    )
                    assert {m["name"] for m in missed["metrics"]} == {"count/n"}
                    numbers = [m["value"] for m in missed["metrics"]]
                    assert len(numbers) >= 5 and numbers == sorted(numbers)
                    await host.until("DDATA", "press", that=lambda line: not line["metrics"][0].get("isHistorical"))

                    at = host.mark()
                    host.ask("offline")
                    await host.until("NDEATH", since=at)
                    await gateway.until(
                        lambda s: s.uplink.live is not None and s.uplink.live.state == "waiting", "it waits again"
                    )
                    quiet, stored = host.mark(), count(db)
                    await until(lambda: count(db) > stored + 100, "the backlog goes on")
                    after = (await gateway.status()).uplink
                    assert (after.state, after.reconnects) == ("up", 0)
                    assert [kind for kind in host.kinds(quiet) if kind != "STATE"] == []
                    host.ask("online")
                    assert values(await host.until("NBIRTH", since=quiet))["bdSeq"] == 1
                    await host.until("DBIRTH", "press", since=quiet)

    asyncio.run(scenario())


@pytest.mark.timeout(400)
def test_a_camera_is_a_device_and_a_rule_a_metric_of_the_node(tmp_path: Path) -> None:
    async def scenario() -> None:
        port, folder = free_port(), tmp_path / "pictures"
        folder.mkdir()
        (folder / "a.jpg").write_bytes(b"looked at by nobody")
        more = f"""
[[source]]
kind = "pictures"
name = "cam"
folder = "{folder}"
fps = 20
[[rule]]
kind = "threshold"
name = "many"
stream = "press/count"
channel = "n"
above = 2000
"""  # some seconds after the birth, however slow the start is: before it, the birth would say it
        with broker(port):
            async with foreign_host(port, "plant", "line-1") as host, node(tmp_path, rate=200):
                async with daemon(tmp_path, line_config(tmp_path, port) + more):
                    alarm = await host.until("NDATA")
                    assert values(alarm) == {"Alarm/many": True}
                    assert values(await host.until("DBIRTH", "cam")) == {"Source/state": "ok"}
                    at = host.mark()
                    folder.rename(tmp_path / "gone")
                    await host.until("DDEATH", "cam", since=at)
                    (tmp_path / "gone").rename(folder)
                    await host.until("DBIRTH", "cam", since=at)
                    assert_ordered(host, 0)

    asyncio.run(scenario())


EVERY = "bBhHiIqQfd"


@pytest.mark.timeout(400)
@pytest.mark.tck("tck-id-payloads-metric-datatype-value", "tck-id-payloads-metric-datatype-req")
def test_every_datatype_is_read_as_it_was_meant_in_births_and_in_data(tmp_path: Path) -> None:
    schema = Schema(
        tuple(Channel(f"c_{code}" if code.islower() else f"u_{code.lower()}", code, "kW") for code in EVERY)
    )
    lowest = (-128, 0, -32768, 0, -(1 << 31), 0, -(1 << 52), 0, -1.5, -1e300)
    highest = (127, 255, 32767, 65535, (1 << 31) - 1, (1 << 31) - 1, 1 << 52, 1 << 52, 2.5, 1e300)
    # npm's decoder makes numbers of 64 bits inexact past 2^53, and a UInt32 past 2^31 negative
    names = [f"all/{channel.name}" for channel in schema.channels]

    def sample(numbers: tuple[float, ...]) -> Sample:
        at = array("q", [time.monotonic_ns()])
        return Sample("press/all", schema, at, array("q", [0]), array("H", [1]), struct.pack(schema.format, *numbers))

    async def scenario() -> None:
        port = free_port()
        path = tmp_path / "gateway.toml"
        path.write_text(line_config(tmp_path, port))
        (tmp_path / "data").mkdir()
        loaded = load(path)
        with broker(port):
            async with foreign_host(port, "plant", "line-1") as host, asyncio.TaskGroup() as tasks:
                uplink = Uplink(loaded, loaded.uplink[0], Disk(), lambda *_: None, lambda *_: None, clock=Clock())
                uplink.sample(sample(lowest))
                running = tasks.create_task(uplink.run(), name="uplink")
                birth = await host.until("DBIRTH", "press")
                assert [values(birth)[name] for name in names] == list(lowest)
                uplink.sample(sample(highest))
                data = await host.until("DDATA", "press")
                assert [values(data)[name] for name in names] == list(highest)
                units = [m["properties"]["engUnit"]["value"] for m in birth["metrics"] if m["name"] in names]
                assert units == ["kW"] * len(names)
                # a silent source: its values are told to be stale
                at = host.mark()
                uplink.source("press", SourceState.SILENT)
                stale = await host.until("DDATA", "press", since=at)
                quality = [m.get("properties", {}).get("Quality", {}).get("value") for m in stale["metrics"]]
                assert quality.count(500) == len(names)
                uplink.sample(sample((0, 0, 0, 0, 0, 0, 0, 0, math.inf, -0.0)))
                running.cancel()

    asyncio.run(scenario())
