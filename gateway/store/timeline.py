"""From the monotonic times of many boots to times of day, and back.

A reading is dated with the best offset that was ever known for its boot: the one with the smallest error, be it its own
batch's or one that became known later. So what was taken before the clock was right is dated as soon as it is.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from gateway.store.columns import Header


@dataclass(frozen=True, slots=True)
class Boot:
    """One boot of the machine; `offset_ns` is UTC minus monotonic time, None while that was never known."""

    row: int
    boot: str
    offset_ns: int | None
    error_ns: int


class Timeline:
    """The boots a spool has seen, oldest first."""

    def __init__(self, boots: Sequence[Boot]) -> None:
        self.boots = tuple(boots)
        self._by_id = {boot.boot: boot for boot in boots}
        self._by_row = {boot.row: boot for boot in boots}

    @classmethod
    def of(cls, db: sqlite3.Connection) -> Timeline:
        """As the spool has it now."""
        rows = db.execute("SELECT id, boot, wall_offset_ns, coalesce(wall_error_ns, 0) FROM boot ORDER BY id")
        return cls([Boot(*row) for row in rows.fetchall()])

    def offset_ns(self, header: Header) -> int | None:
        """What dates the readings of a batch, None when that is still not known."""
        boot = self._by_id.get(header.boot)
        if boot is None or boot.offset_ns is None:
            return header.wall_offset_ns
        if header.wall_offset_ns is None or boot.error_ns < header.wall_error_ns:
            return boot.offset_ns
        return header.wall_offset_ns

    def wall_ns(self, row: int, mono_ns: int) -> int | None:
        """The time of day of a moment of a boot, by the boot's row."""
        boot = self._by_row.get(row)
        return None if boot is None or boot.offset_ns is None else mono_ns + boot.offset_ns
