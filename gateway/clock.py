"""Boot id, monotonic time, wall time, and how far each can be trusted.

Order never comes from here (sequence numbers do); deadlines, watchdogs and ages use `mono_ns` only. The wall clock
counts as known when it is not older than this software; how far it may be wrong is the kernel's bound while something
disciplines it (NTP, PTP), and a day while nothing does: an RTC may hold anything. Who dates a reading therefore prefers
the offset of its boot with the smallest error (`gateway.store.timeline`).
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from pathlib import Path

from gateway.contract import Stamp

# Nothing that this version does can have happened before it was written: 2026-11-01T00:00:00Z.
NOT_BEFORE_NS = 1_793_491_200 * 10**9
UNDISCIPLINED_NS = 86_400 * 10**9
# CLOCK_REALTIME and CLOCK_MONOTONIC are slewed alike, so what is between them changes only when the clock is set. More
# than this is a step: less than the smallest that an NTP daemon makes (ntpd 128 ms, systemd-timesyncd 400 ms, chrony
# 1 s), more than lies between reading the two clocks unless this process had to wait for the processor.
STEP_NS = 100 * 10**6
UNKNOWN_BOOT = "unknown"  # where the kernel does not say: boots cannot be told from each other
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_STA_UNSYNC = 0x0040  # include/uapi/linux/timex.h
_TRUST_FOR_NS = 10 * 10**9  # how long one look at the kernel's discipline is good for


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
    """The time of this machine, with its trust.

    Args:
        mono: CLOCK_MONOTONIC, nanoseconds.
        wall: UTC since 1970, nanoseconds, right or wrong.
        error: the bound of the wall clock's error, nanoseconds; `UNDISCIPLINED_NS` while there is none.
        boot: the boot id. Each of the four is the machine's own when it is left out; tests give theirs.
    """

    def __init__(
        self,
        *,
        mono: Callable[[], int] = time.monotonic_ns,
        wall: Callable[[], int] = time.time_ns,
        error: Callable[[], int] | None = None,
        boot: str | None = None,
    ) -> None:
        self.boot = _boot_id() if boot is None else boot
        self.mono_ns = mono
        self._wall = wall
        self._error = _kernel_error() if error is None else error
        # when, offset and error of the last look at the kernel's discipline; replaced as one, for two threads ask
        self._looked: tuple[int, int, int] | None = None

    @property
    def wall_error_ns(self) -> int:
        """How far the last `wall_offset_ns` may be off."""
        looked = self._looked
        return UNDISCIPLINED_NS if looked is None else looked[2]

    def now(self, uncertainty_ns: int = 0) -> Stamp:
        """A stamp of this moment; `uncertainty_ns` of the event itself is added to the clock's."""
        return self.at(self.mono_ns(), uncertainty_ns)

    def at(self, mono_ns: int, uncertainty_ns: int = 0) -> Stamp:
        """A stamp of a moment of this boot, given in monotonic time."""
        offset, error = self.wall()
        if offset is None:
            return Stamp(self.boot, mono_ns, None, uncertainty_ns)
        return Stamp(self.boot, mono_ns, mono_ns + offset, uncertainty_ns + error)

    def wall_offset_ns(self) -> int | None:
        """What must be added to a monotonic time of this boot to get UTC; None while that is not known."""
        return self.wall()[0]

    def wall(self) -> tuple[int | None, int]:
        """What `wall_offset_ns` says, and how far it may be off, ns."""
        mono, wall = self.mono_ns(), self._wall()
        if wall < NOT_BEFORE_NS:
            self._looked = None  # when it becomes right, look at once who says so
            return None, UNDISCIPLINED_NS
        offset, looked = wall - mono, self._looked
        if looked is None or mono - looked[0] >= _TRUST_FOR_NS or abs(offset - looked[1]) > STEP_NS:
            error = self._error()
            if abs(self.told_offset_ns() - offset) > STEP_NS:  # set just now: the error is not that of this offset
                return offset, UNDISCIPLINED_NS
            self._looked = looked = (mono, offset, error)
        return offset, looked[2]

    def told_offset_ns(self) -> int:
        """UTC minus monotonic time as the machine tells it, whether or not that can be right."""
        mono = self.mono_ns()
        return self._wall() - mono

    def told_ms(self, mono_ns: int) -> int:
        """A moment of this boot in ms since 1970, UTC, as the machine tells it now, right or wrong; never negative.

        For formats that must have a time and cannot say that it is not known (Sparkplug); `at` says it.
        """
        return max(0, mono_ns + self.told_offset_ns()) // 1_000_000


def _kernel_error() -> Callable[[], int]:
    """The kernel's bound of the wall clock's error, ns; `UNDISCIPLINED_NS` when nothing disciplines the clock."""
    libc = ctypes.CDLL(None, use_errno=True)

    def look() -> int:
        timex = _Timex()
        if libc.adjtimex(ctypes.byref(timex)) < 0 or timex.status & _STA_UNSYNC:
            return UNDISCIPLINED_NS
        return int(timex.maxerror) * 1000

    return look


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return UNKNOWN_BOOT
