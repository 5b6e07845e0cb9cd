"""The parts of the demo's small factory: node, broker, gateway, each an async context manager on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import re
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from gateway.contract import GatewayStatus
from gateway.control import Client
from gateway.errors import ControlError, LinkError, OctogateError
from gateway.link import framing, messages
from sdk.testing import MicroPythonNode

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "gateway" / "example.toml"
FIRMWARE = ROOT / "firmware_tools" / "node_firmware"
LOOPBACK = "127.0.0.1"
MAX_PAYLOAD = 1 << 20  # of the broker: its own 20 kB would refuse the larger batches
READY_S = 20.0
END_S = 10.0

Overrides = Mapping[tuple[str, str], str | int]


def configured(text: str, base: Path, overrides: Overrides) -> str:
    """A config with other values for some keys, and with its `../` paths made absolute.

    Args:
        text: the TOML; each overridden key stands in it, once, on a line of its own.
        base: the folder its relative paths start from.
        overrides: (table, key) -> value, such as ("uplink", "port") -> 1884.
    """
    table, lines, open_ = "", [], dict(overrides)
    for line in text.splitlines():
        if header := re.match(r"\[+([a-z.]+)\]+", line):
            table = header[1]
        elif (key := re.match(r"([a-z_]+) = ", line)) and (table, key[1]) in open_:
            value = open_.pop((table, key[1]))
            line = f"{key[1]} = {_toml(value) if isinstance(value, str) else value}"
        lines.append(
            re.sub(r'"(\.\./[^"]*)"', lambda found: _toml(os.path.normpath(base / found[1])), line)
            if not line.startswith("#")
            else line
        )
    if open_:
        missing = ", ".join(f"[{name}] {key}" for name, key in open_)
        raise OctogateError(f"the example config has no {missing}", hint="see gateway/example.toml")
    return "\n".join(lines) + "\n"


def _toml(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def free_port(preferred: int = 0) -> int:
    """`preferred` if it can be had on loopback, else one that can."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((LOOPBACK, preferred))
        except OSError:
            return free_port()
        port: int = sock.getsockname()[1]
        return port


