"""A Sparkplug host that is not ours: npm's mqtt and sparkplug-payload, in a Node.js process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.integration.harness import PATIENCE_S, ROOT

SOURCE = Path(__file__).parent / "sparkplug_host"
BUILD = ROOT / "build" / "sparkplug_host"
INSTALL_S = 300
_FILES = ("package.json", "package-lock.json", "host.js")

Line = dict[str, Any]


def installed() -> Path:
    """The host's folder with its packages, installed as locked; done again only when the lock has changed."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    done = BUILD / "installed.json"
    lock = (SOURCE / "package-lock.json").read_text()
    BUILD.mkdir(parents=True, exist_ok=True)
    for name in _FILES:
        shutil.copyfile(SOURCE / name, BUILD / name)
    if not done.is_file() or done.read_text() != lock:
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        result = subprocess.run(command, cwd=BUILD, capture_output=True, text=True, check=False, timeout=INSTALL_S)
        assert result.returncode == 0, f"npm ci: {result.stderr[-2000:]}"
        done.write_text(lock)
    return BUILD


class ForeignHost:
    """What it understood, in order, in `lines`: kind, device, seq, metrics by the names of their births."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.lines: list[Line] = []
        self._news = asyncio.Event()

    async def read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            self.lines.append(json.loads(line))
            self._news.set()

    def ask(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")

    def mark(self) -> int:
        """How much it has understood so far, for `until`."""
        return len(self.lines)

    async def until(
        self, kind: str, device: str = "", since: int = 0, that: Callable[[Line], bool] | None = None
    ) -> Line:
        """The first message of a kind from `since` on (for which `that` holds)."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    for line in self.lines[since:]:
                        if line["kind"] == kind and line.get("device", "") == device and (that is None or that(line)):
                            return line
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            said = [(line["kind"], line.get("device"), line.get("seq")) for line in self.lines]
            raise AssertionError(
                f"not within {PATIENCE_S:g} s: {kind} {device} from {since} on; heard {said}"
            ) from None

    def kinds(self, since: int = 0) -> list[str]:
        return [line["kind"] for line in self.lines[since:]]


def values(line: Line) -> dict[str, Any]:
    """Metric name -> value."""
    return {metric["name"]: metric["value"] for metric in line["metrics"]}


@asynccontextmanager
async def foreign_host(port: int, group: str, node: str, host_id: str = "scada") -> AsyncIterator[ForeignHost]:
    """A host that listens to `group`; entered when its subscription stands."""
    folder = await asyncio.to_thread(installed)
    process = await asyncio.create_subprocess_exec(
        "node", "host.js", str(port), group, node, host_id,
        cwd=folder, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=1 << 22,
    )  # fmt: skip
    host = ForeignHost(process)
    try:
        async with asyncio.TaskGroup() as tasks:
            reading = tasks.create_task(host.read(), name="foreign host")
            await host.until("ready")
            yield host
            reading.cancel()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
