"""Commands from a Sparkplug host and by the control socket, through the daemon, to the firmware in a real MicroPython."""

from __future__ import annotations

import asyncio
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from gateway.contract import SourceState
from gateway.errors import ControlError
from gateway.sync.sparkplug import Metric, encode
from sdk.client import over_socket
from tests.integration.harness import broker, config, daemon, free_port, node

UINT32 = 7


@pytest.mark.timeout(120)
def test_a_dcmd_and_a_control_command_reach_the_node(tmp_path: Path) -> None:
    async def scenario() -> None:
        port = free_port()
        with broker(port):
            async with node(tmp_path, rate=100), daemon(tmp_path, config(tmp_path, port)) as gateway:
                await gateway.until(
                    lambda s: s.uplink.state == "up" and s.sources[0].readings > 100 and s.sources[0].state == "ok",
                    "readings and the uplink",
                )
                host = mqtt.Client(CallbackAPIVersion.VERSION2)
                host.connect("127.0.0.1", port)
                topic = "spBv1.0/octogate/DCMD/test/press"
                for name, value in (("count/n", 3_000_000), ("count/n", 4_000_000)):
                    host.publish(topic, encode([Metric(UINT32, value, name, None, 1)], 1, None), qos=0)
                    host.loop_write()
                status = await gateway.until(
                    lambda s: sum(e.name == "command.done" for e in s.events) == 2, "both commands done"
                )
                done = [event.message for event in status.events if event.name == "command.done"]
                assert done == ["press: count/n = 4000000", "press: count/n = 3000000"]  # newest first
                await gateway.until(
                    lambda s: any(t.values.get("n", 0) > 4_000_000 for t in s.streams), "the node counts from there"
                )
                host.disconnect()
                async with over_socket(tmp_path / "data" / "control.sock") as local:
                    await local.write("press", "count/n", 9_000_000)
                    with pytest.raises(ControlError, match="no such command, only: count/n"):
                        await local.write("press", "count/x", 1)
                    with pytest.raises(ControlError, match="'dock' takes no commands"):
                        await local.write("dock", "count/x", 1)
                status = await gateway.until(
                    lambda s: any(t.values.get("n", 0) > 9_000_000 for t in s.streams), "the node counts from there"
                )
                assert status.sources[0].state is SourceState.OK

    asyncio.run(scenario())
