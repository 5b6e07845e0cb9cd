"""Sources beside nodes in a real daemon: readings reach the spool, trouble reaches the status."""

from __future__ import annotations

import asyncio
from pathlib import Path

from gateway.contract import SourceState
from tests.integration.harness import daemon, stored
from tests.unit.modbus_bus import SDM120, Bus, floats

HEAD = '[gateway]\nid = "g"\ndata_dir = "data"\n'
MODBUS = """
[[source]]
kind = "modbus"
name = "bus"
port = "tty"
baud = 115200

[[source.device]]
name = "meter"
unit = 1
map = "sdm120"
period_s = 0.1

[[source.device]]
name = "dead"
unit = 2
map = "sdm120"
timeout_s = 0.1
period_s = 0.1
"""


def test_a_bus_with_a_dead_device(tmp_path: Path) -> None:
    async def story() -> None:
        meter = floats(SDM120)
        async with Bus(tmp_path / "tty", {1: meter, 2: meter}) as bus, daemon(tmp_path, HEAD + MODBUS) as made:
            bus.dead.add(2)
            status = await made.until(lambda s: any(e.name == "device.silent" for e in s.events), "a silent device")
            [source] = status.sources
            assert source.state is SourceState.OK and source.detail.endswith("not: dead")
            [stream] = [stream for stream in status.streams if stream.name == "bus/meter"]
            assert stream.values["power"] == 345.0 and stream.units["power"] == "W"
            bus.cable.unplug()
            await made.until(lambda s: s.sources[0].state is SourceState.LOST, "the adapter gone")
            bus.cable.plug()
            taken = (await made.until(lambda s: s.sources[0].state is SourceState.OK, "it is back")).sources[0].readings
            status = await made.until(lambda s: s.sources[0].readings > taken + 5, "more readings")
            assert await made.end() == 0
            assert stored(made.spool)["bus/meter"] >= status.sources[0].readings

    asyncio.run(story())
