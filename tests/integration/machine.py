"""What a machine does to the programs on it: its disk fills and empties again, its clock steps by years."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

FILL_AGAIN_S = 0.01
YEAR_S = 365 * 86_400


def can_mount() -> bool:
    """Whether this user may mount a file system of its own."""
    return os.geteuid() == 0


@contextmanager
def small_disk(folder: Path, mib: int) -> Iterator[Path]:
    """A file system of so many MiB (tmpfs; needs root)."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@asynccontextmanager
async def filled(disk: Path) -> AsyncIterator[None]:
    """Somebody else's file takes what is free, and whatever becomes free, until the block is left."""
    other = disk / "somebody-elses-file"

    async def go_on(handle: int) -> None:
        while True:
            fill(handle)
            await asyncio.sleep(FILL_AGAIN_S)

    handle = os.open(other, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        fill(handle)
        async with asyncio.TaskGroup() as tasks:
            filling = tasks.create_task(go_on(handle), name="filling the disk")
            try:
                yield
            finally:
                filling.cancel()
    finally:
        os.close(handle)
        other.unlink()


def fill(handle: int) -> None:
    """Write to this file until the disk has no page left."""
    for size in (1 << 20, 4096):
        with contextlib.suppress(OSError):  # ENOSPC
            while True:
                os.write(handle, bytes(size))


def faketime() -> Path | None:
    """Debian's libfaketime, which answers a program's questions for the time of day; None where it is not installed."""
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    return found[0] if found else None


class SteppedClock:
    """A wall clock for single programs. Monotonic time, the times of files and the machine's own clock stay as they are.

    Attributes:
        env: what a program must be started with to live by this clock; None where libfaketime is missing.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        library = faketime()
        self.env: dict[str, str] | None = None
        if library is not None:
            self.step(0)
            self.env = {
                **os.environ,
                "LD_PRELOAD": str(library),
                "FAKETIME_TIMESTAMP_FILE": str(file),
                "FAKETIME_NO_CACHE": "1",  # a step is seen by the next look at the clock
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
                "NO_FAKE_STAT": "1",
            }

    def step(self, years: float) -> None:
        """From now on it is `years` off the machine's own time."""
        new = self._file.with_name(self._file.name + ".new")
        new.write_text(f"{years * YEAR_S:+.0f}\n")
        new.replace(self._file)

    @staticmethod
    def sweep() -> None:
        """Remove what the library keeps of programs that were killed: the next one with such a pid would not start."""
        for file in Path("/dev/shm").glob("*faketime_*_*"):
            if not Path("/proc", file.name.rpartition("_")[2]).exists():
                file.unlink(missing_ok=True)
