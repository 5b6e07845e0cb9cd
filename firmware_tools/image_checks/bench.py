"""What the checks share: the gateway's own commands, a real node, a broker with a consumer, and the figures to quote."""

from __future__ import annotations

import asyncio
import random
import shlex
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from firmware_tools.cable import Acknowledged
from firmware_tools.console import ConsoleError, Done
from firmware_tools.image_checks.target import CannotError, Target
from gateway.contract import GatewayStatus
from gateway.errors import OctogateError
from sdk.demo_factory import Broker, free_port
from sdk.ingest import Ingest
from sdk.testing import MicroPythonNode

FIRMWARE = Path(__file__).resolve().parents[1] / "node_firmware"
OCTOGATE = "runuser -u octogate -- /opt/octogate/bin/octogate"
CONFIG = "/data/etc/octogate.toml"
NODE, STREAM = "press-4", "press-4/count"
READING = 4  # bytes of one, of the node's counter
RATE = 20
WAIT_S = 600.0
LOOK_S = 1.0
WORD = {True: "up", False: "down"}


class FailedError(OctogateError):
    """A check found what should not be."""


Check = Callable[["Bench"], Awaitable[str]]


def expect(condition: bool, what: str) -> None:
    """FailedError with `what` unless the condition holds."""
    if not condition:
        raise FailedError(what)


@dataclass
class Bench:
    """Everything on the table. Checks run in their order and leave a gateway that runs, with its network up.

    Attributes:
        folder: for files on this machine.
        bundle: an update of this board's system that its keys accept; None when there is none.
        cuts: how often the plug is pulled.
        node: a MicroPython node on this machine that counts, 20 readings a second.
        told: what the gateway told that node is on its disk.
        broker: one on this machine, behind it the consumer `ingest` with its database.
        figures: what to quote.
    """

    target: Target
    folder: Path
    bundle: Path | None
    cuts: int
    chance: random.Random
    node: MicroPythonNode
    told: Acknowledged
    broker: Broker
    ingest: Ingest
    figures: dict[str, str] = field(default_factory=dict)

    # --- its shell ------------------------------------------------------------------------------------------------

    async def run(self, command: str, limit_s: float = WAIT_S) -> str:
        """What a command prints; FailedError unless its status is 0."""
        done = await self.target.run(command, limit_s)
        expect(done.status == 0, f"`{command}` ended with status {done.status}: {done.output.strip()[-500:]}")
        return done.output

    async def octogate(self, *words: str, limit_s: float = WAIT_S) -> Done:
        """`octogate` as the gateway's own user."""
        return await self.target.run(f"{OCTOGATE} {shlex.join(words)}", limit_s)

    async def json(self, *words: str, limit_s: float = WAIT_S) -> Any:
        """What `octogate ... --json` says; None while it cannot say."""
        done = await self.octogate(*words, "--json", limit_s=limit_s)
        line = next((line for line in done.output.splitlines() if line.startswith(("{", "["))), "")
        try:
            return msgspec.json.decode(line) if line else None
        except msgspec.DecodeError as error:
            raise FailedError(f"octogate {words[0]} --json prints what is no JSON: {line[:200]}") from error

    async def status(self) -> GatewayStatus | None:
        """The gateway's word; None while it does not answer."""
        found = await self.json("status", "-c", CONFIG)
        return None if found is None else msgspec.convert(found, GatewayStatus)

    async def until(
        self, condition: Callable[[GatewayStatus], bool], what: str, limit_s: float = WAIT_S
    ) -> GatewayStatus:
        """Look at the gateway's status until the condition holds; FailedError when it does not in time."""
        status: GatewayStatus | None = None
        try:
            async with asyncio.timeout(limit_s):
                while True:
                    status = await self.status()
                    if status is not None and condition(status):
                        return status
                    await asyncio.sleep(LOOK_S)  # of another machine, which has no event for us
        except TimeoutError:
            raise FailedError(f"not within {limit_s:g} s: {what}; the gateway says {str(status)[:800]}") from None

    async def healthy(self, limit_s: float = WAIT_S) -> None:
        """Wait until the system has come up and its slot is marked good."""
        try:
            async with asyncio.timeout(limit_s):
                while (await self.target.run("systemctl is-active octogate octogate-health")).status:
                    failed = await self.target.run("systemctl is-failed octogate octogate-health")
                    expect("failed" not in failed.output.split(), f"a service failed: {await self.journal()}")
                    await asyncio.sleep(LOOK_S)
        except TimeoutError:
            raise FailedError(f"not healthy within {limit_s:g} s: {await self.journal()}") from None

    async def recover(self) -> None:
        """From whatever a failed check has left to a gateway that runs, by force if it must be."""
        await self.target.recover()
        await self.healthy()

    async def journal(self) -> str:
        """What systemd waits for or has given up, and the newest lines of the gateway and what it stands on."""
        units = "-u octogate -u octogate-health -u octogate-first-boot -u octogate-apply"
        show = "systemctl --failed --plain --no-legend; systemctl list-jobs --no-legend"
        done = await self.target.run(f"{show}; journalctl --no-pager -o cat -n 15 {units}")
        return done.output.strip()[-1500:]

    async def configure(self, more: str = "") -> None:
        """Give the gateway the bench's config, `more` appended, and restart it."""
        if self.target.keeps_config:
            raise CannotError("this board's own config is left alone")
        text = config(self.target.host, self.broker.port) + more
        await self.target.put(f"{CONFIG}.new", text.encode())
        await self.run(f"chown octogate:octogate {CONFIG}.new && mv {CONFIG}.new {CONFIG} && sync -f /data")
        await self.run("systemctl restart octogate")

    async def slot(self) -> str:
        """A or B: the slot that runs."""
        line = await self.run("cat /proc/cmdline")
        expect("rauc.slot=" in line, f"no rauc.slot in the kernel's command line: {line}")
        return line.partition("rauc.slot=")[2].split()[0]

    # --- what it has taken ------------------------------------------------------------------------------------------

    async def whole_ledger(self) -> dict[str, int]:
        """Readings and rows taken, by stream; FailedError if any is missing or unreadable."""
        ledger = await self.json("ledger", "--check", "-c", CONFIG)
        expect(ledger is not None, f"octogate ledger says nothing: {await self.journal()}")
        for stream in ledger["streams"]:
            expect(not stream["missing"], f"missing in {stream['stream']}: {stream['missing']}")
            expect(not stream.get("unreadable"), f"{stream['stream']}: {stream.get('unreadable')} are unreadable")
        expect(not ledger["history"], f"the spool had to be rebuilt: {ledger['history']}")
        return {stream["stream"]: int(stream["taken"]) for stream in ledger["streams"]}

    async def acknowledged(self, n: int, limit_s: float = WAIT_S) -> float:
        """Wait until the node has been told of n more readings on disk. Returns: how long that took, seconds."""
        started, wanted = time.monotonic(), self.told.readings + n
        try:
            async with asyncio.timeout(limit_s):
                while self.told.readings < wanted:
                    self.told.news.clear()
                    await self.told.news.wait()
        except TimeoutError:
            have = self.told.readings - wanted + n
            raise FailedError(f"{have} of {n} readings acknowledged in {limit_s:g} s: {await self.journal()}") from None
        return time.monotonic() - started

    def plugged(self) -> Any:
        """The node in a socket of the gateway, for the length of a block."""
        return self.target.node(NODE, self.node.port, self.told)

    def delivered(self) -> int:
        """The node's readings that the consumer has committed."""
        return sum(seq for (_, _, stream), seq in self.ingest.table.next.items() if stream == STREAM)


