"""A 60 s outage at 200 readings/s: how soon the gateway is back, what comes first, and when everything is in.

    ./inv bench outage                              [uplink] backoff_max_s = 1, mosquitto
    ./inv bench outage --args "--seconds 10 --rounds 3 --json"

The daemon takes its readings from a node on a tty; the link to the broker is a TCP proxy that refuses connections during
the outage. A second client sits at the broker itself, on the other side, and takes the times of what arrives there:
from the moment the link is back to the CONNECT (the Sparkplug birth), to the first live value, to the last reading of the
backlog at the broker, and to its commit in the consumer's table (octogate-ingest, as a process).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import struct
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from bench.campaign import Process, broker_command
from gateway.store.columns import Codec
from tests.integration.harness import Daemon, daemon, delivered_count, free_port, until
from tests.integration.proxy import Proxy

STREAM = "node/bench"
PATIENCE_S = 120.0  # a large backlog takes its time
NUMBER = struct.Struct("<Id")


@dataclass(frozen=True)
class Outcome:
    """Seconds, from the link's return.

    Attributes:
        backlog: readings stored while the link was away.
        reconnected_s: the gateway's birth has arrived at the broker's other side.
        live_s: so has the first live value.
        in_s: so has the last reading that waited; `after_s` is the same from the reconnection.
        committed_s: it is in the consumer's table.
        lost, inverted: of all readings at the broker's other side, repeats aside.
    """

    backlog: int
    reconnected_s: float
    live_s: float
    in_s: float
    after_s: float
    committed_s: float
    lost: int
    inverted: int


class Watch:
    """A subscriber that notes when what arrived."""

    def __init__(self, port: int) -> None:
        self.births: list[float] = []
        self.live: list[float] = []
        self.readings: list[tuple[float, list[int]]] = []
        self.listening = False
        self._codec = Codec()
        self._client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv311)
        self._client.on_connect = lambda client, *_: client.subscribe([("octo/v1/+/up/#", 1), ("spBv1.0/#", 0)])
        self._client.on_subscribe = lambda *_: self._listens()
        self._client.on_message = self._arrived
        self._client.connect_async("127.0.0.1", port)
        self._client.reconnect_delay_set(1, 1)
        self._client.loop_start()

    def _listens(self) -> None:
        self.listening = True

    def _arrived(self, _c: paho.Client, _u: object, message: paho.MQTTMessage) -> None:
        now = time.monotonic()
        if "/NBIRTH/" in message.topic:
            self.births.append(now)
        elif "/DBIRTH/" in message.topic or "/DDATA/" in message.topic:
            self.live.append(now)
        elif message.topic.endswith(STREAM):
            data = self._codec.decode_samples(bytes(message.payload))[1].data
            self.readings.append((now, [number for number, _ in NUMBER.iter_unpack(data)]))

    @property
    def highest(self) -> int:
        return max((numbers[-1] for _, numbers in self.readings), default=-1)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@asynccontextmanager
async def producer(link: Path, rate: int, count: int) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.producer", str(link), "--frame", "10", "--count", str(count)),
        *("--rate", str(rate), "--fields", "Id"),
        stdout=asyncio.subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def run(folder: Path, seconds: float, rate: int, kind: str, kib_s: float) -> Outcome:
    port, db = free_port(), folder / "consumer.db"
    broker = Process(folder / "broker.log", *broker_command(kind, port, folder))
    consumer = Process(
        folder / "consumer.log", sys.executable, "-m", "sdk.ingest", "--port", str(port), "--db", str(db)
    )
    await broker.start()
    await consumer.start()
    watch = Watch(port)
    try:
        await until(lambda: watch.listening, "the watch listens")
        async with Proxy.open(port) as link, producer(folder / "tty", rate, int(rate * (seconds + 30))):
            config = (
                f'[gateway]\nid = "bench"\ndata_dir = "data"\n'
                f'[[source]]\nkind = "node"\nname = "node"\nport = "{folder / "tty"}"\n'
                f'[uplink]\nhost = "127.0.0.1"\nport = {link.port}\nbackoff_max_s = 1\nbacklog_kib_s = {kib_s}\n'
                f"[uplink.live]\nmin_interval_ms = 200\n"
            )
            async with daemon(folder, config) as gateway:
                return await _measure(gateway, link, watch, db, seconds)
    finally:
        watch.close()
        await consumer.kill()
        await broker.kill()


async def _measure(gateway: Daemon, link: Proxy, watch: Watch, db: Path, seconds: float) -> Outcome:
    await until(lambda: watch.highest > 100 and db.exists() and delivered_count(db, STREAM) > 100, "it flows")
    await link.cut()
    before = watch.highest
    await asyncio.sleep(seconds)
    status = await gateway.status()
    goal = next(s.next_seq for s in status.streams if s.name == STREAM) - 1
    await link.mend()
    back = time.monotonic()
    await until(lambda: watch.highest >= goal, "the backlog is in", PATIENCE_S)
    await until(lambda: delivered_count(db, STREAM) > goal, "the backlog is committed", PATIENCE_S)
    committed = time.monotonic()
    await until(lambda: bool(watch.live) and watch.live[-1] > back, "live values come")
    reconnected = next(t for t in watch.births if t >= back)
    live = next(t for t in watch.live if t >= back)
    arrived = next(t for t, numbers in watch.readings if numbers[-1] >= goal)
    highest, inverted, seen = -1, 0, set()
    for _, numbers in watch.readings:
        fresh = [number for number in numbers if number not in seen]
        inverted += sum(number <= highest for number in fresh[:1])
        seen.update(fresh)
        highest = max([highest, *fresh])
    return Outcome(
        backlog=goal - before,
        reconnected_s=round(reconnected - back, 3),
        live_s=round(live - back, 3),
        in_s=round(arrived - back, 3),
        after_s=round(arrived - reconnected, 3),
        committed_s=round(committed - back, 3),
        lost=highest + 1 - len(seen),
        inverted=inverted,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="of outage")
    parser.add_argument("--rate", type=int, default=200, help="readings/s")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--broker", choices=("mosquitto", "iotcore"), default="mosquitto")
    parser.add_argument("--kib-s", type=float, default=0.0, help="uplink.backlog_kib_s")
    parser.add_argument("--json", action="store_true", help="one JSON line a round")
    args = parser.parse_args()
    outcomes = []
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory(prefix="octoutage") as folder:
            outcomes.append(asyncio.run(run(Path(folder), args.seconds, args.rate, args.broker, args.kib_s)))
    if args.json:
        print("\n".join(json.dumps(asdict(outcome)) for outcome in outcomes))
    else:
        names = [each.name for each in fields(Outcome)]
        print("  ".join(names))
        for outcome in outcomes:
            print("  ".join(str(getattr(outcome, name)).ljust(len(name)) for name in names))
    return int(any(outcome.lost or outcome.inverted for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
