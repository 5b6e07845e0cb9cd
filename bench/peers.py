"""The same outage, the same kill, for ours and for what people use today; one table.

    ./inv bench peers --args "--installed DIR"      DIR/tb: a venv with thingsboard-gateway; DIR/nodered: npm's node-red
    ./inv bench peers --args "--only octogate --seconds 30 --rate 300"

A producer makes numbered readings: over MQTT QoS 1 to a local broker that stays up (to the bridge itself where the peer is
one), over a serial line to ours. The peer sends them through a TCP proxy to a far broker, which stays up too. In the first
run the proxy cuts the link; in the second the peer is killed (SIGKILL, with its children) in the middle of the cut as
well, and started again at once. What is counted is what arrives at a subscriber of the far broker; for ours, what
`octogate-ingest` has in its table, because repeats are dropped there by their key. What a producer had no acknowledgement
for is sent again by it, so a repeat may be the producer's too: at QoS 1 a consumer sees it all the same.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import paho.mqtt.client as paho
import psutil
from paho.mqtt.enums import CallbackAPIVersion

from bench.outage import producer as serial_producer
from bench.peer_systems.systems import SYSTEMS, Place, System, mosquitto
from tests.integration.harness import ROOT, free_port, until
from tests.integration.proxy import Proxy

WARM_S, AFTER_S = 8.0, 5.0  # of readings before the cut, and after the link is back
QUIET_S, PATIENCE_S = 25.0, 200.0  # nothing new for so long: it is over; never longer than this
START_S = 40.0


@dataclass(frozen=True)
class Outcome:
    """One run of one system.

    Attributes:
        made: readings that the producer made.
        last_s: from the link's return to the last reading made before it; None when nothing of the outage came.
        cpu_s: of the peer, per 100,000 readings made; only where it was not killed.
        pss_mib: at the end.
    """

    system: str
    run: str
    made: int = 0
    lost: int = 0
    doubled: int = 0
    inverted: int = 0
    last_s: float | None = None
    cpu_s: float | None = None
    pss_mib: float | None = None
    note: str = ""


class Watch:
    """What arrives at the far broker: (time, number), in order of arrival."""

    def __init__(self, port: int, system: System) -> None:
        self.arrived: list[tuple[float, int]] = []
        self.ready = threading.Event()
        self._system = system
        self._client = paho.Client(CallbackAPIVersion.VERSION2)
        topics = [(topic, 1) for topic in (system.topic, system.asks) if topic]
        self._client.on_connect = lambda client, *_: client.subscribe(topics)
        self._client.on_subscribe = lambda *_: self.ready.set()
        self._client.on_message = self._message
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()

    def _message(self, _c: paho.Client, _u: object, message: paho.MQTTMessage) -> None:
        now = time.monotonic()
        if message.topic != self._system.topic:
            self._client.publish(*self._system.answer(message.topic), qos=1)
            return
        self.arrived += [(now, number) for number in self._system.read(bytes(message.payload))]

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


class Publisher(threading.Thread):
    """The producer over MQTT: numbers at a rate, QoS 1, so long as it is not stopped."""

    def __init__(self, port: int, rate: int) -> None:
        super().__init__(daemon=True)
        self.made = 0
        self.stopped = threading.Event()
        self._rate = rate
        self.client = paho.Client(CallbackAPIVersion.VERSION2, client_id="producer", clean_session=False)
        self.client.reconnect_delay_set(1, 1)
        self.client.max_queued_messages_set(0)
        self.client.connect_async("127.0.0.1", port)
        self.client.loop_start()

    def run(self) -> None:
        started, first_ms = time.monotonic(), time.time_ns() // 10**6
        while not self.stopped.wait(0.005):
            while self.made < (time.monotonic() - started) * self._rate:
                # times of their own: there are systems in which readings of one millisecond replace each other
                reading = {"n": self.made, "ts": first_ms + self.made * 1000 // self._rate}
                self.client.publish("r/in", json.dumps(reading), qos=1)
                self.made += 1


class Peer:
    """The system's process, with whatever it starts."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self._command, self._log = command, log
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, stdout=log, stderr=log, cwd=ROOT, start_new_session=True
            )

    async def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            os.killpg(self._process.pid, signal.SIGKILL)  # a session of its own: only what it started
            await self._process.wait()

    def used(self) -> tuple[float, float]:
        """CPU seconds so far and PSS in MiB."""
        assert self._process is not None
        tree = [psutil.Process(self._process.pid)]
        tree += tree[0].children(recursive=True)
        cpu = sum(sum(each.cpu_times()[:2]) for each in tree)
        return cpu, sum(each.memory_full_info().pss for each in tree) / 2**20


@asynccontextmanager
async def broker(folder: Path, port: int) -> AsyncIterator[None]:
    """A mosquitto that drops nothing and stays."""
    conf = folder / f"{port}.conf"
    conf.write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous true\nmax_queued_messages 0\nmax_inflight_messages 0\n"
    )
    process = Peer((mosquitto(), "-c", str(conf)), folder / f"{port}.log")
    await process.start()
    try:
        await until(lambda: _listens(port), "the broker listens")
        yield
    finally:
        await process.kill()


def _listens(port: int) -> bool:
    with contextlib.suppress(psutil.Error):
        return any(c.laddr and c.laddr.port == port and c.status == "LISTEN" for c in psutil.net_connections("tcp4"))
    return False


