"""A file that is only there to be deleted: on a full disk SQLite can neither delete nor checkpoint without some room."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

PART = 16  # of the disk, at most
LEAVE = 2  # made again only when it leaves this many times its size free


class Ballast:
    """`size` bytes beside the spool, really allocated, at most a part of a small disk; 0 is none. Calls block."""

    def __init__(self, spool: Path, size: int) -> None:
        self._path = spool.with_name(spool.name + ".ballast")
        self.size = min(size, shutil.disk_usage(spool.parent).total // PART) // 4096 * 4096

    def make(self) -> bool:
        """Have it there, if there is room enough for it to make sense; whether it is."""
        if not self.size:
            return False
        with contextlib.suppress(OSError):
            if self._path.stat().st_size == self.size:
                return True
        try:
            if shutil.disk_usage(self._path.parent).free < LEAVE * self.size:
                return False
            handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(handle, 0, self.size)
            finally:
                os.close(handle)
        except OSError:
            self.drop()
            return False
        return True

    def drop(self) -> bool:
        """Give its room back; whether there was any."""
        try:
            self._path.unlink()
        except OSError:
            return False
        return True
