"""32 devices on one simulated bus, a third of them dead: the others keep their rate."""

from __future__ import annotations

import asyncio
from pathlib import Path

from gateway.acquire.modbus import ModbusSource
from gateway.acquire.modbus_map import load_map
from gateway.clock import Clock
from gateway.source_tables import ModbusDevice
from gateway.source_tables import ModbusSource as Table
from sdk.simulated_bus import SDM120, Bus, floats
from tests.unit.sinks import Collector

UNITS = range(1, 33)
DEAD = {unit for unit in UNITS if unit % 3 == 0}  # 10 of 32; with 32 itself a third of them
ALIVE = [unit for unit in UNITS if unit not in DEAD | {32}]
SPAN_S = 5.0
PERIOD_S = 1.0
TIMEOUT_S = 0.2  # each dead device asked once a period would take the bus for 2.2 s of each second


async def readings(sink: Collector) -> tuple[int, int]:
    """Within `SPAN_S`, by the readings' own times: those of all devices that are alive, and of the slowest."""
    since = Clock().mono_ns()
    await asyncio.sleep(SPAN_S)  # what is measured is a rate
    until = since + int(SPAN_S * 1e9)
    counts = [sum(since <= s.firsts[0] < until for s in sink.samples_of(f"bus/d{unit}")) for unit in ALIVE]
    return sum(counts), min(counts)


def test_a_third_dead_costs_the_others_less_than_a_tenth(tmp_path: Path) -> None:
    async def story() -> None:
        sink = Collector()
        devices = tuple(
            ModbusDevice(name=f"d{unit}", unit=unit, map="sdm120", period_s=PERIOD_S, timeout_s=TIMEOUT_S)
            for unit in UNITS
        )
        map = load_map("sdm120", tmp_path)
        source = ModbusSource(
            Table(name="bus", port=str(tmp_path / "tty"), baud=115200, device=devices), [map] * 32, Clock()
        )
        registers = floats(SDM120)
        async with Bus(tmp_path / "tty", {unit: registers for unit in UNITS}) as bus, sink.running(source, 55):
            await sink.until(lambda: all(sink.samples_of(f"bus/d{unit}") for unit in UNITS))
            all_alive, slowest = await readings(sink)
            bus.dead = DEAD | {32}
            await sink.until(lambda: len({e[3]["device"] for e in sink.events if e[0] == "device.silent"}) == 11)
            third_dead, slowest_then = await readings(sink)
            print(f"{len(ALIVE)} devices, {SPAN_S:g} s: {all_alive} readings with all alive, {third_dead} with 11 dead")
            assert third_dead >= 0.9 * all_alive
            assert slowest_then >= 0.9 * slowest - 1  # the edges of the span cut a reading off
            assert all_alive >= 0.8 * len(ALIVE) * SPAN_S / PERIOD_S

    asyncio.run(story())
