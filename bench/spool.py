"""The spool by itself: latency of an append, bytes a reading, wear of the disk, a chart of a day out of a month.

    ./inv bench spool
    ./inv bench spool --args "--seconds 10 --folder /mnt/card"

append   1,000 readings/s in 100 appends/s of 10, each waited for; after each one, what the disk needs to write two
         pages to a file of its own and sync them. The commit window is 1 ms, so that it is the spool that is measured.
bytes    the demo's recording, in frames of 10 readings, at 200 a second, none of it delivered: with a commit for every
         frame (latency asked for), for 70 readings (the default's budget, an uplink up), a second (no uplink); each as
         stored by then, and packed as a whole. Pages of the file in use, so the database's own overhead is in the figure.
chart    a month of the demo's readings is 518 million; what is made here is the month's statistics per minute (43,200
         rows, from real minutes of the recording) and the last ten minutes as batches, as the writer would leave them.
         A query is one day in 500 points, at 30 different days; the worst is shown, too.
wear     bytes this process caused to be written (/proc/self/io), as MB a day; of the disk for each of these commits,
         checkpoints and packing included. bench.wear is the same of a whole daemon over minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sqlite3
import statistics
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

from gateway.clock import NOT_BEFORE_NS, Clock
from gateway.config import StoreTable
from gateway.contract import BatchKind, Channel, Sample, Schema, Severity
from gateway.store.query import Query
from gateway.store.rollup import MINUTE_NS, Minute, cells
from gateway.store.settings import spool_settings
from gateway.store.spool import Spool
from gateway.store.tables import Tables
from gateway.store.upkeep import COMMITS
from gateway.store.wear import process_written
from sdk.demo_data import prepare

STREAM = "press-4/power"
SCHEMA = Schema((Channel("current", "f", "A"), Channel("power", "f", "W")))
RATE, FRAME = 200, 10
STEP_NS = 10**9 // RATE
MINUTES = 30 * 24 * 60


def told(name: str, state: str, severity: Severity, message: str) -> None:
    print(f"{name} {state}: {message}", file=sys.stderr)


def percentile(values: list[float], percent: int) -> float:
    return sorted(values)[min(len(values) * percent // 100, len(values) - 1)]


def frames(recording: bytes, first_ns: int, n: int, per: int = FRAME) -> Iterator[Sample]:
    """`n` readings of the recording, around and around, as a node sends them: `per` a frame, a little jitter."""
    size = SCHEMA.record_size
    whole = len(recording) // size // per * per
    for at in range(0, n, per):
        start = at % whole * size
        when = first_ns + at * STEP_NS + at * 7919 % 50_000
        data = recording[start : start + per * size]
        yield Sample(STREAM, SCHEMA, array("q", [when]), array("q", [STEP_NS]), array("H", [per]), data)


async def append_and_sync(folder: Path, recording: bytes, seconds: float) -> tuple[list[float], list[float]]:
    """From `append_samples` to on disk; and two pages and an fdatasync, in place in a file that is there already.

    One after the other, each 100 times a second: a disk that other work keeps busy for half a second keeps both waiting.
    """
    append: list[float] = []
    disk: list[float] = []
    pages = os.urandom(8192)
    async with Spool.open(folder / "append.db", Clock(), commit_s=0.001, max_bytes=64 << 20, notify=told) as spool:
        for sample in frames(recording, 0, 3000 * FRAME):  # the log has its size, as on any day but the first
            await spool.append_samples([sample], None)
        handle = os.open(folder / "sync", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.posix_fallocate(handle, 0, 4 << 20)
            for at in range(500):
                os.pwrite(handle, pages, at * 8192)
            os.fsync(handle)
            for i, sample in enumerate(frames(recording, 0, int(seconds * 1000))):
                started = time.perf_counter()
                await spool.append_samples([sample], None)
                append.append((time.perf_counter() - started) * 1e3)
                await asyncio.sleep(max(0.0, 0.005 - append[-1] / 1e3))
                started = time.perf_counter()
                os.pwrite(handle, pages, i % 500 * 8192)
                os.fdatasync(handle)
                disk.append((time.perf_counter() - started) * 1e3)
                await asyncio.sleep(max(0.0, 0.005 - disk[-1] / 1e3))
        finally:
            os.close(handle)
    return append, disk


def measure_append(folder: Path, recording: bytes, seconds: float) -> bool:
    append, disk = asyncio.run(append_and_sync(folder, recording, seconds))
    ours, floor = percentile(append, 99), percentile(disk, 99)
    print(
        f"append at 1,000 readings/s: p50 {statistics.median(append):.2f} ms, p99 {ours:.2f} ms; two pages and fdatasync: "
        f"p50 {statistics.median(disk):.2f} ms, p99 {floor:.2f} ms; ratio of p99 {ours / floor:.2f} (bar 2)"
    )
    return ours <= 2 * floor


def used_bytes(path: Path) -> int:
    """Pages of the file in use."""
    with closing(sqlite3.connect(path)) as db:
        (pages,) = db.execute("PRAGMA page_count").fetchone()
        (free,) = db.execute("PRAGMA freelist_count").fetchone()
    return (int(pages) - int(free)) * 4096


def measure_bytes(folder: Path, recording: bytes, readings: int) -> bool:
    """Three spools of the same readings; whether they keep their bar."""
    kept = True
    for name, per_commit in (("a frame", 1), ("70 readings", 7), ("a second", RATE // FRAME)):
        path = folder / f"bytes-{per_commit}.db"
        tables = Tables(path, Clock(), 1 << 30)
        empty, commits, warm, before = used_bytes(path), 0, 0, 0
        group: list[Sample] = []
        for sample in frames(recording, time.monotonic_ns(), readings):
            group.append(sample)
            if len(group) == per_commit:
                tables.commit({STREAM: group}, {}, {})
                tables.after_commit({})
                group = []
                commits += 1
                if commits == readings // FRAME // per_commit // 4:  # the log has its size
                    warm, before = commits, process_written()
        each = (process_written() - before) / (commits - warm)
        stored = (used_bytes(path) - empty) / readings
        tables.upkeep.run({})
        packed = (used_bytes(path) - empty) / readings
        blobs = sum(len(batch.blob) for batch in tables.read_after(0, 1 << 40)) / readings
        tables.close()
        gb_day = each * RATE * 86_400 / (per_commit * FRAME) / 1e9
        print(
            f"undelivered, a commit for {name}: {stored:.2f} bytes a reading, packed {packed:.2f} (bar 6; its batches "
            f"alone {blobs:.2f}); {each:,.0f} bytes written a commit, {gb_day:.2f} GB/day at {RATE}/s"
        )
        kept = kept and packed <= 6
    return kept


def measure_chart(folder: Path, recording: bytes) -> bool:
    path = folder / "month.db"
    start_wall = NOT_BEFORE_NS + 10 * 86_400 * 10**9
    end_mono = (MINUTES + 10) * MINUTE_NS
    clock = Clock(mono=lambda: end_mono, wall=lambda: start_wall + end_mono, error=lambda: 1000, boot="bench")
    tables = Tables(path, clock, 1 << 30)
    size = SCHEMA.record_size * RATE * 60
    real = [cells(SCHEMA, recording[at : at + size]) for at in range(0, len(recording) - size // 2, size // 4)]
    for sample in frames(recording, MINUTES * MINUTE_NS, 10 * 60 * RATE):
        tables.commit({STREAM: [sample]}, {}, {})
        tables.after_commit({"main": {STREAM: 1 << 60}})
    tables.upkeep.run({"main": {STREAM: 1 << 60}})
    for sample in frames(
        recording, end_mono, (COMMITS - 1) * FRAME
    ):  # as many as the writer ever leaves out of its books
        tables.commit({STREAM: [sample]}, {}, {})
    tables.close()
    with closing(sqlite3.connect(path)) as db:
        boot, stream, spec = (
            db.execute(f"SELECT max(id) FROM {table}").fetchone()[0] for table in ("boot", "stream", "spec")
        )
        db.executemany(
            "INSERT INTO rollup VALUES (?, ?, ?, ?, 0, ?, ?)",
            [(stream, boot, i, spec, RATE * 60, Minute(0, 0, real[i % len(real)]).pack()) for i in range(MINUTES)],
        )
        db.commit()
    took = []
    day = 86_400 * 10**9
    for i in range(30):
        to = start_wall + end_mono + 60 * 10**9 - i * day
        started = time.perf_counter()
        with Query(path) as query:  # opened anew each time, as the panel's page would
            found = query.series(STREAM, "current", to - day, to, 500)
        took.append((time.perf_counter() - started) * 1e3)
        assert 480 <= len(found) <= 501, len(found)
    print(f"a day of a month in 500 points: median {statistics.median(took):.1f} ms, worst {max(took):.1f} ms (bar 50)")
    return max(took) <= 50


async def written_mb_day(folder: Path, recording: bytes, rate: float, listening: bool, seconds: float) -> float:
    """`rate` readings/s in frames of up to 10, with the default settings; closing is not part of it."""
    path = folder / f"wear-{rate:g}-{listening}.db"
    async with Spool.open(path, Clock(), notify=told, **spool_settings(StoreTable(), ("main",))) as spool:
        spool.listening = lambda: listening
        await spool.append_row("events", BatchKind.EVENTS, b"{}")
        await asyncio.sleep(0.5)
        for sample in frames(recording, 0, 30 * FRAME if rate else 0):  # what quiet times have saved is used up
            await spool.append_samples([sample], None)
        before, started = process_written(), time.monotonic()
        if rate:
            per = int(min(FRAME, max(1, rate)))
            for sample in frames(recording, 0, int(seconds * rate), per):
                spool.append_samples([sample], None)
                await asyncio.sleep(per / rate)
        else:
            await asyncio.sleep(seconds)
        return (process_written() - before) / (time.monotonic() - started) * 86_400 / 1e6


def measure_wear(folder: Path, recording: bytes, seconds: float) -> bool:
    idle = asyncio.run(written_mb_day(folder, recording, 0, True, seconds))
    print(f"wear, nothing comes in: {idle:.1f} MB/day (bar 50)")
    for rate in (1.0, 200.0):
        for listening in (True, False):
            figure = asyncio.run(written_mb_day(folder, recording, rate, listening, seconds))
            print(f"wear, {rate:g} readings/s, {'an uplink up' if listening else 'no uplink'}: {figure:,.0f} MB/day")
    return idle <= 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20, help="of the append and of each wear measurement")
    parser.add_argument("--readings", type=int, default=200_000, help="of each spool whose bytes are counted")
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: the system's temporary folder")
    parser.add_argument("--only", choices=("append", "bytes", "chart", "wear"))
    args = parser.parse_args()
    recording = prepare().shape.read_bytes()
    with tempfile.TemporaryDirectory(prefix="octobench", dir=args.folder) as name:
        folder = Path(name)
        parts: dict[str, Callable[[], bool]] = {
            "append": partial(measure_append, folder, recording, args.seconds),
            "bytes": partial(measure_bytes, folder, recording, args.readings),
            "chart": partial(measure_chart, folder, recording),
            "wear": partial(measure_wear, folder, recording, args.seconds),
        }
        kept = [part() for key, part in parts.items() if args.only in (None, key)]
    sys.exit(not all(kept))


if __name__ == "__main__":
    main()
