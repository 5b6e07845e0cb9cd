"""Watches the wall clock without a tick: that it becomes known, is set, or gets or loses what keeps it right.

Three occasions, and no timer: the start; the kernel's word that CLOCK_REALTIME was set (timerfd_create(2),
TFD_TIMER_CANCEL_ON_SET); and each commit, when a batch is stamped anyway. Only the last sees a clock become
synchronised without being set (adjtimex(2), STA_UNSYNC cleared), and all of it where the kernel says nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from gateway.clock import STEP_NS, UNDISCIPLINED_NS, Clock
from gateway.contract import Severity

log = logging.getLogger("octogate")

_RTC = Path("/sys/class/rtc")
# include/uapi/linux/time.h and timerfd.h; os.timerfd_create is there from Python 3.13 on
_CLOCK_REALTIME, _TFD_TIMER_ABSTIME, _TFD_TIMER_CANCEL_ON_SET = 0, 1, 2
_NEVER_S = 1 << 33 if ctypes.sizeof(ctypes.c_long) == 8 else (1 << 31) - 1  # the years 2242 and 2038


class Notify(Protocol):
    def __call__(self, name: str, state: str, severity: Severity, message: str, **detail: Any) -> None: ...


@dataclass(frozen=True, slots=True)
class _Seen:
    """The clock at a look: what it tells, whether that can be right, and whether something keeps it right."""

    told_ns: int  # UTC minus monotonic time
    known: bool
    kept: bool


class ClockWatch:
    """Says what the wall clock did, as events; `look` is cheap enough for every commit.

    Args:
        clock: which clock.
        notify: told of `clock.unknown` (raised, cleared), `clock.stepped` (point) and `clock.synchronised` (raised,
            cleared). Details: `step_s`, `source` (ntp, rtc, host), and `offset_ns` and `error_ns` of this boot as they
            now are.
        turned: called after the clock has become known or was set: what was dated before is to be dated anew.
        rtc: where the kernel lists the clocks that have a battery.
    """

    def __init__(
        self, clock: Clock, notify: Notify, turned: Callable[[], None] = lambda: None, rtc: Path = _RTC
    ) -> None:
        self._clock = clock
        self._notify = notify
        self._turned = turned
        self._at_boot = "rtc" if _set_by_rtc(rtc) else "host"
        self._was = self._seen()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Say how the clock is if it is not known, and look whenever it is set until the block is left."""
        self._was = self._seen()
        if not self._was.known:
            self._say("clock.unknown", "raised", Severity.WARNING, "the time of day is not known yet", self._at_boot)
        with contextlib.ExitStack() as stack:
            try:
                fd = _timer()
            except OSError as error:
                log.warning("the kernel does not say when the clock is set (%s): the next commit notices", error)
            else:
                loop = asyncio.get_running_loop()
                stack.callback(os.close, fd)
                loop.add_reader(fd, self._set, fd)
                stack.callback(loop.remove_reader, fd)
            yield

    def look(self) -> None:
        """Compare the clock with what it was when something was last said of it."""
        was, now = self._was, self._seen()
        stepped = abs(now.told_ns - was.told_ns) > STEP_NS
        if not stepped and (now.known, now.kept) == (was.known, was.kept):
            return
        if stepped and abs(self._clock.told_offset_ns() - was.told_ns) <= STEP_NS:
            return  # it was not set: this process had to wait between reading the two clocks
        self._was = now
        step_s = round((now.told_ns - was.told_ns) / 1e9, 3) if stepped else 0.0
        source = "ntp" if now.kept else "host" if stepped else self._at_boot
        if now.known and not was.known:
            what = (
                f"the time of day is known: the clock was set by {step_s:+} s; earlier readings of this boot are dated"
            )
            self._say("clock.unknown", "cleared", Severity.INFO, what, source, step_s)
        elif was.known and not now.known:
            what = f"the clock was set by {step_s:+} s, to before this software was made: the time of day is not known"
            self._say("clock.unknown", "raised", Severity.WARNING, what, source, step_s)
        elif stepped:
            self._say("clock.stepped", "point", Severity.WARNING, f"the clock was set by {step_s:+} s", source, step_s)
        if now.kept and not was.kept:
            self._say("clock.synchronised", "raised", Severity.INFO, "the clock is kept right", source)
        elif was.kept and not now.kept:
            self._say("clock.synchronised", "cleared", Severity.WARNING, "nothing keeps the clock right", source)
        if stepped or now.known != was.known:
            self._turned()

    def _seen(self) -> _Seen:
        offset, error = self._clock.wall()
        told_ns = self._clock.told_offset_ns() if offset is None else offset
        return _Seen(told_ns, offset is not None, offset is not None and error < UNDISCIPLINED_NS)

    def _say(
        self, name: str, state: str, severity: Severity, message: str, source: str, step_s: float | None = None
    ) -> None:
        offset, error = self._clock.wall()
        more = {} if step_s is None else {"step_s": step_s}
        self._notify(name, state, severity, message, source=source, offset_ns=offset, error_ns=error, **more)

    def _set(self, fd: int) -> None:
        """The descriptor is readable: the clock was set."""
        try:
            os.read(fd, 8)
        except OSError as error:
            if error.errno not in (errno.ECANCELED, errno.EAGAIN):
                raise
        self.look()


class _Timespec(ctypes.Structure):
    _fields_ = (("s", ctypes.c_long), ("ns", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


def _timer() -> int:
    """A timer that never ends, but is cancelled whenever the clock is set; OSError when the kernel has none."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = int(libc.timerfd_create(_CLOCK_REALTIME, os.O_NONBLOCK | os.O_CLOEXEC))
    never = _Itimerspec(value=_Timespec(s=_NEVER_S))
    how = _TFD_TIMER_ABSTIME | _TFD_TIMER_CANCEL_ON_SET
    if fd < 0 or libc.timerfd_settime(fd, how, ctypes.byref(never), None) < 0:
        number = ctypes.get_errno()
        if fd >= 0:
            os.close(fd)
        raise OSError(number, os.strerror(number))
    return fd


def _set_by_rtc(folder: Path) -> bool:
    """Whether the kernel took the time from a clock with a battery at boot (Documentation/ABI/testing/rtc-cdev)."""
    for flag in folder.glob("*/hctosys"):
        with contextlib.suppress(OSError):
            if flag.read_text().strip() == "1":
                return True
    return False
