"""The fault campaign: the real parts under load, broken at random moments, and then every reading counted.

    ./inv bench campaign --args "--faults 200 --broker mosquitto"

A node (MicroPython, 500 readings/s, each its own number) -> the daemon -> a TCP proxy -> a broker without persistence ->
a TCP proxy -> `octogate-ingest` as a process. Faults: SIGKILL of gateway, broker and consumer; either link cut, stalled
or left half open; the node's line unplugged; the gateway's disk full (a file system of its own, filled to the last page
by somebody else; half the time the gateway is killed or ended and started meanwhile); the gateway's wall clock stepped by
up to twenty years either way (libfaketime; nobody else's clock). The next one often comes before the last one is healed.
Each kind comes once in every round of all kinds, in random order. At the end the consumer's table
must hold every reading once, in order, dated in order. The same seed gives the same faults.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path

from gateway.contract import SourceState
from gateway.errors import ControlError
from sdk.testing import MicroPythonNode
from tests.integration.harness import FIRMWARE, ROOT, Daemon, daemon, delivered_count, free_port, stored, until
from tests.integration.machine import SteppedClock, can_mount, filled, small_disk
from tests.integration.proxy import Proxy

STREAM = "press/count"
RATE = 500
NODE = {"node": "press", "stream": "count", "sensor": "counter", "rate": RATE, "frame": 10, "ring": 6000}
LASTS_S = (0.05, 1.5)  # a fault
BETWEEN_S = (0.0, 1.5)  # two faults
NOTICED_S = 4.0  # a full disk: what the spool can still use of its own file may last longer than that
YEARS = 20.0
DAY_NS = 86_400 * 10**9
DISK_MIB, SPOOL_MIB = 24, 12
KINDS = (
    "gateway_killed", "broker_killed", "consumer_killed", "link_cut", "link_stalled", "link_half_open", "node_unplugged",
    "disk_filled", "clock_stepped",
)  # fmt: skip
IOTCORE = (
    "import iotcore, signal, sys; iotcore.Broker(port=int(sys.argv[1]), listen='127.0.0.1').start(); signal.pause()"
)


@dataclass
class Verdict:
    """What the consumer's table says. Rows are readings.

    Attributes:
        stored: rows in the gateway's spool at the end.
        lost: numbers between 0 and the last one stored that are not in the table.
        doubled: rows whose number another row has too.
        inverted: neighbours by sequence whose monotonic time or number goes backwards.
        left_out: kinds of faults that this machine does not allow.
        intake_stopped: times that the full disk made the gateway stop its intake; else it lived on what its file had.
        given_up: times that the gateway ended by itself on the full disk, and was started again.
        clock_jumps: neighbours whose dates show that the gateway's clock stepped between them.
    """

    broker: str
    faults: dict[str, int]
    left_out: tuple[str, ...] = ()
    intake_stopped: int = 0
    given_up: int = 0
    clock_jumps: int = 0
    stored: int = 0
    rows: int = 0
    lost: int = 0
    doubled: int = 0
    inverted: int = 0
    seconds: float = 0.0
    reconnects: int = 0

    @property
    def clean(self) -> bool:
        return self.rows > 0 and not (self.lost or self.doubled or self.inverted)


class Process:
    """A program that can be killed and started again; it says itself when it is ready, by taking connections or not."""

    def __init__(self, log: Path, *command: str) -> None:
        self._command = command
        self._log = log
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(*self._command, stdout=log, stderr=log, cwd=ROOT)

    async def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGKILL)
            await self._process.wait()


def broker_command(kind: str, port: int, folder: Path) -> tuple[str, ...]:
    """mosquitto (nothing kept on disk, so that a kill takes all it had acknowledged) or iotcore."""
    if kind == "iotcore":
        return (sys.executable, "-c", IOTCORE, str(port))
    program = shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin")
    if program is None:
        raise FileNotFoundError("mosquitto is missing: ./inv test --integration installs or names it")
    conf = folder / "mosquitto.conf"
    conf.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\n")
    return (program, "-c", str(conf))


@dataclass
class Plant:
    """What runs, and what may break.

    Attributes:
        disk: the gateway's own file system; None where none can be mounted.
        clock: the gateway's.
    """

    node: MicroPythonNode
    gateway: Daemon
    broker: Process
    consumer: Process
    uplink: Proxy
    downlink: Proxy
    disk: Path | None
    clock: SteppedClock
    moments: random.Random
    seen: Counter[str] = field(default_factory=Counter)
    intake_stopped: int = 0
    given_up: int = 0
    _round: list[str] = field(default_factory=list)

    @property
    def left_out(self) -> tuple[str, ...]:
        missing = ("disk_filled",) if self.disk is None else ()
        return (*missing, "clock_stepped") if self.clock.env is None else missing

    async def some_time(self) -> None:
        await asyncio.sleep(self.moments.uniform(*LASTS_S))

    async def gateway_killed(self) -> None:
        await self.gateway.kill()
        self.clock.sweep()
        await self.gateway.start()

    async def gateway_ended(self) -> None:
        await self.gateway.end()
        await self.gateway.start()

    async def broker_killed(self) -> None:
        await self.broker.kill()
        await self.some_time()
        await self.broker.start()

    async def consumer_killed(self) -> None:
        await self.consumer.kill()
        await self.some_time()
        await self.consumer.start()

    async def link_cut(self) -> None:
        proxy = self._some_link()
        await proxy.cut()
        await self.some_time()
        await proxy.mend()

    async def link_stalled(self) -> None:
        proxy = self._some_link()
        proxy.stall()
        await self.some_time()
        await proxy.mend()

    async def link_half_open(self) -> None:
        proxy = self._some_link()
        proxy.half_open()
        await self.some_time()
        await proxy.mend()

    async def node_unplugged(self) -> None:
        self.node.unplug()
        await self.some_time()
        self.node.replug()

    async def disk_filled(self) -> None:
        assert self.disk is not None
        async with filled(self.disk):
            self.intake_stopped += await self._intake_stops()
            await self.moments.choice((self.some_time, self.some_time, self.gateway_killed, self.gateway_ended))()
            await self.some_time()
        await self._supervise()

    async def _supervise(self) -> None:
        """As systemd does: a gateway that gave up, because not a page was left to open its spool, is started again."""
        async with asyncio.timeout(NOTICED_S * 5):
            while True:
                assert self.gateway.process is not None
                if self.gateway.process.returncode is not None:
                    self.given_up += 1
                    await self.gateway.start()
                with contextlib.suppress(ControlError):
                    await self.gateway.status()
                    return
                await asyncio.sleep(0.02)

    async def _intake_stops(self) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(NOTICED_S):
                while True:
                    with contextlib.suppress(ControlError):
                        if (await self.gateway.status()).spool.state == "full":
                            return True
                    await asyncio.sleep(0.02)
        return False

    async def clock_stepped(self) -> None:
        """It stays wrong, until the next step."""
        self.clock.step(self.moments.uniform(-YEARS, YEARS))

    def _some_link(self) -> Proxy:
        return self.moments.choice((self.uplink, self.downlink))

    async def break_something(self) -> None:
        if not self._round:
            self._round = [kind for kind in KINDS if kind not in self.left_out]
            self.moments.shuffle(self._round)
        kind = self._round.pop()
        self.seen[kind] += 1
        await asyncio.sleep(self.moments.uniform(*BETWEEN_S))
        fault: Callable[[], Awaitable[None]] = getattr(self, kind)
        await fault()


@asynccontextmanager
async def plant(folder: Path, kind: str, protocol: str, moments: random.Random) -> AsyncIterator[Plant]:
    """Everything started."""
    port, db = free_port(), folder / "consumer.db"
    clock = SteppedClock(folder / "gateway.clock")
    async with AsyncExitStack() as stack:
        stack.callback(clock.sweep)
        broker = Process(folder / "broker.log", *broker_command(kind, port, folder))
        stack.push_async_callback(broker.kill)
        await broker.start()
        uplink = await stack.enter_async_context(Proxy.open(port))
        downlink = await stack.enter_async_context(Proxy.open(port))
        command = (sys.executable, "-m", "sdk.ingest", "--port", str(downlink.port), "--db", str(db))
        consumer = Process(folder / "consumer.log", *command)
        stack.push_async_callback(consumer.kill)
        await consumer.start()
        disk = stack.enter_context(small_disk(folder / "data", DISK_MIB)) if can_mount() else None
        config = (
            f'[gateway]\nid = "test"\ndata_dir = "data"\n[store]\nmax_mib = {SPOOL_MIB}\n'
            f'[[source]]\nkind = "node"\nname = "press"\nport = "{folder / "tty"}"\n'
            f'[uplink]\nhost = "127.0.0.1"\nport = {uplink.port}\nprotocol = "{protocol}"\n'
            f"backoff_max_s = 0.5\nkeepalive_s = 5\n[uplink.live]\n"
        )
        node = MicroPythonNode(FIRMWARE, folder / "node", folder / "tty", config=NODE, heap_kib=1024)
        press = await stack.enter_async_context(node)
        gateway = await stack.enter_async_context(daemon(folder, config, env=clock.env))
        yield Plant(press, gateway, broker, consumer, uplink, downlink, disk, clock, moments)


async def campaign(folder: Path, kind: str, faults: int, seed: int, protocol: str = "3.1.1") -> Verdict:
    """Break things `faults` times, heal all, and give the verdict.

    Raises:
        AssertionError: what is stored is not delivered in the end, or a part does not come back.
    """
    started, db = time.monotonic(), folder / "consumer.db"
    async with plant(folder, kind, protocol, random.Random(seed)) as all_parts:
        gateway = all_parts.gateway
        await gateway.until(lambda s: s.sources[0].readings > 0, "it streams")
        for done in range(faults):
            await all_parts.break_something()
            if sys.stderr.isatty():
                print(f"\r{done + 1} faults", end="", file=sys.stderr)
        await gateway.until(lambda s: s.sources[0].state is SourceState.OK, "the node is back")
        status = await gateway.until(lambda s: s.uplink.state == "up", "the uplink is back")
        await gateway.end()
        on_disk = stored(gateway.spool)[STREAM]
        await gateway.start()
        await until(lambda: _count(db) >= on_disk, f"all {on_disk} delivered")
    verdict = Verdict(
        kind, dict(all_parts.seen), all_parts.left_out, all_parts.intake_stopped, all_parts.given_up,
        stored=on_disk, reconnects=status.uplink.reconnects,
    )  # fmt: skip
    judge(db, verdict)
    verdict.seconds = round(time.monotonic() - started, 1)
    return verdict


def judge(db: Path, verdict: Verdict) -> None:
    """Count what the table holds; a reading's value is its number at the node."""
    with contextlib.closing(sqlite3.connect(db)) as table:
        rows = table.execute(
            "SELECT r.value, r.mono_ns, r.wall_ns FROM reading r JOIN stream s ON s.id = r.stream WHERE s.stream = ? ORDER BY r.seq",
            (STREAM,),
        ).fetchall()
    numbers = [int(json.loads(value)[0]) for value, _, _ in rows]
    verdict.rows = len(numbers)
    verdict.lost = len(set(range(verdict.stored)) - set(numbers))
    verdict.doubled = len(numbers) - len(set(numbers))
    times = [mono for _, mono, _ in rows]
    verdict.inverted = sum(b[0] < a[0] or b[1] < a[1] for a, b in pairwise(zip(numbers, times, strict=True)))
    offsets = [None if wall is None else wall - mono for _, mono, wall in rows]
    verdict.clock_jumps = sum(_jumped(a, b) for a, b in pairwise(offsets))


def _jumped(before: int | None, after: int | None) -> bool:
    """Whether the clock stepped between two readings, or became unknown because it stood before this software's time."""
    if before is None or after is None:
        return before is not after
    return abs(after - before) > DAY_NS


def _count(db: Path) -> int:
    with contextlib.suppress(sqlite3.Error):  # not made yet
        return delivered_count(db, STREAM)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--broker", choices=("mosquitto", "iotcore"), default="mosquitto")
    parser.add_argument("--protocol", choices=("3.1.1", "5"), default="3.1.1")
    parser.add_argument("--seed", type=int, default=20261123)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="octocampaign") as folder:
        verdict = asyncio.run(campaign(Path(folder), args.broker, args.faults, args.seed, args.protocol))
    print(json.dumps({**asdict(verdict), "clean": verdict.clean}))
    return 0 if verdict.clean else 1


if __name__ == "__main__":
    sys.exit(main())
