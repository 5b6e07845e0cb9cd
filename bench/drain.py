"""How fast a full spool empties, and how fast the receiver takes it.

    ./inv bench drain                         1e6 readings: daemon -> mosquitto, and through octogate-ingest
    ./inv bench drain --args "--json --batch 100"

`broker`: the real daemon finds a spool with so many readings and a mosquitto that has just come up; the time is from the
first batch at a subscriber to the last (starting the interpreter is not the spool's speed; `all_s` has it). Every
sequence number must come once and in order. `ingest sqlite`, `ingest postgres`: the same with octogate-ingest as the
subscriber, until its database has all. `store sqlite`, `store postgres`: the receiver's own rate, without broker and
gateway. PostgreSQL is left out, and said so, where there is none.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import os
import signal
import sqlite3
import struct
import subprocess
import sys
import tempfile
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from gateway.clock import Clock
from gateway.contract import Channel, Sample, Schema
from gateway.store.columns import read_header
from gateway.store.spool import Spool
from sdk.ingest.batches import Arrived, Counts
from sdk.ingest.consumer import MAX_BATCHES, open_sink
from sdk.ingest.store import Table
from tests.integration.harness import free_port
from tests.integration.postgres import postgres

BAR_PER_S = 500_000
PATIENCE_S = 300.0
SCHEMA = Schema((Channel("current", "f", "A"), Channel("power", "f", "W")))
STREAM = "press/power"


@dataclass(frozen=True)
class Outcome:
    """One measurement; `all_s` is from the start of the daemon, None where there is none."""

    what: str
    readings: int
    lost: int
    reordered: int
    per_s: int
    took_s: float
    all_s: float | None = None


def samples(n: int, batch: int) -> Iterator[Sample]:
    """A machine that goes on and off, at 1,000 readings a second (made up, not recorded)."""
    shape = [5.0 + math.sin(i / 7) if (i // 600) % 2 else 0.02 for i in range(8192)]
    ring = b"".join(struct.pack("<ff", amps, amps * 230) for amps in shape) * 3
    for first in range(0, n, batch):
        count = min(batch, n - first)
        at = first % 8192 * SCHEMA.record_size
        data = ring[at : at + count * SCHEMA.record_size]
        times = array("q", [10**9 + first * 1_000_000])
        yield Sample(STREAM, SCHEMA, times, array("q", [1_000_000]), array("H", [count]), data)


async def fill(path: Path, n: int, batch: int) -> list[bytes]:
    """Make a spool with one commit for each of the samples; the blobs of its batches, packed as the spool packs them."""
    settings = {"commit_s": 0.0, "max_bytes": 1 << 30}
    async with Spool.open(path, Clock(), notify=lambda *_: None, **settings) as spool:  # type: ignore[arg-type]
        for sample in samples(n, batch):
            await spool.append_samples([sample], None)
        blobs: list[bytes] = []
        at = 0
        while found := await spool.read_after(at):
            blobs += [item.blob for item in found]
            at = found[-1].id
        return blobs


class Subscriber:
    """Counts readings by their batches' keys."""

    def __init__(self, port: int, total: int) -> None:
        self.next = self.lost = self.reordered = 0
        self.first_at = self.last_at = 0.0
        self.done = threading.Event()
        self._total = total
        self._client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv311)
        self._client.on_message = self._arrived
        subscribed = threading.Event()
        self._client.on_subscribe = lambda *_: subscribed.set()
        self._client.connect("127.0.0.1", port)
        self._client.subscribe("octo/v1/+/up/press/#", qos=0)
        self._client.loop_start()
        if not subscribed.wait(10):
            raise TimeoutError("the broker did not take the subscription")

    def _arrived(self, _client: paho.Client, _userdata: object, message: paho.MQTTMessage) -> None:
        now = time.monotonic()
        header, _ = read_header(bytes(message.payload))
        self.first_at = self.first_at or now
        self.lost += max(0, header.seq_first - self.next)
        self.reordered += header.seq_first < self.next
        self.next = max(self.next, header.seq_first + header.n)
        self.last_at = now
        if self.next >= self._total:
            self.done.set()

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@contextmanager
def mosquitto(folder: Path, nodelay: bool = False) -> Iterator[int]:
    port = free_port()
    # its own limits would drop what a subscriber is slow to take: none of that here
    (folder / "mosquitto.conf").write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous true\nmax_queued_messages 0\nmax_inflight_messages 0\n"
        f"set_tcp_nodelay {str(nodelay).lower()}\n"
    )
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    with (folder / "mosquitto.log").open("wb") as log:
        command = ["mosquitto", "-c", str(folder / "mosquitto.conf")]
        process = subprocess.Popen(command, stderr=log, env={**os.environ, "PATH": path})
    try:
        yield port
    finally:
        process.kill()
        process.wait()


@contextmanager
def daemon(folder: Path, port: int) -> Iterator[None]:
    config = folder / "gateway.toml"
    config.write_text(
        f'[gateway]\nid = "bench"\ndata_dir = "data"\n[uplink]\nhost = "127.0.0.1"\nport = {port}\nbackoff_max_s = 0.1\n'
    )
    command = [sys.executable, "-m", "gateway", "run", "--config", str(config)]
    with (folder / "gateway.log").open("wb") as log, running(command, log.fileno()):
        yield


@contextmanager
def running(command: Sequence[str], output: int) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def drain(folder: Path, n: int, nodelay: bool) -> Outcome:
    """Daemon -> mosquitto -> a subscriber that only counts."""
    with mosquitto(folder, nodelay) as port:
        until(lambda: connects(port), "the broker is up")
        subscriber = Subscriber(port, n)
        try:
            started = time.monotonic()
            with daemon(folder, port):
                if not subscriber.done.wait(PATIENCE_S):
                    print((folder / "gateway.log").read_text()[-2000:], file=sys.stderr)
        finally:
            subscriber.close()
    took = subscriber.last_at - subscriber.first_at
    lost = subscriber.lost + n - subscriber.next
    return Outcome(
        "broker", n, lost, subscriber.reordered, round(n / took), round(took, 2), round(subscriber.last_at - started, 2)
    )


