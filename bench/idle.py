"""What the daemon costs when little happens: start, memory, CPU of the main process.

    ./inv bench idle

Start is from `octogate run` to the acknowledgement of the first reading, which is on disk by then; a first one, which is
not counted, compiles the modules, as they are in an installed gateway, whatever PYTHONDONTWRITEBYTECODE says here. PSS and CPU are those of
the main process with one real MicroPython node: at 10 readings/s, and then with the node unplugged and its broker up.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import iotcore

from bench.throughput import cpu_s
from sdk.testing import MicroPythonNode
from tests.integration.harness import FIRMWARE, Daemon, free_port

CONFIG = """
[gateway]
id = "idle"
data_dir = "data"
[[source]]
kind = "node"
name = "node"
port = "{port}"
silent_s = 600
[uplink]
host = "127.0.0.1"
port = {broker}
[uplink.live]
"""


def pss_mb(pid: int) -> float:
    """Proportional set size: private pages and this process's share of the shared ones."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise ValueError("no Pss in smaps_rollup")


async def start_s(folder: Path, broker: int, env: dict[str, str]) -> float:
    """Seconds from spawning the daemon in `env` to the first acknowledged reading."""
    tty = folder / "tty"
    producer = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.producer", str(tty), "--frame", "1", "--count", "1", stdout=asyncio.subprocess.PIPE
    )
    while not tty.is_symlink():
        await asyncio.sleep(0.01)
    gateway = Daemon(folder, CONFIG.format(port=tty, broker=broker), env)
    started = time.monotonic()
    await gateway.start()
    output, _ = await producer.communicate()
    await gateway.end()
    return float(json.loads(output)["last_ack_at"]) - started


async def percent_cpu(pid: int, seconds: float) -> float:
    before, started = cpu_s(pid), time.monotonic()
    await asyncio.sleep(seconds)
    return 100 * (cpu_s(pid) - before) / (time.monotonic() - started)


async def measure(seconds: float, starts: int) -> dict[str, float]:
    result: dict[str, float] = {}
    broker = free_port()
    with tempfile.TemporaryDirectory(prefix="octobench") as name, iotcore.Broker(port=broker, listen="127.0.0.1"):
        env = dict(os.environ, PYTHONDONTWRITEBYTECODE="", PYTHONPYCACHEPREFIX=str(Path(name) / "compiled"))
        took = []
        for i in range(1 + starts):
            folder = Path(name) / f"start{i}"
            folder.mkdir()
            took.append(await start_s(folder, broker, env))
        del took[0]
        result["start_median_s"] = round(statistics.median(took), 3)
        result["start_worst_s"] = round(max(took), 3)
        folder = Path(name)
        settings = {"rate": 10, "frame": 1}
        async with MicroPythonNode(FIRMWARE, folder / "node", folder / "tty", config=settings) as node:
            gateway = Daemon(folder, CONFIG.format(port=folder / "tty", broker=broker))
            await gateway.start()
            assert gateway.process is not None
            pid = gateway.process.pid
            await gateway.until(lambda s: any(x.next_seq >= 30 for x in s.streams), "30 readings")
            result["cpu_percent_10_hz"] = round(await percent_cpu(pid, seconds), 2)
            result["pss_mb"] = round(pss_mb(pid), 1)
            node.unplug()
            await gateway.until(lambda s: s.sources[0].state == "lost", "unplugged")
            await asyncio.sleep(8)  # the backoff of reopening reaches its longest pause
            result["cpu_percent_no_input"] = round(await percent_cpu(pid, seconds), 2)
            await gateway.end()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20, help="length of each CPU measurement; default 20")
    parser.add_argument("--starts", type=int, default=5, help="how many starts are timed; default 5")
    args = parser.parse_args()
    for key, value in asyncio.run(measure(args.seconds, args.starts)).items():
        print(f"{key:22} {value}")


if __name__ == "__main__":
    main()
