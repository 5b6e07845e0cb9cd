"""Boot id, monotonic time, wall time, and how far each can be trusted.

Order never comes from here (sequence numbers do); deadlines and watchdogs use `mono_ns` only. The wall clock counts as
known when the kernel says that something disciplines it (NTP, PTP) and it is not older than this software.
"""

from __future__ import annotations

import ctypes
import time
from pathlib import Path

from gateway.contract import Stamp

# Nothing that this version does can have happened before it was written: 2026-11-01T00:00:00Z.
NOT_BEFORE_NS = 1_793_491_200 * 10**9
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_STA_UNSYNC = 0x0040  # include/uapi/linux/timex.h
_TRUST_FOR_NS = 10 * 10**9  # how long one look at the kernel's discipline is good for
_UNDISCIPLINED_NS = 10**9


class _Timex(ctypes.Structure):
    """`struct timex` of adjtimex(2), as far as it is read here; the rest is room."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),  # microseconds
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("room", ctypes.c_char * 256),
    )


class Clock:
    """The time of this machine, with its trust."""

    def __init__(self) -> None:
        self.boot = _boot_id()
        self._looked_ns = -_TRUST_FOR_NS
        self.wall_error_ns = _UNDISCIPLINED_NS  # of the last `wall_offset_ns`
        self._libc = ctypes.CDLL(None, use_errno=True)

    def mono_ns(self) -> int:
        """CLOCK_MONOTONIC in nanoseconds."""
        return time.monotonic_ns()

    def now(self, uncertainty_ns: int = 0) -> Stamp:
        """A stamp of this moment; `uncertainty_ns` of the event itself is added to the clock's."""
        return self.at(time.monotonic_ns(), uncertainty_ns)

    def at(self, mono_ns: int, uncertainty_ns: int = 0) -> Stamp:
        """A stamp of a moment of this boot, given in monotonic time."""
        offset = self.wall_offset_ns()
        if offset is None:
            return Stamp(self.boot, mono_ns, None, uncertainty_ns)
        return Stamp(self.boot, mono_ns, mono_ns + offset, uncertainty_ns + self.wall_error_ns)

    def wall_offset_ns(self) -> int | None:
        """What must be added to a monotonic time of this boot to get UTC; None while that is not known."""
        mono, wall = time.monotonic_ns(), time.time_ns()
        if wall < NOT_BEFORE_NS:
            return None
        if mono - self._looked_ns >= _TRUST_FOR_NS:
            self._looked_ns, self.wall_error_ns = mono, self._discipline()
        return wall - mono

    def _discipline(self) -> int:
        """The kernel's bound of the wall clock's error, ns; a second when nothing disciplines the clock."""
        timex = _Timex()
        if self._libc.adjtimex(ctypes.byref(timex)) < 0 or timex.status & _STA_UNSYNC:
            return _UNDISCIPLINED_NS
        return int(timex.maxerror) * 1000


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return "unknown"
