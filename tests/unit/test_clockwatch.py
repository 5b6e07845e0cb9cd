"""What the gateway says of its clock, and that the kernel is asked to tell when it is set."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import clockwatch
from gateway.clock import NOT_BEFORE_NS, STEP_NS, UNDISCIPLINED_NS, Clock
from gateway.clockwatch import ClockWatch
from gateway.contract import Severity
from tests.unit.spools import DAY, YEAR, Times

SECOND = 10**9
KNOWN = NOT_BEFORE_NS + 30 * DAY
ARMED = "settime flags: 03"  # TFD_TIMER_ABSTIME and TFD_TIMER_CANCEL_ON_SET, as /proc/<pid>/fdinfo shows them


@dataclass
class Watched:
    """A clock that the test moves, and what was said of it."""

    folder: Path
    times: Times = field(default_factory=Times)
    said: list[tuple[str, str]] = field(default_factory=list)
    details: list[dict[str, Any]] = field(default_factory=list)
    turned: int = 0

    def __post_init__(self) -> None:
        self.watch = ClockWatch(self.times.clock(), self._notify, self._turn, self.folder)

    def _notify(self, name: str, state: str, severity: Severity, message: str, **detail: Any) -> None:
        assert message and severity is not Severity.ALARM
        self.said.append((name, state))
        self.details.append(detail)

    def _turn(self) -> None:
        self.turned += 1

    def look(self) -> list[tuple[str, str]]:
        """What is said at this look."""
        self.said, self.details = [], []
        self.watch.look()
        return self.said


def within(watch: ClockWatch, work: Callable[[], None]) -> None:
    async def scenario() -> None:
        with watch.watching():
            work()

    asyncio.run(scenario())


def test_a_clock_that_is_right_from_the_start_is_not_talked_about(tmp_path: Path) -> None:
    it = Watched(tmp_path)
    within(it.watch, lambda: None)
    it.times.wait(DAY)
    assert it.look() == [] == it.said
    assert it.turned == 0


def test_a_clock_becomes_known_by_ntp(tmp_path: Path) -> None:
    it = Watched(tmp_path, Times(wall=3600 * SECOND, error=UNDISCIPLINED_NS))
    within(it.watch, lambda: None)
    assert it.said == [("clock.unknown", "raised")]
    assert it.details == [{"source": "host", "offset_ns": None, "error_ns": UNDISCIPLINED_NS}]
    assert it.look() == []
    it.times.wall, it.times.error = KNOWN, 5
    assert it.look() == [("clock.unknown", "cleared"), ("clock.synchronised", "raised")]
    assert it.details[0] == {
        "source": "ntp",
        "offset_ns": KNOWN - it.times.mono,
        "error_ns": 5,
        "step_s": (KNOWN - 3600 * SECOND) / 1e9,
    }
    assert (it.look(), it.turned) == ([], 1)


def test_a_clock_is_synchronised_without_a_step_and_loses_it(tmp_path: Path) -> None:
    it = Watched(tmp_path, Times(error=UNDISCIPLINED_NS))
    it.times.error = 5
    assert it.look() == []  # the kernel's word of a moment ago is good for 10 s
    it.times.wait(10 * SECOND)
    assert it.look() == [("clock.synchronised", "raised")]
    assert it.details[0]["source"] == "ntp" and "step_s" not in it.details[0]
    it.times.error = UNDISCIPLINED_NS
    it.times.wait(10 * SECOND)
    assert it.look() == [("clock.synchronised", "cleared")]
    assert it.turned == 0


@pytest.mark.parametrize("years", [-3, 3])
def test_a_step_of_years_is_said_at_once_with_its_size(tmp_path: Path, years: int) -> None:
    it = Watched(tmp_path, Times(wall=KNOWN + 10 * YEAR))
    it.times.wall += years * YEAR
    it.times.error = UNDISCIPLINED_NS  # as settimeofday(2) leaves it
    assert it.look() == [("clock.stepped", "point"), ("clock.synchronised", "cleared")]
    assert it.details[0]["step_s"] == years * YEAR / 1e9
    assert it.details[0]["source"] == "host"
    assert it.turned == 1


def test_a_clock_that_is_set_to_before_this_software_is_not_known_any_more(tmp_path: Path) -> None:
    it = Watched(tmp_path)
    it.times.wall = 0
    assert it.look() == [("clock.unknown", "raised"), ("clock.synchronised", "cleared")]
    it.times.wall = KNOWN
    assert it.look() == [("clock.unknown", "cleared"), ("clock.synchronised", "raised")]
    assert it.turned == 2


def test_a_clock_that_runs_over_the_bound_becomes_known_without_a_step(tmp_path: Path) -> None:
    it = Watched(tmp_path, Times(wall=NOT_BEFORE_NS - SECOND))
    it.times.wait(2 * SECOND)
    assert it.look()[0] == ("clock.unknown", "cleared")
    assert it.details[0]["step_s"] == 0.0


@given(st.lists(st.integers(-3 * STEP_NS, 3 * STEP_NS), max_size=20))
def test_steps_are_said_when_they_add_up_to_more_than_the_bound(steps: list[int]) -> None:
    it = Watched(Path("/nowhere"))
    told = it.times.wall
    for step in steps:
        it.times.wall += step
        expected = abs(it.times.wall - told) > STEP_NS
        assert it.look() == ([("clock.stepped", "point")] if expected else [])
        if expected:
            assert it.details[0]["step_s"] == round((it.times.wall - told) / 1e9, 3)
            told = it.times.wall


def test_a_process_that_had_to_wait_between_the_two_clocks_has_seen_no_step(tmp_path: Path) -> None:
    late = [0, 0, 0, 0]  # what passes between reading one clock and the other, a read each
    mono, said = 10**12, []
    clock = Clock(mono=lambda: mono, wall=lambda: KNOWN + (late.pop() if late else 0), error=lambda: 5, boot="b")
    watch = ClockWatch(clock, lambda *args, **_: said.append(args[0]), rtc=tmp_path)
    late[:] = [3 * STEP_NS]
    watch.look()
    assert said == []


def test_the_source_of_a_clock_that_nothing_keeps_is_the_battery_if_the_kernel_says_so(tmp_path: Path) -> None:
    (tmp_path / "rtc0").mkdir()
    (tmp_path / "rtc0" / "hctosys").write_text("0\n")
    (tmp_path / "rtc1").mkdir()
    for flag, source in (("0\n", "host"), ("1\n", "rtc")):
        (tmp_path / "rtc1" / "hctosys").write_text(flag)
        it = Watched(tmp_path, Times(wall=NOT_BEFORE_NS - SECOND, error=UNDISCIPLINED_NS))
        it.times.wait(2 * SECOND)
        assert it.look() == [("clock.unknown", "cleared")]
        assert it.details[0]["source"] == source


def armed() -> list[str]:
    """The timers of this process that are cancelled when the clock is set, as the kernel lists them."""
    found = []
    for entry in os.listdir("/proc/self/fdinfo"):
        try:
            info = Path(f"/proc/self/fdinfo/{entry}").read_text()
        except FileNotFoundError:
            continue  # the one that the listing itself had
        if ARMED in info:
            found.append(info)
    return found


def test_the_kernel_is_asked_to_tell_when_the_clock_is_set_and_wakes_nobody_else(tmp_path: Path) -> None:
    it, seen = Watched(tmp_path), []
    within(it.watch, lambda: seen.extend(armed()))
    (timer,) = seen
    assert "clockid: 0" in timer and "it_interval: (0, 0)" in timer
    (seconds,) = [line.split("(")[1].split(",")[0] for line in timer.splitlines() if line.startswith("it_value")]
    assert int(seconds) > 100 * YEAR / SECOND  # it is not a tick
    assert armed() == []


def test_the_kernels_word_makes_it_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A simulation of that word, for a test must not set the machine's clock: a pipe that becomes readable."""
    it = Watched(tmp_path)
    reader, writer = os.pipe2(os.O_NONBLOCK)
    monkeypatch.setattr(clockwatch, "_timer", lambda: reader)

    async def scenario() -> None:
        heard = asyncio.Event()
        it.watch._turned = heard.set
        with it.watch.watching():
            it.times.wall += YEAR
            os.write(writer, bytes(8))
            async with asyncio.timeout(10):
                await heard.wait()

    asyncio.run(scenario())
    os.close(writer)
    assert it.said == [("clock.stepped", "point")]


