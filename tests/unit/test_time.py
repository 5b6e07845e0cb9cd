"""Time as design.md has it: sequence orders, monotonic time measures, wall time describes, as soon as it is known."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gateway.clock import NOT_BEFORE_NS, UNDISCIPLINED_NS, Clock
from gateway.contract import Severity
from gateway.store.export import Export, parse_time
from gateway.store.query import Query
from gateway.store.spool import Spool
from tests.unit.samples import counted
from tests.unit.spools import DAY, YEAR, Bench, Times

STREAM = "press/power"
SECOND = 10**9


def exported(bench: Bench, since: int | None = None, until: int | None = None) -> list[tuple[int, str | None]]:
    with Query(bench.path) as query:
        return [(row[0], row[1]) for row in Export(query, STREAM, since, until).rows()]


def test_a_clock_that_is_not_known_gives_no_wall_time() -> None:
    times = Times(wall=NOT_BEFORE_NS - 1)
    assert times.clock().now().wall_ns is None
    times.wall = NOT_BEFORE_NS
    stamp = times.clock().at(times.mono - SECOND)
    assert (stamp.wall_ns, stamp.uncertainty_ns) == (NOT_BEFORE_NS - SECOND, times.error)


def test_the_trust_of_a_clock_is_looked_up_when_it_becomes_known_and_then_now_and_then() -> None:
    times = Times(wall=0, error=UNDISCIPLINED_NS)
    clock = times.clock()
    assert clock.wall_offset_ns() is None
    times.wall, times.error = NOT_BEFORE_NS, 5
    assert clock.now(uncertainty_ns=2).uncertainty_ns == 7
    times.error = 9
    times.wait(SECOND)
    assert clock.now().uncertainty_ns == 5
    times.wait(10 * SECOND)
    assert clock.now().uncertainty_ns == 9


def test_the_machine_has_all_of_it() -> None:
    clock = Clock()
    first, second = clock.now(), clock.now()
    assert first.boot == second.boot != ""
    assert first.mono_ns <= second.mono_ns
    assert 0 < clock.wall_error_ns <= UNDISCIPLINED_NS or clock.wall_error_ns == 0


def test_what_was_read_before_the_clock_was_known_is_dated_later(tmp_path: Path) -> None:
    times = Times(wall=0)
    bench = Bench(tmp_path / "spool.db", times=times)
    bench.readings(STREAM, 5)
    bench.upkeep()
    assert [when for _, when in exported(bench)] == [None] * 5
    times.wait(3600 * SECOND)
    times.wall = parse_time("2027-05-01T12:00:00Z")
    bench.readings(STREAM, 5)
    bench.upkeep()
    when = [text for _, text in exported(bench)]
    assert when[0] == "2027-05-01T10:59:59.975000Z"
    assert when[5:] == [f"2027-05-01T11:59:59.{975 + 5 * i}000Z" for i in range(5)]
    with Query(bench.path) as query:
        hour = parse_time("2027-05-01T10:30:00Z")
        points = query.series(STREAM, "count", hour, hour + 3600 * SECOND, 10)
    assert sum(point.n for point in points) == 5


def test_the_next_boot_is_dated_on_its_own_and_the_last_stays_as_it_was(tmp_path: Path) -> None:
    times = Times(wall=parse_time("2027-05-01T12:00:00Z"))
    bench = Bench(tmp_path / "spool.db", times=times)
    bench.readings(STREAM, 2)
    bench.upkeep()
    times.reboot("boot-2")
    bench.again()
    bench.readings(STREAM, 2)
    bench.upkeep()
    assert [when is None for _, when in exported(bench)] == [False, False, True, True]
    times.wall, times.error = parse_time("2027-05-02T12:00:00Z"), 10**6
    bench.readings(STREAM, 2)
    bench.upkeep()
    dates = [when[:10] if when else None for _, when in exported(bench)]
    assert dates == ["2027-05-01"] * 2 + ["2027-05-02"] * 4


@pytest.mark.parametrize("years", [-5, 5])
def test_the_right_clock_dates_what_a_wrong_one_had_dated(tmp_path: Path, years: int) -> None:
    """An RTC that is years off, and then NTP: the offset with the smaller error wins."""
    right = parse_time("2035-05-01T12:00:00Z")
    times = Times(wall=right + years * YEAR, error=UNDISCIPLINED_NS)
    bench = Bench(tmp_path / "spool.db", times=times)
    bench.readings(STREAM, 3)
    bench.upkeep()
    times.wall, times.error = right, 10**6
    times.wait(60 * SECOND)
    bench.readings(STREAM, 3)
    bench.upkeep()
    rows = exported(bench)
    assert [when[:16] for _, when in rows if when] == ["2035-05-01T11:59"] * 3 + ["2035-05-01T12:00"] * 3
    assert [seq for seq, _ in rows] == list(range(6))


@pytest.mark.parametrize("years", [-20, 20])
def test_a_step_of_the_clock_changes_no_order_and_hides_nothing(tmp_path: Path, years: int) -> None:
    times = Times(wall=parse_time("2040-01-01"))
    bench = Bench(tmp_path / "spool.db", times=times)
    for i in range(6):
        if i % 2:
            times.wall += years * YEAR
        else:
            times.wall = parse_time("2040-01-01") + i * DAY
        bench.readings(STREAM, 10)
        times.wait(60 * SECOND)
    bench.upkeep()
    assert bench.numbers(STREAM) == list(range(60))
    assert [seq for seq, _ in exported(bench)] == list(range(60))
    assert bench.ledger().whole


@pytest.mark.parametrize("years", [-40, 40])
def test_commits_go_on_while_the_clock_steps(tmp_path: Path, years: int) -> None:
    """No timer of the spool looks at the wall clock."""
    times = Times()

    async def scenario() -> None:
        def told(name: str, state: str, severity: Severity, message: str) -> None:
            raise AssertionError(message)

        clock = Clock(wall=lambda: times.wall, error=lambda: times.error)
        async with Spool.open(tmp_path / "s.db", clock, commit_s=0.001, max_bytes=1 << 22, notify=told) as spool:
            for i in range(20):
                times.wall += years * YEAR * (1 if i % 2 else -1)
                async with asyncio.timeout(30):
                    await spool.append_samples([counted(STREAM, i, 1)], None)
            assert spool.next_seq() == {STREAM: 20}

    asyncio.run(scenario())


def test_times_are_written_as_they_are_read() -> None:
    assert parse_time("1970-01-02") == DAY
    assert parse_time("2027-05-01T14:00:00+02:00") == parse_time("2027-05-01T12:00:00Z")
    assert (
        parse_time("2027-05-01T12:00:00.25")
        == round(datetime(2027, 5, 1, 12, tzinfo=UTC).timestamp()) * SECOND + 25 * 10**7
    )


def test_the_spool_writes_down_what_dates_earlier_readings_with_the_first_commit_that_knows(tmp_path: Path) -> None:
    """No later upkeep is needed: a chart or an export by another process has the dates at once."""
    times = Times(wall=0, error=UNDISCIPLINED_NS)
    bench = Bench(tmp_path / "spool.db", times=times)
    bench.readings(STREAM, 5)
    times.wait(60 * SECOND)
    times.wall = parse_time("2027-05-01T12:00:00Z")
    bench.row("events", b"{}")
    assert [when[:16] if when else None for _, when in exported(bench)] == ["2027-05-01T11:58"] * 5
    times.wall, times.error = parse_time("2029-05-01T12:00:00Z"), 10**6
    times.wait(20 * SECOND)
    bench.row("events", b"{}")
    assert [when[:7] if when else None for _, when in exported(bench)] == ["2029-05"] * 5
    with Query(bench.path) as query:
        day = parse_time("2029-05-01")
        assert sum(point.n for point in query.series(STREAM, "count", day, day + DAY, 24)) == 5


def test_the_newest_time_of_a_source_outlives_the_daemon_and_not_the_boot(tmp_path: Path) -> None:
    times = Times()
    bench = Bench(tmp_path / "spool.db", times=times)
    assert bench.tables.newest("press") == {}
    bench.readings(STREAM, 5)
    bench.row("events", b"{}")
    newest = times.mono - 5_000_000
    bench.again()
    assert bench.tables.newest("press") == {STREAM: newest}
    assert bench.tables.newest("events") == {}
    times.reboot("boot-2")
    bench.again()
    assert bench.tables.newest("press") == {}