async def run(system: System, folder: Path, installed: Path, seconds: float, rate: int, killed: bool) -> Outcome:
    """One run in fresh processes and a fresh folder."""
    far, inlet = free_port(), free_port()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(broker(folder, far))
        if not (system.is_broker or system.serial):
            await stack.enter_async_context(broker(folder, inlet))
        link = await stack.enter_async_context(Proxy.open(far))
        watch = Watch(far, system)
        stack.callback(watch.close)
        await until(watch.ready.is_set, "the watch listens")
        place = Place(folder, inlet, link.port, folder / "tty", installed)
        peer = Peer(system.prepare(place), folder / "peer.log")
        stack.push_async_callback(peer.kill)
        await peer.start()
        if system.serial:
            ingest = (sys.executable, "-m", "sdk.ingest", "--port", str(far), "--db", str(folder / "consumer.db"))
            consumer = Peer(ingest, folder / "consumer.log")
            stack.push_async_callback(consumer.kill)
            await consumer.start()
            # it makes no more than this, and stops by itself
            await stack.enter_async_context(
                serial_producer(place.line, rate, int((WARM_S + seconds + AFTER_S) * rate) // 10 * 10)
            )
            publisher = None
        else:
            publisher = Publisher(inlet, rate)
            stack.callback(publisher.client.loop_stop)
            stack.callback(publisher.stopped.set)
            if not system.is_broker:
                await asyncio.sleep(_warm_up(system))  # what is published before it subscribes is not its
            publisher.start()
        return await _measure(system, folder, watch, peer, link, publisher, seconds, rate, killed)


def _warm_up(system: System) -> float:
    return 15.0 if system.name.startswith(("thingsboard", "node-red")) else 2.0


async def _measure(
    system: System, folder: Path, watch: Watch, peer: Peer, link: Proxy, publisher: Publisher | None,
    seconds: float, rate: int, killed: bool,
) -> Outcome:  # fmt: skip
    await until(lambda: bool(watch.arrived), "the first reading", START_S)
    cpu_before, _ = peer.used()
    counted_from = watch.arrived[-1][1]
    await asyncio.sleep(WARM_S)
    await link.cut()
    await asyncio.sleep(seconds / 2)
    if killed:
        await peer.kill()
        await peer.start()
    await asyncio.sleep(seconds / 2)
    await link.mend()
    back, at_return = time.monotonic(), publisher.made if publisher else 0
    await asyncio.sleep(AFTER_S)
    if publisher:
        publisher.stopped.set()
    seen, changed = len(watch.arrived), time.monotonic()
    while time.monotonic() - changed < QUIET_S and time.monotonic() - back < PATIENCE_S:
        await asyncio.sleep(0.1)
        if len(watch.arrived) != seen:
            seen, changed = len(watch.arrived), time.monotonic()
    cpu, pss = peer.used()
    arrived = list(watch.arrived)
    if publisher:
        made, numbers = publisher.made, [number for _, number in arrived]
        repeats = ""
    else:
        made, numbers = int((WARM_S + seconds + AFTER_S) * rate) // 10 * 10, _table(folder / "consumer.db")
        at_return = max(n for t, n in arrived if t < back + 0.001) + int(seconds * rate)  # made by then, about
        repeats = f"{len(arrived) - len({n for _, n in arrived})} repeats dropped by key"
    first: dict[int, float] = {}
    for t, number in arrived:
        first.setdefault(number, t)
    late = [t - back for number, t in first.items() if number < at_return and t > back]
    order = list(dict.fromkeys(numbers))
    highest, inverted = -1, 0
    for number in order:
        inverted += number < highest
        highest = max(highest, number)
    return Outcome(
        system.name,
        "outage + SIGKILL" if killed else "outage",
        made=made,
        lost=made - len(order),
        doubled=len(numbers) - len(order),
        inverted=inverted,
        last_s=round(max(late), 1) if late else None,
        cpu_s=None if killed else round((cpu - cpu_before) * 1e5 / (made - counted_from), 1),
        pss_mib=round(pss, 1),
        note=repeats,
    )


def _table(db: Path) -> list[int]:
    with contextlib.closing(sqlite3.connect(db)) as table:
        rows = table.execute(
            "SELECT r.value FROM reading r JOIN stream s ON s.id = r.stream WHERE s.stream = 'node/bench' ORDER BY r.seq"
        )
        return [int(json.loads(value)[0]) for (value,) in rows]


def table(outcomes: Sequence[Outcome]) -> str:
    """Markdown."""
    head = ("system", "run", "made", "lost", "doubled", "inverted", "last after return, s", "CPU s/1e5", "PSS MiB", "")
    rows = [tuple("" if cell is None else str(cell) for cell in asdict(each).values()) for each in outcomes]
    lines = ["| " + " | ".join(row) + " |" for row in (head, ("---",) * len(head), *rows)]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--installed", type=Path, default=Path("build/peers"), help="where peers are installed")
    parser.add_argument("--only", default="", help="systems whose name contains this")
    parser.add_argument("--seconds", type=float, default=60.0, help="of outage")
    parser.add_argument("--rate", type=int, default=200, help="readings/s")
    parser.add_argument("--json", action="store_true", help="one JSON line a run")
    args = parser.parse_args()
    outcomes = []
    for system in SYSTEMS:
        if args.only not in system.name:
            continue
        if missing := system.missing(args.installed.absolute()):
            outcomes.append(Outcome(system.name, "none", note=missing))
            continue
        for killed in (False, True):
            with tempfile.TemporaryDirectory(prefix="octopeers") as folder:
                one = run(system, Path(folder), args.installed.absolute(), args.seconds, args.rate, killed)
                try:
                    outcomes.append(asyncio.run(one))
                except AssertionError as error:  # it never got going
                    tail = Path(folder, "peer.log").read_text(errors="replace")[-300:]
                    outcomes.append(Outcome(system.name, "outage", note=f"{error}".splitlines()[0] + f" {tail!r}"))
            print(
                json.dumps(asdict(outcomes[-1])) if args.json else f"{system.name}: done", file=sys.stderr, flush=True
            )
    print(table(outcomes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
