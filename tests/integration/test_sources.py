"""Sources beside nodes in a real daemon: readings reach the spool, trouble reaches the status."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gateway.__main__ import main
from gateway.contract import SourceState
from sdk.simulated_bus import SDM120, Bus, floats
from tests.integration.harness import daemon, stored
from tests.unit.test_text import Sensor

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
            assert stream.values["power"] == 345.0 and stream.units["power"] == "W" and not stream.stale
            bus.cable.unplug()
            status = await made.until(lambda s: s.sources[0].state is SourceState.LOST, "the adapter gone")
            assert [s.stale for s in status.streams if s.name == "bus/meter"] == [True]
            bus.cable.plug()
            bus.dead.clear()
            await made.until(lambda s: [x.stale for x in s.streams if x.name == "bus/dead"] == [False], "it lives")
            bus.dead.add(2)
            await made.until(lambda s: [x.name for x in s.streams if x.stale] == ["bus/dead"], "a dead device's values")
            taken = (await made.until(lambda s: s.sources[0].state is SourceState.OK, "it is back")).sources[0].readings
            status = await made.until(lambda s: s.sources[0].readings > taken + 5, "more readings")
            assert await made.end() == 0
            on_disk = stored(made.spool)
            assert on_disk["bus/meter"] + on_disk["bus/dead"] >= status.sources[0].readings

    asyncio.run(story())


TEXT = """
[[source]]
kind = "text"
name = "scale"
port = "tty"
silent_s = 0

[[source.line]]
stream = "weight"
pattern = "W={weight:float kg}"

[[source.line]]
pattern = "#{code:text}"
"""


def test_a_scale_and_its_bad_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def story() -> None:
        sensor = Sensor(tmp_path / "tty")
        async with daemon(tmp_path, HEAD + TEXT) as made:
            await made.until(lambda s: s.sources[0].state is SourceState.OK, "an open port")
            sensor.say(b"\r\n")
            for n in range(50):
                sensor.say(b"W=%d.5\r\n" % n)
            sensor.say(b"W=5,5\r\n#4006381333931\r\n")
            status = await made.until(lambda s: s.sources[0].frames == 51, "51 lines")
            [source] = status.sources
            assert (source.readings, source.bad, source.state) == (50, 1, SourceState.OK)
            await made.until(lambda s: s.events[0].name == "text.read", "a barcode")
            assert await asyncio.to_thread(main, ["status", "--config", str(made.config)]) == 0
            assert "bad lines of scale\n  fits no pattern: 'W=5,5'" in capsys.readouterr().out
            assert await made.end() == 0
            assert stored(made.spool)["scale/weight"] == 50
        sensor.close()

    asyncio.run(story())