def config(host: str, port: int) -> str:
    """The gateway's config for the checks: one node, one uplink."""
    return f"""[gateway]
id = "image-test"
data_dir = "/data/spool"
[uplink]
host = "{host}"
port = {port}
backoff_max_s = 2
[panel]
port = 8080
[trust]
keys = ["/usr/share/octogate/octogate-models.pub.pem"]
[[source]]
kind = "node"
name = "{NODE}"
port = "usb:0403:6001:{NODE}"
"""


@asynccontextmanager
async def laid(target: Target, folder: Path, bundle: Path | None, cuts: int, seed: int) -> AsyncIterator[Bench]:
    """The table laid: node, broker and consumer run until the block is left."""
    settings = {"node": NODE, "stream": "count", "sensor": "counter", "rate": RATE, "frame": 10, "ring": 400}
    async with AsyncExitStack() as stack:
        node = MicroPythonNode(FIRMWARE, folder / "node", folder / "node-port", config=settings)
        await stack.enter_async_context(node)
        broker = await stack.enter_async_context(Broker(free_port()).running())
        ingest = await stack.enter_async_context(Ingest.open(folder / "consumer.db", port=broker.port))
        told = Acknowledged(READING)
        yield Bench(target, folder, bundle, cuts, random.Random(seed), node, told, broker, ingest)


FAULTS = (FailedError, ConsoleError, OctogateError, TimeoutError, OSError)
__all__ = ["FAULTS", "Bench", "CannotError", "Check", "FailedError", "config", "expect", "laid"]
