"""The real parts that integration tests are made of: a broker, a node, the daemon as a process, a consumer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import iotcore

from gateway.contract import GatewayStatus
from gateway.control import Client
from gateway.errors import ControlError
from sdk.testing import MicroPythonNode

ROOT = Path(__file__).parents[2]
FIRMWARE = ROOT / "firmware_tools" / "node_firmware"
MODELS = ROOT / "models"
PATIENCE_S = 40.0
COUNTS = "press/count"  # the stream of `node`: 0, 1, 2, ...
_given: set[int] = set()


def free_port() -> int:
    """A port that nobody has: below those that the kernel gives to outgoing connections, and never the same twice."""
    while True:
        port = random.randrange(15_000, 30_000)
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            if port not in _given:
                _given.add(port)
                return port


def broker(port: int) -> iotcore.Broker:
    """An embedded broker on loopback, as a context manager; can be stopped and started."""
    return iotcore.Broker(port=port, listen="127.0.0.1", max_payload_size=1 << 20)


async def until(condition: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> None:
    """Wait until `condition` holds; what it waits for has no event, so it is looked at often."""
    try:
        async with asyncio.timeout(patience_s):
            while not condition():
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"not within {patience_s:g} s: {what}") from None


def node(folder: Path, rate: int = 400, files: Mapping[str, bytes] | None = None, **settings: Any) -> MicroPythonNode:
    """A node that counts its readings from 0 on, or what `settings` make of it."""
    own = {"node": "press", "stream": "count", "sensor": "counter", "rate": rate, "frame": 10, "ring": 2000}
    heap_kib = 1024 if files else 192
    return MicroPythonNode(
        FIRMWARE, folder / "node", folder / "tty", config=own | settings, files=files, heap_kib=heap_kib
    )


def config(
    folder: Path, port: int | None = None, more: str = "[uplink.live]\n", *, gateway: str = "test", data: str = "data"
) -> str:
    """The config of a gateway that reads `node`; with a port it has an uplink there, of which `more` is the rest."""
    return f"""
[gateway]
id = "{gateway}"
data_dir = "{data}"
[trust]
keys = ["{MODELS / "keys" / "octogate-models.pub.pem"}"]
[[source]]
kind = "node"
name = "press"
port = "{folder / "tty"}"
{"" if port is None else uplink(port)}{more}
"""


def uplink(port: int, more: str = "", table: str = "[uplink]") -> str:
    return f'{table}\nhost = "127.0.0.1"\nport = {port}\nbackoff_max_s = 0.5\n{more}\n'


class Daemon:
    """`octogate run` as a process, started and killed as often as wanted; `module` is what is run."""

    module = "gateway"

    def __init__(self, folder: Path, config: str, env: dict[str, str] | None = None) -> None:
        self.folder = folder
        self.env = env
        self.config = folder / "gateway.toml"
        self.config.write_text(config)
        self.log = folder / "log"
        self.process: asyncio.subprocess.Process | None = None
        self._hit = {0}  # no worker, and for kill(2) the whole group

    @property
    def spool(self) -> Path:
        return self.folder / "data" / "spool.db"

    async def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", self.module, "run", "--config", str(self.config)),
                stderr=log,
                cwd=ROOT,
                env=self.env,
            )

    async def kill(self) -> None:
        """SIGKILL; its children end by themselves."""
        await self.end(signal.SIGKILL)

    async def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)
        return await asyncio.wait_for(self.process.wait(), 20)

    async def hit_worker(self, number: signal.Signals = signal.SIGKILL) -> GatewayStatus:
        """Signal the worker of the first model, each worker once: the status may lag behind a death. As it was then."""
        status = await self.until(
            lambda s: s.models[0].state == "ready" and s.models[0].pid not in self._hit, "a worker that was not hit yet"
        )
        self._hit.add(status.models[0].pid)
        os.kill(status.models[0].pid, number)
        return status

    async def status(self) -> GatewayStatus:
        async with Client.connect(self.folder / "data" / "control.sock") as client:
            return await client.ask("status", GatewayStatus)

    async def until(self, condition: Callable[[GatewayStatus], bool], what: str) -> GatewayStatus:
        """Wait until the daemon's status fulfils `condition`."""
        status: GatewayStatus | None = None
        try:
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    with contextlib.suppress(ControlError):
                        status = await self.status()
                        if condition(status):
                            return status
                    await asyncio.sleep(0.02)
        except TimeoutError:
            tail = self.log.read_text()[-3000:]
            raise AssertionError(f"not within {PATIENCE_S:g} s: {what}\n{status}\n{tail}") from None


@asynccontextmanager
async def daemon(
    folder: Path, config: str, module: str = "gateway", env: dict[str, str] | None = None
) -> AsyncIterator[Daemon]:
    """A started daemon, killed at the end if it still runs."""
    made = Daemon(folder, config, env)
    made.module = module
    await made.start()
    try:
        yield made
    finally:
        if made.process is not None and made.process.returncode is None:
            await made.kill()


def stored(spool: Path) -> dict[str, int]:
    """Readings and rows on disk, by stream, of a spool that nobody has open."""
    with contextlib.closing(sqlite3.connect(spool)) as db:
        rows = db.execute(
            "SELECT s.name, coalesce(max(b.seq_first + b.n), 0) FROM stream s LEFT JOIN batch b ON b.stream = s.id "
            "GROUP BY s.id"
        )
        return dict(rows.fetchall())


def delivered(db: Path, stream: str) -> list[tuple[int, list[float]]]:
    """(sequence number, values) of one stream in the consumer's table, in the order of sequence."""
    with contextlib.closing(sqlite3.connect(db)) as table:
        rows = table.execute(
            "SELECT r.seq, r.value FROM reading r JOIN stream s ON s.id = r.stream WHERE s.stream = ? ORDER BY r.seq",
            (stream,),
        )
        return [(seq, json.loads(value)) for seq, value in rows]


def delivered_count(db: Path, stream: str) -> int:
    with contextlib.closing(sqlite3.connect(db)) as table:
        row = table.execute("SELECT coalesce(max(next_seq), 0) FROM stream WHERE stream = ?", (stream,)).fetchone()
        return int(row[0])


def count(db: Path, stream: str = COUNTS) -> int:
    """How many readings the consumer has of a stream; 0 while its file is not made yet."""
    with contextlib.suppress(sqlite3.Error):
        return delivered_count(db, stream)
    return 0


def assert_whole(db: Path, at_least: int) -> None:
    """Every reading of the node's counter from 0 on is there once, in order, under contiguous sequence numbers."""
    rows = delivered(db, COUNTS)
    assert len(rows) >= at_least
    assert [seq for seq, _ in rows] == list(range(len(rows)))
    assert [int(values[0]) for _, values in rows] == list(range(len(rows)))


async def settled(gateway: Daemon, db: Path) -> int:
    """Stop the daemon in good order, start it once more, and wait until the consumer has all of it."""
    await gateway.end()
    on_disk = stored(gateway.spool)[COUNTS]
    await gateway.start()
    await until(lambda: count(db) >= on_disk, "everything delivered")
    return on_disk


def open_fds(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))
