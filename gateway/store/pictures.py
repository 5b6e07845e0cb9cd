"""Pictures that an event wants kept: files beside the spool, written whole or not at all, bounded in size."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

from gateway import durable
from gateway.contract import Frame
from gateway.errors import StoreError

SUFFIX = {"image/jpeg": ".jpg", "image/png": ".png"}


class Pictures:
    """A folder of pictures; past `max_bytes` the oldest goes first. Calls block: use a thread.

    Which is the oldest is said by a number in the name, not by a date: a clock that steps must not cost the newest.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._next = 0

    def keep(self, frame: Frame) -> tuple[str, str]:
        """Store one picture durably; its file name and SHA-256.

        Raises:
            StoreError: the disk refused.
        """
        digest = hashlib.sha256(frame.data).hexdigest()
        name = f"{self._number():08d}-{frame.source.replace('/', '.')}-{frame.stamp.boot[:8]}-{frame.stamp.mono_ns:020d}{SUFFIX[frame.media]}"
        path = self._folder / name
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._make_room(len(frame.data))
            durable.write_whole(path, frame.data)
        except OSError as error:
            raise StoreError(f"{path}: cannot keep the picture: {error.strerror}", hint="check the disk") from error
        return name, digest

    def _number(self) -> int:
        if not self._next and self._folder.is_dir():
            self._next = max(map(_number_of, os.listdir(self._folder)), default=-1) + 1
        self._next += 1
        return self._next - 1

    def _make_room(self, size: int) -> None:
        kept = sorted((_number_of(entry.name), entry.stat().st_size, entry.path) for entry in os.scandir(self._folder))
        total = sum(size for _, size, _ in kept) + size
        for _, old_size, path in kept:
            if total <= self._max_bytes:
                return
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            total -= old_size


def _number_of(name: str) -> int:
    """The number a picture's name begins with; -1 for one of an older version, which had none."""
    digits = name.partition("-")[0]
    return int(digits) if digits.isdecimal() and len(digits) >= 8 else -1
