"""What the disk had to take: bytes written, per stream and day, and what that means for a memory card.

The truth for a process is /proc/self/io (bytes it caused to be written to a device); the write-ahead log's share is
counted at its checkpoints. Days are days of the spool's life, not of the calendar.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

DAY_NS = 86_400 * 10**9
_FRAME = 4096 + 24  # a page in the log, with its header
_IO = Path("/proc/self/io")


def process_written() -> int:
    """Bytes this process caused to be written to disks; 0 where the kernel does not tell."""
    try:
        for line in _IO.read_text().splitlines():
            if line.startswith("write_bytes:"):
                return int(line.split()[1])
    except OSError:
        pass
    return 0


class WalMeter:
    """Counts the frames that went into a write-ahead log, from what checkpoints say."""

    def __init__(self, path: Path) -> None:
        self._wal = path.with_name(path.name + "-wal")
        self._round: int | None = None
        self._frames = 0
        self.bytes = 0

    def checkpointed(self, frames: int) -> None:
        """A checkpoint found so many frames in the log, since it was last begun anew."""
        try:
            with self._wal.open("rb") as file:
                head = file.read(32)  # https://www.sqlite.org/fileformat2.html#walformat
        except OSError:
            return
        if frames < 0 or len(head) < 32:
            return
        (began,) = struct.unpack_from(">I", head, 12)
        if began != self._round:
            self._round, self._frames = began, 0
        self.bytes += max(0, frames - self._frames) * _FRAME
        self._frames = max(frames, self._frames)


@dataclass(frozen=True, slots=True)
class Wear:
    """How fast a disk is written.

    Attributes:
        written: bytes in all, as far as the spool has seen.
        per_day: bytes a day, at the pace of the time that was measured; 0 while that is too short to say.
    """

    written: int
    per_day: float

    def years_left(self, card_tbw: float) -> float | None:
        """Until a card that is good for `card_tbw` terabytes is worn; None when that or the pace is not known."""
        if card_tbw <= 0 or self.per_day <= 0:
            return None
        return max(0.0, (card_tbw * 1e12 - self.written) / (self.per_day * 365.25))


def pace(written: int, seconds: float) -> float:
    """Bytes a day; 0 before a minute was measured."""
    return written / seconds * 86_400 if seconds >= 60 else 0.0