def drain_into(name: str, folder: Path, n: int, arguments: Sequence[str], count: Callable[[], int]) -> Outcome:
    """Daemon -> mosquitto -> octogate-ingest -> its database."""
    with mosquitto(folder) as port:
        until(lambda: connects(port), "the broker is up")
        command = [sys.executable, "-m", "sdk.ingest", "--port", str(port), *arguments]
        with (folder / "ingest.log").open("wb") as log, running(command, log.fileno()):
            until(lambda: count() == 0, "the receiver is up")
            time.sleep(1)  # it subscribes: not what is measured
            started = time.monotonic()
            with daemon(folder, port):
                until(lambda: count() > 0, "the first readings arrive")
                first = time.monotonic()
                until(lambda: count() >= n, "all have arrived")
            now = time.monotonic()
    return Outcome(
        f"ingest {name}", n, n - count(), 0, round(n / (now - first)), round(now - first, 2), round(now - started, 2)
    )


async def store(name: str, path: Path | None, dsn: str, n: int, blobs: Sequence[bytes]) -> Outcome:
    """The receiver's table alone."""
    sink = await open_sink(path, dsn)
    table, counts = Table(sink), Counts()
    batches = [Arrived("alone", read_header(blob)[0], blob) for blob in blobs]
    started = time.monotonic()
    for at in range(0, len(batches), MAX_BATCHES):
        await table.take(batches[at : at + MAX_BATCHES], counts)
    took = time.monotonic() - started
    ledger = await sink.ledger(count=True)
    await sink.close()
    rows = sum(stream.rows or 0 for stream in ledger if stream.gateway == "alone")
    return Outcome(f"store {name}", n, n - rows, 0, round(n / took), round(took, 2))


def connects(port: int) -> bool:
    client = paho.Client(CallbackAPIVersion.VERSION2)
    with contextlib.suppress(OSError):
        client.connect("127.0.0.1", port)
        client.disconnect()
        return True
    return False


def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {PATIENCE_S:g} s: {what}")
        time.sleep(0.01)


def in_sqlite(path: Path) -> int:
    """How far the receiver is; -1 while its file is not there."""
    with (
        contextlib.suppress(sqlite3.Error),
        contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db,
    ):
        row = db.execute("SELECT coalesce(max(next_seq), 0) FROM stream WHERE stream = ?", (STREAM,)).fetchone()
        return int(row[0])
    return -1


def in_postgres(dsn: str) -> int:
    import asyncpg

    async def ask() -> int:
        connection = await asyncpg.connect(dsn)
        try:
            sql = "SELECT coalesce(max(next_seq), 0) FROM octogate.stream WHERE stream = $1 AND gateway = 'bench'"
            return int(await connection.fetchval(sql, STREAM))
        except asyncpg.UndefinedTableError:
            return -1
        finally:
            await connection.close()

    return asyncio.run(ask())


def measure(n: int, batch: int, only: str, nodelay: bool) -> Iterator[Outcome]:
    """All of it, each with a spool of its own."""
    with tempfile.TemporaryDirectory(prefix="octodrain") as name:

        def fresh(what: str) -> tuple[Path, list[bytes]]:
            folder = Path(name) / what
            folder.mkdir()
            return folder, asyncio.run(fill(folder / "data" / "spool.db", n, batch))

        if only in ("", "broker"):
            yield drain(fresh("broker")[0], n, nodelay)
        if only in ("", "sqlite"):
            folder, blobs = fresh("sqlite")
            yield asyncio.run(store("sqlite", folder / "alone.db", "", n, blobs))
            db = folder / "readings.db"
            yield drain_into("sqlite", folder, n, ["--db", str(db)], lambda: in_sqlite(db))
        if only in ("", "postgres"):
            folder, blobs = fresh("postgres")
            try:
                import asyncpg  # noqa: F401

                server = postgres()
                with server as made:
                    dsn = made.dsn
                    yield asyncio.run(store("postgres", None, dsn, n, blobs))
                    yield drain_into("postgres", folder, n, ["--postgres", dsn], lambda: in_postgres(dsn))
            except (ImportError, AssertionError) as error:
                print(f"PostgreSQL is left out: {error}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readings", type=int, default=1_000_000, help="default: %(default)s")
    parser.add_argument("--batch", type=int, default=1000, help="readings a commit; default: %(default)s")
    parser.add_argument("--only", choices=("broker", "sqlite", "postgres"), default="", help="only this part")
    parser.add_argument("--nodelay", action="store_true", help="mosquitto with set_tcp_nodelay, for `broker`")
    parser.add_argument("--json", action="store_true", help="one JSON line an outcome")
    args = parser.parse_args()
    wrong = False
    for outcome in measure(args.readings, args.batch, args.only, args.nodelay):
        wrong |= bool(outcome.lost or outcome.reordered)
        wrong |= outcome.what == "broker" and outcome.per_s < BAR_PER_S
        if args.json:
            print(json.dumps(asdict(outcome)), flush=True)
        else:
            wait = "" if outcome.all_s is None else f", {outcome.all_s} s from the daemon's start"
            print(
                f"{outcome.what:16} {outcome.per_s:>9,} readings/s in {outcome.took_s} s{wait};"
                f" {outcome.lost} lost, {outcome.reordered} reordered",
                flush=True,
            )
    sys.exit(wrong)


if __name__ == "__main__":
    main()
