"""What a command costs: by the broker, unsigned and signed, of the kind that only reads.

python -m bench.commands [--times 30]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path

from sdk.bundle import generate_key
from sdk.client import over_mqtt
from tests.integration.harness import broker, config, daemon, free_port


async def measure(folder: Path, times: int, *, signed: bool) -> list[float]:
    """Seconds from asking for the status to its answer."""
    port, key = free_port(), folder / "host.pem"
    generate_key(key, folder / "host.pub")
    more = "commands = true\n" + ('command_keys = ["host.pub"]\n' if signed else "")
    took = []
    with broker(port):
        async with daemon(folder, config(folder, port, more)) as gateway:
            await gateway.until(lambda s: s.uplink.state == "up", "connected")
            async with over_mqtt("test", "127.0.0.1", port, key=key if signed else None) as remote:
                for _ in range(times):
                    started = time.perf_counter()
                    await remote.status()
                    took.append(time.perf_counter() - started)
    return took


async def main(times: int) -> None:
    for signed in (False, True):
        with tempfile.TemporaryDirectory(prefix="octogate-bench-") as folder:
            took = sorted(await measure(Path(folder), times, signed=signed))
        p50, p95 = statistics.median(took) * 1e3, took[len(took) * 95 // 100] * 1e3
        print(f"{'signed' if signed else 'unsigned'}: {times} commands, p50 {p50:.0f} ms, p95 {p95:.0f} ms")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=30, help="default: %(default)s")
    asyncio.run(main(parser.parse_args().times))