class CountingNode(MicroPythonNode):
    """A node whose line is listened to: how many readings it has put on the wire, by its own numbers.

    Attributes:
        sent: readings of complete frames; what is sent again counts once.
    """

    def __init__(self, *args: Any, record_size: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sent = 0
        self._record_size = record_size
        self._next = 0
        self._frames = framing.Deframer()
        self.on_line = self._listen_in

    def _listen_in(self, data: bytes) -> None:
        for frame in self._frames.feed(data):
            self._count(frame)

    def _count(self, frame: bytes) -> None:
        _, kind, seq, _ = framing.HEADER.unpack_from(frame)
        if kind != framing.Type.DATA or seq != self._next & 0xFFFF:
            return
        with contextlib.suppress(LinkError):
            message = messages.decode(frame)
            assert isinstance(message, messages.Data)
            self._next += 1
            self.sent += len(message.records) // self._record_size

    def halt(self) -> None:
        """Stops the node where it is: no reading more. What it had sent is on its way."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGSTOP)


class Broker:
    """The embedded broker, on loopback only; can be taken away and brought back.

    Attributes:
        outage_s: seconds it has been away, all outages that have ended.
    """

    def __init__(self, port: int) -> None:
        try:
            iotcore = importlib.import_module("iotcore")
        except ImportError as error:
            raise OctogateError(f"the demo's broker cannot be loaded: {error}", hint="run ./inv demo") from error
        self.port = port
        self.outage_s = 0.0
        self._broker: Any = iotcore.Broker(port=port, listen=LOOPBACK, max_payload_size=MAX_PAYLOAD)
        self._away_since: float | None = None

    @property
    def away_s(self) -> float | None:
        """How long it has been away by now; None while it is there."""
        return None if self._away_since is None else time.monotonic() - self._away_since

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Broker]:
        await self._start()
        try:
            yield self
        finally:
            await asyncio.to_thread(self._broker.stop)

    async def take_away(self) -> None:
        self._away_since = time.monotonic()
        await asyncio.to_thread(self._broker.stop)

    async def bring_back(self) -> None:
        """Returns when it listens again; nothing happens if it is there."""
        if (away := self._away_since) is not None:
            await self._start()
            self._away_since = None
            self.outage_s += time.monotonic() - away

    async def _start(self) -> None:
        def deaf() -> None:
            # The mask is inherited: Ctrl-C in the terminal must not end the broker before the rest is delivered.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            self._broker.start()

        try:
            await asyncio.to_thread(deaf)
        except (OSError, RuntimeError) as error:
            raise OctogateError(f"the broker does not start on {LOOPBACK}:{self.port}: {error}") from error


class Gateway:
    """`octogate run` as a process of its own, with its log in a file."""

    def __init__(self, config: Path, control: Path, log: Path) -> None:
        self._config = config
        self._control = control
        self.log = log
        self._process: asyncio.subprocess.Process | None = None
        self._ready = asyncio.Event()
        self._last: deque[str] = deque(maxlen=1)
        self._client: Client | None = None
        self._stack = AsyncExitStack()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Gateway]:
        """Entered when it says that it is running; ended in good order, or killed, on leaving."""
        # a session of its own: Ctrl-C in the terminal is the demo's to hear
        self._process = process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "gateway", "run", "--config", str(self._config)),
            stdin=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))},
        )
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._listen(process), name="gateway log")
                try:
                    await self._until_ready()
                    yield self
                finally:
                    await self.end()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def _until_ready(self) -> None:
        try:
            async with asyncio.timeout(READY_S):
                await self._ready.wait()
        except TimeoutError:
            raise OctogateError(f"the gateway is not ready after {READY_S:g} s", hint=f"see {self.log}") from None
        self._check()

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        """Its standard error into the log; the line that says it runs, and the end, set `_ready`."""
        assert process.stderr is not None
        with self.log.open("ab", buffering=0) as log:
            async for line in process.stderr:
                log.write(line)
                self._last.append(line.decode(errors="replace").strip())
                if b" running: " in line:
                    self._ready.set()
        await process.wait()
        self._ready.set()

    def _check(self) -> None:
        if self._process is None or self._process.returncode is not None:
            status = self._process.returncode if self._process else None
            said = self._last[-1] if self._last else "nothing"
            raise OctogateError(f"the gateway ended with status {status}: {said}", hint=f"see {self.log}")

    async def status(self) -> GatewayStatus:
        """What it is doing.

        Raises:
            OctogateError: it has ended, or does not answer.
        """
        try:
            async with asyncio.timeout(5):
                if self._client is None:
                    self._client = await self._stack.enter_async_context(Client.connect(self._control))
                return await self._client.ask("status", GatewayStatus)
        except TimeoutError as error:
            raise ControlError("the gateway does not answer", hint=f"see {self.log}") from error
        except ControlError:
            self._check()
            raise

    async def end(self) -> int:
        """SIGTERM, and its exit status; killed when it takes longer than END_S."""
        assert self._process is not None
        await self._stack.aclose()
        self._client = None
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            return await asyncio.wait_for(self._process.wait(), END_S)
        except TimeoutError:
            self._process.kill()
            return await self._process.wait()


def make_node(folder: Path, port: Path, shape: Path, channels: list[list[str]], record_size: int) -> CountingNode:
    """The press: the project's firmware, replaying a recording at 200 readings/s."""
    config = {
        "node": "press-4", "stream": "power", "sensor": "replay", "file": shape.name,
        "channels": channels, "rate": 200, "frame": 10,
    }  # fmt: skip
    files = {shape.name: shape.read_bytes()}
    return CountingNode(FIRMWARE, folder, port, config=config, files=files, record_size=record_size)
