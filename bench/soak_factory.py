"""The simulated factory of `bench.soak`: sensors that count, faults that come by a plan, and the account at the end.

    in life                                    source in the gateway
    10 readings/s of a press's current         node, the real MicroPython, windows to the model machine-state
    2 readings/s and a picture each 50 s       node with a serial camera, the real MicroPython
    6 meters, each every 5 s                   Modbus bus, pymodbus's own server behind a pseudo terminal
    a scale, a line each 10 s                  text, a pseudo terminal
    a picture each 50 s                        pictures replayed from a folder, to the model detect

    each press, camera unplugged               every hour
    bus and scale unplugged                    every hour
    one meter dead                             half of each hour
    broker away                                5 min of every 2 h
    the folder of pictures away                every 2 h
    the local page asked                       every 5 min

All of it is simulated but the programs: what is unplugged are pseudo terminals.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import sqlite3
import urllib.error
import urllib.request
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from gateway.contract import GatewayStatus
from sdk.cable import Cable
from sdk.ingest import Ingest
from sdk.simulated_bus import SDM120, Bus, floats
from sdk.testing import MicroPythonNode
from tests.integration.harness import FIRMWARE, MODELS, Daemon, broker, daemon, free_port, uplink
from tests.integration.proxy import Proxy

HOUR_S = 3600.0
METERS = range(1, 7)
DEAD = 3
AWAY_S = 1.0  # least time that something stays unplugged, real seconds: the gateway must notice it
PATIENCE_S = 120.0

NODE = """
import math
import struct
from octolink import Link