@pytest.mark.parametrize("number", [errno.ECANCELED, errno.EAGAIN])
def test_how_the_kernel_says_that_the_clock_was_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    it = Watched(tmp_path)

    def read(_fd: int, _n: int) -> bytes:
        raise OSError(number, "as timerfd_create(2) says")

    monkeypatch.setattr(os, "read", read)
    it.times.wall -= YEAR
    it.watch._set(-1)
    assert it.said[0][0] in ("clock.stepped", "clock.unknown")


def test_without_such_a_timer_it_is_seen_at_the_next_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> int:
        raise OSError(errno.ENOSYS, "no such call")

    monkeypatch.setattr(clockwatch, "_timer", none)
    it = Watched(tmp_path)
    within(it.watch, lambda: None)
    it.times.wall += YEAR
    assert it.look() == [("clock.stepped", "point")]


def test_an_offset_never_gets_the_error_of_another(tmp_path: Path) -> None:
    """NTP sets the clock right between reading it and asking how right it is."""
    times = Times(wall=KNOWN - 5 * DAY + 10 * DAY, error=UNDISCIPLINED_NS)
    wrong = times.wall

    def error() -> int:
        times.wall, times.error = wrong + 10 * YEAR, 5
        return times.error

    clock = Clock(mono=lambda: times.mono, wall=lambda: times.wall, error=error, boot="b")
    assert clock.wall() == (wrong - times.mono, UNDISCIPLINED_NS)
    assert clock.wall() == (times.wall - times.mono, 5)
