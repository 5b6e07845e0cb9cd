"""The live plane over a real client, packet by packet: what CONNECT, SUBSCRIBE and PUBLISH say on the wire."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.clock import Clock
from gateway.config import load
from gateway.contract import Event, Severity, SourceState, Stamp
from gateway.sync.sparkplug import UINT32, Metric, Value, encode
from gateway.sync.uplink import Uplink
from tests.unit.live_bench import REBIRTH
from tests.unit.samples import counted
from tests.unit.sparkplug_host import Told, told
from tests.unit.test_backlog import Disk
from tests.unit.wire_broker import Connect, Disconnect, Publish, WireBroker, wire_broker

CONFIG = """
[gateway]
id = "line-1"
data_dir = "."
[[source]]
kind = "node"
name = "press"
port = "tty"
[[rule]]
kind = "threshold"
name = "too-hot"
stream = "press/power"
channel = "half"
above = 4
[uplink]
host = "127.0.0.1"
port = {port}
backoff_max_s = 0.1
[uplink.live]
group = "Süd"
min_interval_ms = 50
{more}
"""
STATE = "spBv1.0/STATE/scada"


class Gateway:
    """An uplink on a broker that writes everything down."""

    def __init__(self, folder: Path, broker: WireBroker, more: str) -> None:
        path = folder / "gateway.toml"
        path.write_text(CONFIG.format(port=broker.port, more=more))
        self.broker = broker
        self.disk = Disk()
        self.written: list[tuple[str, str, Value]] = []
        config = load(path)
        self.uplink = Uplink(config, config.uplink[0], self.disk, self._write, lambda what, why: None, clock=Clock())

    def _write(self, device: str, metric: str, value: Value) -> None:
        self.written.append((device, metric, value))

    @property
    def told(self) -> list[Told]:
        return [told(p.topic, p.payload, p.qos, p.retain) for p in self.broker.published if p.topic.startswith("spB")]

    @property
    def kinds(self) -> list[str]:
        return [message.kind for message in self.told]


@asynccontextmanager
async def gateway(folder: Path, more: str = "") -> AsyncIterator[Gateway]:
    async with asyncio.timeout(20), wire_broker() as broker:
        made = Gateway(folder, broker, more)
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(made.uplink.run(), name="uplink")
            yield made
            running.cancel()


def state(online: bool, timestamp: int) -> bytes:
    return json.dumps({"online": online, "timestamp": timestamp}).encode()


@pytest.mark.tck(
    "tck-id-intro-device-id-string",
    "tck-id-intro-edge-node-id-string",
    "tck-id-intro-group-id-string",
    "tck-id-message-flow-edge-node-birth-publish-connect",
    "tck-id-message-flow-edge-node-birth-publish-will-message",
    "tck-id-message-flow-edge-node-birth-publish-will-message-qos",
    "tck-id-message-flow-edge-node-birth-publish-will-message-topic",
    "tck-id-message-flow-edge-node-birth-publish-will-message-will-retained",
    "tck-id-payloads-ndeath-will-message",
    "tck-id-payloads-ndeath-will-message-qos",
    "tck-id-payloads-ndeath-will-message-retain",
    "tck-id-principles-birth-certificates-order",
    "tck-id-principles-persistence-clean-session-311",
)
def test_connect_carries_the_will_and_birth_is_the_first_publish(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with gateway(tmp_path) as line:
            line.disk.commit(3)
            line.uplink.sample(counted("press/power", 0, 3))
            await line.broker.until(lambda: any(p.topic.startswith("octo/") for p in line.broker.published))
            connect = line.broker.heard[0]
            assert isinstance(connect, Connect)
            assert (connect.level, connect.clean) == (4, True)
            assert (connect.will_topic, connect.will_qos, connect.will_retain) == (
                "spBv1.0/Süd/NDEATH/line-1",
                1,
                False,
            )
            topics = [packet.topic for packet in line.broker.published]
            assert topics[:2] == ["spBv1.0/Süd/NBIRTH/line-1", "spBv1.0/Süd/DBIRTH/line-1/press"]
            assert line.broker.subscribed["spBv1.0/Süd/NCMD/line-1"] == 1
            will = told(connect.will_topic, connect.will_payload)
            assert will.values()["bdSeq"] == line.told[0].values()["bdSeq"] == 0

    asyncio.run(scenario())


@pytest.mark.tck(
    "tck-id-message-flow-device-birth-publish-dbirth-qos",
    "tck-id-message-flow-device-birth-publish-dbirth-retained",
    "tck-id-message-flow-edge-node-birth-publish-nbirth-qos",
    "tck-id-message-flow-edge-node-birth-publish-nbirth-retained",
    "tck-id-operational-behavior-edge-node-intentional-disconnect-packet",
    "tck-id-payloads-dbirth-qos",
    "tck-id-payloads-dbirth-retain",
    "tck-id-payloads-ddata-qos",
    "tck-id-payloads-ddata-retain",
    "tck-id-payloads-nbirth-qos",
    "tck-id-payloads-nbirth-retain",
    "tck-id-payloads-ndata-qos",
    "tck-id-payloads-ndata-retain",
    "tck-id-payloads-ndeath-will-message-publisher-disconnect-mqtt311",
    "tck-id-topics-dbirth-mqtt",
    "tck-id-topics-ddata-mqtt",
    "tck-id-topics-ddeath-mqtt",
    "tck-id-topics-nbirth-mqtt",
    "tck-id-topics-ndata-mqtt",
)
def test_everything_is_qos_0_and_not_retained_and_death_comes_before_disconnect(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with gateway(tmp_path) as line:
            line.uplink.sample(counted("press/power", 0, 3))
            await line.broker.until(lambda: "DBIRTH" in line.kinds)
            line.uplink.sample(counted("press/power", 3, 3))
            stamp = Stamp("b", 1, None, 0)
            line.uplink.event(Event("too-hot", "press", "raised", Severity.ALARM, stamp, ""))
            await line.broker.until(lambda: {"DDATA", "NDATA"} <= set(line.kinds))
            line.uplink.source("press", SourceState.LOST)
            await line.broker.until(lambda: "DDEATH" in line.kinds)
            line.uplink.leave()
        await asyncio.sleep(0)
        assert set(line.kinds) == {"NBIRTH", "DBIRTH", "NDATA", "DDATA", "DDEATH", "NDEATH"}
        assert {(message.qos, message.retain) for message in line.told} == {(0, False)}

    async def until_goodbye() -> None:
        async with asyncio.timeout(20), wire_broker() as broker:
            made = Gateway(tmp_path, broker, "")
            async with asyncio.TaskGroup() as tasks:
                running = tasks.create_task(made.uplink.run(), name="uplink")
                await broker.until(lambda: "NBIRTH" in made.kinds)
                made.uplink.leave()
                running.cancel()
            await broker.until(lambda: isinstance(broker.heard[-1], Disconnect))
            death = broker.heard[-2]
            assert isinstance(death, Publish) and death.topic == "spBv1.0/Süd/NDEATH/line-1"

    asyncio.run(scenario())
    asyncio.run(until_goodbye())


def test_commands_over_the_wire_are_obeyed_and_do_not_hang_the_client(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with gateway(tmp_path) as line:
            line.uplink.sample(counted("press/power", 0, 3))
            await line.broker.until(lambda: "DBIRTH" in line.kinds)
            line.broker.send("spBv1.0/Süd/NCMD/line-1", REBIRTH)
            await line.broker.until(lambda: line.kinds.count("NBIRTH") == 2)
            assert line.told[-1].seq in (0, 1)
            write = encode([Metric(UINT32, 9, "power/count")], 1, None)
            line.broker.send("spBv1.0/Süd/DCMD/line-1/press", write)
            line.broker.send("spBv1.0/Süd/NCMD/line-1", REBIRTH)
            await line.broker.until(lambda: line.kinds.count("NBIRTH") == 3)
            assert line.written == [("press", "power/count", 9)]

    asyncio.run(scenario())


def test_a_broken_connection_brings_the_next_bdseq(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with gateway(tmp_path) as line:
            for number in range(3):
                await line.broker.until(lambda number=number: line.kinds.count("NBIRTH") == number + 1)  # type: ignore[misc]
                line.broker.cut()
            wills = [told(c.will_topic, c.will_payload).values()["bdSeq"] for c in line.broker.connects[:3]]
            assert wills == [0, 1, 2]
            assert [m.values()["bdSeq"] for m in line.told if m.kind == "NBIRTH"][:3] == [0, 1, 2]

    asyncio.run(scenario())


@pytest.mark.tck("tck-id-payloads-ndeath-will-message-publisher")
def test_a_primary_host_that_goes_sends_the_edge_node_away_and_not_the_backlog(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with gateway(tmp_path, 'primary_host = "scada"') as line:
            broker = line.broker
            retained = {STATE: state(False, 1)}
            broker.on_subscribe = lambda topic: (topic, retained[topic]) if topic in retained else None
            line.uplink.sample(counted("press/power", 0, 3))
            line.disk.commit(3)
            await broker.until(lambda: STATE in broker.subscribed and len(broker.published) == 3)
            assert {packet.topic for packet in broker.published} == {
                "octo/v1/line-1/up/s"
            }  # the backlog waits for nobody
            assert [c.client_id for c in broker.connects] == ["octogate-line-1", "octogate-line-1-live"] or [
                c.client_id for c in broker.connects
            ] == ["octogate-line-1-live", "octogate-line-1"]
            wills = {c.client_id: c.will_topic for c in broker.connects}
            assert wills == {"octogate-line-1": "", "octogate-line-1-live": "spBv1.0/Süd/NDEATH/line-1"}
            status = line.uplink.status().live
            assert status is not None and (status.state, status.primary_host) == ("waiting", "scada")

    async def goes_and_comes() -> None:
        async with gateway(tmp_path / "", 'primary_host = "scada"') as line:
            broker = line.broker
            retained = {STATE: state(True, 10)}
            broker.on_subscribe = lambda topic: (topic, retained[topic]) if topic in retained else None
            # two connections are made side by side, either may be the first
            await broker.until(lambda: "NBIRTH" in line.kinds and len(broker.connects) == 2)
            retained[STATE] = state(False, 10)
            for writer in broker.clients("octogate-line-1-live"):
                broker.send(STATE, retained[STATE], to=writer)
            await broker.until(lambda: [c.client_id for c in broker.connects].count("octogate-line-1-live") == 2)
            assert line.kinds == ["NBIRTH", "NDEATH"]
            assert any(isinstance(packet, Disconnect) for packet in broker.heard)
            assert [c.client_id for c in broker.connects].count("octogate-line-1") == 1
            sent = len(broker.published)
            line.uplink.committed(line.disk.commit(1))
            await broker.until(lambda: len(broker.published) == sent + 1)  # the backlog goes on as if nothing were
            await broker.until(lambda: sum(s == STATE for s in broker.subscriptions) == 2)
            broker.send(STATE, state(True, 20), to=broker.clients("octogate-line-1-live")[-1])
            await broker.until(lambda: line.kinds == ["NBIRTH", "NDEATH", "NBIRTH"])
            assert line.told[-1].values()["bdSeq"] == (line.told[0].metric("bdSeq").value or 0) + 1  # type: ignore[operator]

    asyncio.run(scenario())
    asyncio.run(goes_and_comes())