RATE, FRAME, CAMERA = {rate}, {frame}, {camera}
channels = [["n", "I", "1"], ["current", "f", "A"], ["power", "f", "W"]]
streams = [{{"id": 0, "name": "power", "channels": channels, "rate": RATE}}]
link = Link("{name}", streams, ring={ring}, slot=17 + 12 * FRAME, piece=4096, cameras=["top"] if CAMERA else [])
picture = open("picture.jpg", "rb").read() if CAMERA else b""
step = 1000000000 // int(RATE * 1000)
buf = bytearray(12 * FRAME)
n = 0
due = seen = link.clock.now()
while True:
    now = link.clock.now()
    if CAMERA and not link.sending and now - seen > 1000000 / CAMERA:
        seen = now
        link.picture(0, picture, now)
    if now < due:
        link.poll((due - now) // 1000)
        continue
    for i in range(FRAME):
        amps = 9.0 if n // 5000 % 2 else 0.1
        struct.pack_into("<Iff", buf, 12 * i, n, amps + math.sin(n) / 10, amps * 195)
        n += 1
    link.put(0, due, step, buf, FRAME)
    due += step * FRAME
"""

CONFIG = """
[gateway]
id = "soak"
data_dir = "data"
[store]
max_mib = 8
pictures_max_mib = 4
[trust]
keys = ["{keys}"]
[panel]
port = {panel}
{uplink}
[uplink.live]
[[source]]
kind = "node"
name = "press"
port = "{folder}/press"
[[source]]
kind = "node"
name = "arm"
port = "{folder}/arm"
[[source]]
kind = "text"
name = "scale"
port = "{folder}/scale"
[[source.line]]
stream = "weight"
pattern = "W={{weight:int kg}}"
[[source]]
kind = "pictures"
name = "dock"
folder = "{folder}/pictures"
fps = {fps}
[[model]]
name = "machine-state"
bundle = "{models}/machine_state/machine_state.octo"
[[model]]
name = "detect"
bundle = "{models}/detect/detect.octo"
deadline_ms = 20000
[[pipeline]]
name = "press-state"
source = "press"
stream = "power"
model = "machine-state"
window = 256
hop = 256
[[pipeline]]
name = "dock-objects"
source = "dock"
model = "detect"
[[pipeline]]
name = "arm-objects"
source = "arm"
stream = "top"
model = "detect"
[[rule]]
kind = "class"
name = "press-running"
pipeline = "press-state"
labels = ["running"]
[[rule]]
kind = "detection"
name = "cat"
pipeline = "dock-objects"
labels = ["cat"]
[[source]]
kind = "modbus"
name = "bus"
port = "{folder}/bus"
baud = 115200
"""
METER = '[[source.device]]\nname = "m{unit}"\nunit = {unit}\nmap = "sdm120"\nperiod_s = {period}\ntimeout_s = 0.1\n'


class Verdict(msgspec.Struct):
    """What arrived, and what is wrong with it."""

    counts: dict[str, int]
    faults: list[str]


class Scale:
    """Says a whole number every so often, into the air while it is unplugged."""

    def __init__(self, port: Path) -> None:
        self.cable = Cable(port)
        self.said = 0

    def say(self) -> None:
        if self.cable.plugged:
            self.cable.say(b"W=%d\r\n" % self.said)
            self.said += 1


@dataclass
class Parts:
    """What the plan plugs, unplugs and asks."""

    press: MicroPythonNode
    arm: MicroPythonNode
    bus: Bus
    scale: Scale
    link: Proxy
    pictures: Path
    panel: int

    def unplug_all(self) -> None:
        self.press.unplug()
        self.arm.unplug()
        self.bus.cable.unplug()


class Factory:
    """What runs.

    Attributes:
        daemon: the gateway.
        done: what the plan did, and how often.
    """

    def __init__(self, made: Daemon, db: Path, parts: Parts, tasks: asyncio.TaskGroup, speed: float) -> None:
        self.daemon = made
        self.done: dict[str, int] = {}
        self._db = db
        self._parts = parts
        self._day = tasks.create_task(day(Plan(speed, self.done), parts), name="the day")

    def stop(self) -> None:
        self._day.cancel()

    async def verdict(self) -> Verdict:
        """Stops the sensors, waits until the consumer has all of it, and counts."""
        self.stop()
        await asyncio.wait([self._day])
        self._parts.unplug_all()
        lost = ("press", "arm", "bus")
        await self.daemon.until(
            lambda s: all(source.state == "lost" for source in s.sources if source.name in lost), "all unplugged"
        )
        async with asyncio.timeout(PATIENCE_S):  # the last commits are still on their way
            while delivered_counts(self._db, taken := on_disk(status := await self.daemon.status())) != taken:
                await asyncio.sleep(0.2)
        wrong = [*counted(self._db, "press/power"), *counted(self._db, "arm/power"), *rising(self._db, "scale/weight")]
        sources = {source.name: source for source in status.sources}
        counts = {f"readings of {name}": n for name, n in taken.items()}
        counts["pictures of dock"] = sources["dock"].frames
        counts |= {f"inferences of {each.name}": each.inferences for each in status.pipelines}
        counts |= {f"times: {name}": n for name, n in self.done.items()}
        counts |= {"reconnects": status.uplink.reconnects, "rewinds": status.uplink.rewinds}
        counts["restarts of workers"] = sum(model.restarts for model in status.models)
        if code := await self.daemon.end():
            wrong.append(f"the gateway ended with status {code}")
        return Verdict(counts, wrong)


def on_disk(status: GatewayStatus) -> dict[str, int]:
    """Readings by stream."""
    return {stream.name: stream.next_seq for stream in status.streams if "/" in stream.name}


def delivered_counts(db: Path, streams: dict[str, int]) -> dict[str, int]:
    with contextlib.closing(sqlite3.connect(db)) as table:
        query = "SELECT s.stream, count(r.seq) FROM stream s JOIN reading r ON r.stream = s.id GROUP BY s.id"
        return {name: n for name, n in table.execute(query) if name in streams}


def counted(db: Path, stream: str) -> list[str]:
    """The first fault of a stream whose first channel counts 0, 1, 2, ..., in the order of its sequence."""
    for expected, (seq, value) in enumerate(_rows(db, stream)):
        if (seq, value) != (expected, expected):
            return [f"{stream}: number {seq} in place of {expected} holds {value:g}"]
    return []


def rising(db: Path, stream: str) -> list[str]:
    """The same of one that may miss what was said while it was unplugged."""
    for (seq, value), (after, then) in itertools.pairwise(_rows(db, stream)):
        if after != seq + 1 or then <= value:
            return [f"{stream}: number {after} holds {then:g} after {value:g}"]
    return []


def _rows(db: Path, stream: str) -> Iterator[tuple[int, float]]:
    query = "SELECT r.seq, r.value FROM reading r JOIN stream s ON s.id = r.stream WHERE s.stream = ? ORDER BY r.seq"
    with contextlib.closing(sqlite3.connect(db)) as table:
        for seq, value in table.execute(query, (stream,)):
            yield seq, json.loads(value)[0]


# --- the plan ------------------------------------------------------------------------------------------------------


class Plan:
    """The factory's day, `speed` times as fast."""

    def __init__(self, speed: float, done: dict[str, int]) -> None:
        self._speed = speed
        self._done = done

    async def every(self, life_s: float, what: Callable[[], Awaitable[None]], name: str) -> None:
        """Again and again, the first time after one pause."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            due = max(due + life_s / self._speed, loop.time())
            await asyncio.sleep(due - loop.time())
            await what()
            self.count(name)

    def count(self, name: str) -> None:
        self._done[name] = self._done.get(name, 0) + 1

    def away(
        self, go: Callable[[], object], back: Callable[[], object], life_s: float
    ) -> Callable[[], Awaitable[None]]:
        """Something that goes, and comes back after so long."""

        async def run() -> None:
            go()
            try:
                await asyncio.sleep(max(AWAY_S, life_s / self._speed))
            finally:
                back()

        return run

    def outage(self, link: Proxy, life_s: float) -> Callable[[], Awaitable[None]]:
        async def run() -> None:
            await link.cut()
            try:
                await asyncio.sleep(life_s / self._speed)
            finally:
                await link.mend()

        return run


async def day(plan: Plan, parts: Parts) -> None:
    """All that happens, until it is cancelled."""
    press, arm, bus, scale = parts.press, parts.arm, parts.bus, parts.scale
    pictures, hidden = parts.pictures, parts.pictures.with_name("hidden")
    address = f"http://127.0.0.1:{parts.panel}/api/status"

    def ask() -> None:
        try:
            with urllib.request.urlopen(address, timeout=30) as answer:
                json.load(answer)
        except urllib.error.HTTPError:  # 503: on a machine that is too busy the gateway's answer comes too late
            plan.count("page had no answer")

    async def speak() -> None:
        scale.say()

    jobs: list[tuple[str, float, Callable[[], Awaitable[None]]]] = [
        ("press unplugged", HOUR_S, plan.away(press.unplug, press.replug, 30)),
        ("camera's node unplugged", HOUR_S, plan.away(arm.unplug, arm.replug, 30)),
        ("bus unplugged", HOUR_S, plan.away(bus.cable.unplug, bus.cable.plug, 30)),
        ("scale unplugged", HOUR_S, plan.away(scale.cable.unplug, scale.cable.plug, 30)),
        ("meter dead", HOUR_S, plan.away(lambda: bus.dead.add(DEAD), bus.dead.clear, HOUR_S / 2)),
        ("broker away", 2 * HOUR_S, plan.outage(parts.link, 300)),
        (
            "pictures away",
            2 * HOUR_S,
            plan.away(lambda: pictures.rename(hidden), lambda: hidden.rename(pictures), 300),
        ),
        ("page asked", 300.0, lambda: asyncio.to_thread(ask)),
        ("lines said", 10.0, speak),
    ]
    async with asyncio.TaskGroup() as tasks:
        for name, life_s, what in jobs:
            tasks.create_task(plan.every(life_s, what, name), name=name)


@asynccontextmanager
async def factory(folder: Path, speed: float) -> AsyncIterator[Factory]:
    """Everything started; stopped in the opposite order."""
    pictures = folder / "pictures"
    pictures.mkdir()
    with zipfile.ZipFile(MODELS / "detect" / "detect.octo") as bundle:
        for name in ("1-astronaut", "2-chelsea"):
            (pictures / f"{name}.jpg").write_bytes(bundle.read(f"golden/{name}.jpg"))
    picture = (pictures / "2-chelsea.jpg").read_bytes()

    def node(name: str, rate: float, frame: int, camera: float) -> MicroPythonNode:
        ring = int(10 * rate / frame) + 10  # ten seconds: longer than the gateway's longest pause
        program = NODE.format(name=name, rate=rate, frame=frame, ring=ring, camera=camera)
        files = {"main.py": program.encode(), "picture.jpg": picture}
        return MicroPythonNode(FIRMWARE, folder / f"{name}-files", folder / name, files=files, heap_kib=1024)

    port, panel, db = free_port(), free_port(), folder / "consumer.db"
    meters = {unit: floats(SDM120) for unit in METERS}
    scale = Scale(folder / "scale")
    press, arm = node("press", 10 * speed, 25, 0), node("arm", 2 * speed, 5, speed / 50)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(scale.cable.close)
        stack.enter_context(broker(port))
        link = await stack.enter_async_context(Proxy.open(port))
        for each in (press, arm):
            await stack.enter_async_context(each)
        bus = await stack.enter_async_context(Bus(folder / "bus", meters))
        await stack.enter_async_context(Ingest.open(db, port=port))
        config = CONFIG.format(
            folder=folder, models=MODELS, keys=MODELS / "keys" / "octogate-models.pub.pem", fps=speed / 50,
            panel=panel, uplink=uplink(link.port),
        ) + "".join(METER.format(unit=unit, period=5 / speed) for unit in METERS)  # fmt: skip
        gateway = await stack.enter_async_context(daemon(folder, config))
        await gateway.until(lambda s: all(model.state == "ready" for model in s.models), "the models are ready")
        await gateway.until(
            lambda s: all(x.state == "ok" for x in s.sources if x.name != "scale"), "all but the scale speak"
        )
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        made = Factory(gateway, db, Parts(press, arm, bus, scale, link, pictures, panel), tasks, speed)
        stack.callback(made.stop)
        yield made
