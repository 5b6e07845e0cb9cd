"""The demo's meters, and what happens on the floor: a meter that falls silent, a node that is unplugged.

The bus is simulated and says so: two devices of pymodbus's own server behind a pseudo terminal. What they are asked with,
their map and the source that reads them are the gateway's own.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from sdk.simulated_bus import Bus, floats
from sdk.testing import MicroPythonNode

NAME = "meters"
UNITS = {"main": 1, "oven": 2}
WATTS = {1: 5200.0, 2: 1800.0}
UNPLUGGED = "oven"  # the one that dies
CHANGE_S = 0.5  # between two changes of what the meters show
FAULT_MAX_S = 6.0
FAULT_EVERY_S = 60.0  # when the demo has no end

# three of the registers of an Eastron SDM120: the whole map, sdm120, is more than the terminal has room for
MAP = """\
title = "the demo's meter"
manual = "as gateway/acquire/maps/sdm120.toml"

[[channel]]
name = "power"
at = 12
type = "f32"
unit = "W"

[[channel]]
name = "energy"
at = 72
type = "f32"
unit = "kW.h"
"""
SOURCE = """
# A simulated bus of two meters.
[[source]]
kind = "modbus"
name = "{name}"
port = "{port}"
baud = 115200
"""
DEVICE = """
[[source.device]]
name = "{name}"
unit = {unit}
map = "meter.toml"
period_s = 0.5
timeout_s = 0.15
"""

Say = Callable[[str], None]


def add_to_config(config: Path) -> None:
    """Append the bus to the demo's config; its map goes beside it."""
    config.with_name("meter.toml").write_text(MAP)
    devices = "".join(DEVICE.format(name=name, unit=unit) for name, unit in UNITS.items())
    port = config.with_name(NAME)
    with config.open("a") as file:
        file.write(SOURCE.format(name=NAME, port=port) + devices)


@asynccontextmanager
async def meters(folder: Path) -> AsyncIterator[Bus]:
    """The simulated bus, its meters counting."""
    shown = {unit: floats({12: watts, 72: 1000.0 * unit}) for unit, watts in WATTS.items()}
    async with Bus(folder / NAME, shown) as bus, asyncio.TaskGroup() as tasks:
        task = tasks.create_task(_count(bus), name="meters")
        try:
            yield bus
        finally:
            task.cancel()


async def _count(bus: Bus) -> None:
    kwh = {unit: 1000.0 * unit for unit in WATTS}
    for step in itertools.count():
        for unit, watts in WATTS.items():
            now = watts * (1 + 0.05 * math.sin(step / 7 + unit))
            kwh[unit] += now / 1000 * CHANGE_S / 3600
            bus.shows[unit] = floats({12: now, 72: kwh[unit]})
        await asyncio.sleep(CHANGE_S)


async def troubles(bus: Bus, node: MicroPythonNode, seconds: float | None, say: Say) -> None:
    """A meter falls silent and a node is unplugged, each comes back: once in a demo with an end, else every minute.

    Not during the broker's outage, so that each can be seen by itself.
    """
    whole = seconds or FAULT_EVERY_S
    between = 0.65 if seconds else 0.25  # an endless demo has its outage at the end of each minute
    length = min(FAULT_MAX_S, whole * 0.15)
    while True:
        await asyncio.sleep(whole * 0.1)
        say(f"the meter '{UNPLUGGED}' is dead")
        bus.dead.add(UNITS[UNPLUGGED])
        await asyncio.sleep(length)
        bus.dead.clear()
        say("running")
        await asyncio.sleep(whole * between - length)
        say("the node is unplugged")
        node.unplug()
        await asyncio.sleep(length)
        node.replug()
        say("running")
        if seconds is not None:
            return
        await asyncio.sleep(whole * (0.9 - between) - length)
