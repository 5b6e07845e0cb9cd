"""What a memory card has to take: one paced node, the daemon as it comes, a broker and a consumer that confirms.

    ./inv bench wear                                        200 readings/s in frames of 10, uplink up, then no uplink
    ./inv bench wear --args "--seconds 600 --frame 1 --only up --folder /mnt/card --store 'wear_gb_day = 1'"

Bytes are what the daemon's process caused to be written (/proc/PID/io), which is what its budget (`store.wear_gb_day`)
counts; commits are each one fdatasync of the log. Beside it, bytes and flushes of the whole block device below --folder:
with file system and journal, and with everything else that writes to it, so give it a device of its own (broker,
consumer and node write to the temporary folder). A run counts when the budget that was saved up is
used; what the device writes settles when the log has its size, after some 750 commits (--settle 400).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.campaign import Process, broker_command
from bench.outage import STREAM
from bench.spool import used_bytes
from tests.integration.harness import Daemon, daemon, delivered_count, free_port, until

BAR_GB_DAY = 4.0
_DAY_S = 86_400


@dataclass(frozen=True)
class Outcome:
    """One run, a day's worth of it.

    Attributes:
        gb_day: the daemon's own; `device_gb_day` is of the whole device.
        commits_s: commits, so fdatasyncs, per second; `flushes_s` is what the device saw of anybody.
        bytes_reading: the spool's pages in use by reading, at the end of the run.
    """

    uplink: bool
    frame: int
    readings_s: float
    gb_day: float
    commits_s: float
    device_gb_day: float
    flushes_s: float
    bytes_reading: float


@dataclass(frozen=True)
class _Moment:
    at: float
    written: int
    commits: int
    readings: int
    device: tuple[int, int]


def device(folder: Path) -> tuple[int, int]:
    """Bytes written to and flushes of the block device below a folder; zeros where the kernel does not tell."""
    number = os.stat(folder).st_dev
    try:
        text = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/stat").read_text()
    except OSError:
        return 0, 0
    fields = [int(field) for field in text.split()]  # Linux: Documentation/block/stat.rst
    return fields[6] * 512, fields[15] if len(fields) > 15 else 0


async def moment(gateway: Daemon, folder: Path) -> _Moment:
    assert gateway.process is not None
    status = await gateway.status()
    io = dict(line.split(": ") for line in Path(f"/proc/{gateway.process.pid}/io").read_text().splitlines())
    readings = next(stream.next_seq for stream in status.streams if stream.name == STREAM)
    now = asyncio.get_running_loop().time()
    return _Moment(now, int(io["write_bytes"]), status.spool.commits, readings, device(folder))


async def run(
    folder: Path, beside: Path, rate: int, frame: int, seconds: float, settle: float, up: bool, store: str
) -> Outcome:
    port, db = free_port(), beside / "consumer.db"
    broker = Process(beside / "broker.log", *broker_command("mosquitto", port, beside))
    consumer = Process(
        beside / "consumer.log", sys.executable, "-m", "sdk.ingest", "--port", str(port), "--db", str(db)
    )
    node = Process(
        beside / "node.log",
        *(sys.executable, "-m", "bench.producer", str(folder / "tty"), "--frame", str(frame)),
        *("--count", str(int(rate * (seconds + settle + 60))), "--rate", str(rate), "--fields", "Id"),
    )
    config = (
        f'[gateway]\nid = "bench"\ndata_dir = "data"\n[store]\n{store}\n'
        f'[[source]]\nkind = "node"\nname = "node"\nport = "{folder / "tty"}"\n'
    )
    if up:
        config += f'[uplink]\nhost = "127.0.0.1"\nport = {port}\nbackoff_max_s = 1\n[uplink.live]\n'
    async with AsyncExitStack() as stack:
        for process in (broker, consumer, node):
            await process.start()
            stack.push_async_callback(process.kill)
        await until((folder / "tty").is_symlink, "the node is there")
        gateway = await stack.enter_async_context(daemon(folder, config))
        await gateway.until(lambda s: any(t.name == STREAM and t.next_seq > rate for t in s.streams), "readings come")
        if up:
            await until(lambda: db.exists() and delivered_count(db, STREAM) > 0, "they arrive")
        await asyncio.sleep(settle)
        begun = await moment(gateway, folder)
        await asyncio.sleep(seconds)
        ended = await moment(gateway, folder)
        await gateway.end()
    took, readings = ended.at - begun.at, ended.readings - begun.readings
    return Outcome(
        uplink=up,
        frame=frame,
        readings_s=round(readings / took, 1),
        gb_day=round((ended.written - begun.written) / took * _DAY_S / 1e9, 2),
        commits_s=round((ended.commits - begun.commits) / took, 2),
        device_gb_day=round((ended.device[0] - begun.device[0]) / took * _DAY_S / 1e9, 2),
        flushes_s=round((ended.device[1] - begun.device[1]) / took, 2),
        bytes_reading=round(used_bytes(gateway.spool) / ended.readings, 1),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0, help="of each run; default: %(default)s")
    parser.add_argument("--settle", type=float, default=30.0, help="seconds before it counts; default: %(default)s")
    parser.add_argument("--rate", type=int, default=200, help="readings/s; default: %(default)s")
    parser.add_argument("--frame", type=int, default=10, help="readings a frame; default: %(default)s, as the firmware")
    parser.add_argument("--only", choices=("up", "none"), help="only with an uplink up, or without one")
    parser.add_argument("--store", default="", help="lines for the config's [store] table; default: none")
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: the system's temporary folder")
    parser.add_argument("--json", action="store_true", help="one JSON line a run")
    args = parser.parse_args()
    worst = 0.0
    for up in (True, False):
        if args.only not in (None, "up" if up else "none"):
            continue
        with (
            tempfile.TemporaryDirectory(prefix="octowear", dir=args.folder) as name,
            tempfile.TemporaryDirectory(prefix="octowear") as beside,
        ):
            outcome = asyncio.run(
                run(Path(name), Path(beside), args.rate, args.frame, args.seconds, args.settle, up, args.store)
            )
        worst = max(worst, outcome.gb_day)
        if args.json:
            print(json.dumps(asdict(outcome)), flush=True)
        else:
            print(
                f"{'uplink up' if up else 'no uplink'}, {outcome.readings_s:g} readings/s in frames of {outcome.frame}: "
                f"{outcome.gb_day} GB/day (bar {BAR_GB_DAY:g}) in {outcome.commits_s} commits/s; the device "
                f"{outcome.device_gb_day} GB/day in {outcome.flushes_s} flushes/s; "
                f"{outcome.bytes_reading} bytes a reading in the spool",
                flush=True,
            )
    return int(worst > BAR_GB_DAY)


if __name__ == "__main__":
    sys.exit(main())
