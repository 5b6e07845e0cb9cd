"""24 hours of a simulated factory in less than half an hour: does anything grow, is anything lost?

    ./inv bench soak                               24 h at 50x: 29 min
    ./inv bench soak --args "--hours 1 --json"

The factory's rates and faults per day are those of the table in `bench/soak_factory.py`; at `--speed 50` all of them come
fifty times as often, so that a run has a day's readings, pictures, inferences, unplugs and outages. What takes its own time
does so still: the gateway's pauses before it opens a port again, its commits, its models.

The daemon is measured every `--look` seconds, /proc/PID: RSS, PSS and anonymous memory of its own process, PSS of all
of them, open files, threads, bytes of the spool. Caches, buffers and the spool fill up first, and the largest burst so far
(what waits behind an outage, the packing of history) leaves its mark; so what counts is the run's second half: it is flat
if, from its third quarter to its last tenth (medians), the daemon's anonymous memory grew by less than 1 MiB, and its files
and threads by none. Beside it the growth an hour of the factory in each quarter: a leak has the same in all of them. At the end
the consumer's table is compared with what the sensors counted and what the gateway acknowledged. Exit status 1 when
it is not flat or something is missing, twice or out of order.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.soak_factory import Factory, Verdict, factory
from tests.integration.harness import Daemon

GROWTH_KIB = 1024
BARS = "▁▂▃▄▅▆▇█"
WIDTH = 60


class Look(msgspec.Struct, frozen=True):
    """One measurement; memory in KiB."""

    at_s: float
    rss: int
    pss: int
    anonymous: int
    tree_pss: int
    fds: int
    threads: int
    spool: int


def rollup(pid: int) -> dict[str, int]:
    """/proc/PID/smaps_rollup, KiB; empty when the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}


def tree(pid: int) -> list[int]:
    """The process and all below it."""
    found = [pid]
    for parent in found:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for task in os.listdir(f"/proc/{parent}/task"):
                found += map(int, Path(f"/proc/{parent}/task/{task}/children").read_text().split())
    return found


def look(daemon: Daemon, at_s: float) -> Look:
    assert daemon.process is not None
    pid = daemon.process.pid
    own = rollup(pid)
    status = Path(f"/proc/{pid}/status").read_text()
    return Look(
        at_s=round(at_s, 1),
        rss=own["Rss"],
        pss=own["Pss"],
        anonymous=own["Anonymous"],
        tree_pss=sum(rollup(each).get("Pss", 0) for each in tree(pid)),
        fds=len(os.listdir(f"/proc/{pid}/fd")),
        threads=int(status.partition("Threads:")[2].split()[0]),
        spool=sum(path.stat().st_size for path in daemon.spool.parent.glob("spool.db*")),
    )


async def watch(made: Factory, seconds: float, every_s: float) -> list[Look]:
    """Measurements until the time is over; fails as soon as the daemon ends."""
    looks: list[Look] = []
    begin = time.monotonic()
    while (now := time.monotonic() - begin) < seconds:
        looks.append(look(made.daemon, now))
        await asyncio.sleep(min(every_s, max(seconds - now, 0.01)))
    looks.append(look(made.daemon, time.monotonic() - begin))
    return looks


async def run(hours: float, speed: float, every_s: float, folder: Path) -> tuple[list[Look], Verdict]:
    async with factory(folder, speed) as made:
        looks = await watch(made, hours * 3600 / speed, every_s)
        return looks, await made.verdict()


def sparkline(values: Sequence[float]) -> str:
    """A line of bars, between the smallest and the largest of the values."""
    if len(values) > WIDTH:
        share = len(values) / WIDTH
        values = [statistics.mean(values[int(i * share) : int((i + 1) * share)]) for i in range(WIDTH)]
    low, high = min(values), max(values)
    return "".join(BARS[int((value - low) / (high - low or 1) * (len(BARS) - 1))] for value in values)


def grown(looks: Sequence[Look], name: str) -> tuple[float, float, float]:
    """A quantity at the start, when settled (median of the third quarter) and at the end (of the last tenth)."""
    values = [getattr(each, name) for each in looks]
    quarter = len(values) // 4
    settled = values[2 * quarter : 3 * quarter] or values[:1]
    return values[0], statistics.median(settled), statistics.median(values[-max(len(values) // 10, 1) :])


def slopes(looks: Sequence[Look], speed: float) -> list[float]:
    """KiB of anonymous memory an hour of the factory, in each quarter of the run (least squares)."""
    quarter = len(looks) // 4
    if quarter < 2:
        return []
    parts = [looks[i * quarter : (i + 1) * quarter] for i in range(4)]
    return [
        statistics.linear_regression([x.at_s * speed / 3600 for x in part], [x.anonymous for x in part]).slope
        for part in parts
    ]


def faults(looks: Sequence[Look], verdict: Verdict) -> list[str]:
    """What is not as it should be."""
    found = list(verdict.faults)
    for name, most in (("anonymous", GROWTH_KIB), ("fds", 0), ("threads", 0)):
        _, settled, end = grown(looks, name)
        if end - settled > most:
            found.append(f"{name} grew from {settled:g} to {end:g}")
    return found


def show(looks: Sequence[Look], verdict: Verdict, speed: float) -> None:
    for name in Look.__struct_fields__[1:]:
        start, settled, end = grown(looks, name)
        unit = "KiB" if name in ("rss", "pss", "anonymous", "tree_pss") else ""
        if name == "spool":
            start, settled, end, unit = start // 1024, settled // 1024, end // 1024, "KiB"
        line = sparkline([getattr(each, name) for each in looks])
        print(f"{name:9} start {start:9,.0f}  settled {settled:9,.0f}  end {end:9,.0f} {unit:3}  {line}")
    print("anonymous memory, KiB an hour by quarter:", ", ".join(f"{slope:.0f}" for slope in slopes(looks, speed)))
    for key, value in verdict.counts.items():
        print(f"{key:28} {value:,}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=24.0, help="of the factory")
    parser.add_argument("--speed", type=float, default=50.0, help="how much faster than life, 1 to 60")
    parser.add_argument("--look", type=float, default=5.0, help="seconds between two measurements")
    parser.add_argument("--json", action="store_true", help="everything as one JSON line")
    args = parser.parse_args()
    if not (args.hours > 0 and 1 <= args.speed <= 60 and args.look > 0):
        parser.error("--hours and --look are above 0, --speed from 1 to 60")
    with tempfile.TemporaryDirectory(prefix="octosoak") as folder:
        looks, verdict = asyncio.run(run(args.hours, args.speed, args.look, Path(folder)))
    wrong = faults(looks, verdict)
    if args.json:
        report = {"looks": msgspec.to_builtins(looks), "counts": verdict.counts, "faults": wrong}
        report["kib_an_hour"] = slopes(looks, args.speed)
        print(json.dumps({"hours": args.hours, "speed": args.speed, **report}))
    else:
        show(looks, verdict, args.speed)
        print("\n".join(wrong) or "flat, and nothing lost")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
