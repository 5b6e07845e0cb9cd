"""The birth/death sequence number: which NDEATH belongs to which NBIRTH, kept across restarts."""

from __future__ import annotations

import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)
_MAX_FILE = 16


class BirthCount:
    """Counts CONNECT packets from 0 to 255 and around.

    The file is replaced by a rename and not synced: after a power cut an older number, or 0, is as good to a host, which
    only compares a death with the birth before it.

    Args:
        path: where the last number is kept, one line.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._last = _read(path)

    @property
    def next(self) -> int:
        """What the next CONNECT's will shall carry."""
        return (self._last + 1) % 256

    def connected(self) -> None:
        """That CONNECT has been sent."""
        self._last = self.next
        new = self._path.with_suffix(".new")
        try:
            new.write_text(f"{self._last}\n")
            os.replace(new, self._path)
        except OSError as error:  # a full disk must not keep the gateway off the network
            log.warning("%s: cannot keep bdSeq: %s", self._path, error.strerror)


def _read(path: Path) -> int:
    """The last number; -1 when there is none, so that counting starts at 0."""
    try:
        with path.open() as file:
            number = int(file.read(_MAX_FILE))
    except (OSError, ValueError):
        return -1
    return number if 0 <= number <= 255 else -1
