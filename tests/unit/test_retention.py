"""What may be deleted and what not, and that the ledger and the consumer are told of every number."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.contract import BatchKind
from gateway.store.columns import Codec
from gateway.store.ledger import holes
from gateway.store.repack import WORTH
from gateway.store.retention import Policy, Priority, Rule
from tests.unit import spool_v1
from tests.unit.spools import DAY, Bench, Times

STREAM = "press/power"


def incompressible(size: int) -> bytes:
    return os.urandom(size // 2).hex().encode()


def fill(bench: Bench, streams: list[str], rows: int, size: int = 4000) -> None:
    """Rows that do not fit, in turn; room is made as the writer does it."""
    for i in range(rows):
        stream = streams[i % len(streams)]
        for _ in range(64):
            try:
                bench.row(stream, incompressible(size), BatchKind.INFERENCES)
                break
            except sqlite3.OperationalError:
                if not bench.tables.upkeep.make_room(bench.confirmed, disk=False):
                    raise


def test_nothing_undelivered_is_dropped_unless_the_config_says_so(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "spool.db")
    with pytest.raises(sqlite3.OperationalError, match="full"):
        fill(bench, ["a"], 1000)
    assert bench.batches("a")[0].seq_first == 0
    assert bench.ledger().dropped == ()


def test_the_lowest_priority_goes_first_oldest_first_and_events_last(tmp_path: Path) -> None:
    policy = Policy((Rule("low*", Priority.LOW), Rule("high*", Priority.HIGH)), drop=True)
    bench = Bench(tmp_path / "spool.db", policy=policy)
    fill(bench, ["low-1", "normal", "high", "events"], 300)
    ledger = bench.ledger()
    assert {entry.stream for entry in ledger.dropped} == {"low-1"}
    assert {entry.why for entry in ledger.dropped} == {"full"}
    fill(bench, ["normal"], 400)
    assert {entry.stream for entry in bench.ledger().dropped} == {"low-1", "normal"}
    fill(bench, ["high"], 600)
    assert {entry.stream for entry in bench.ledger().dropped} == {"low-1", "normal", "high"}
    fill(bench, ["events"], 600)
    ledger = bench.ledger()
    assert {entry.stream for entry in ledger.dropped} == {"low-1", "normal", "high", "events"}
    assert ledger.whole, "every number is in the spool or in the ledger"
    assert all(entry.n > 0 and entry.first for entry in ledger.dropped)


def test_what_was_sent_and_is_not_confirmed_goes_last(tmp_path: Path) -> None:
    """The consumer may have it: were it dropped here, the two ledgers would not agree."""
    bench = Bench(tmp_path / "spool.db", policy=Policy(drop=True))
    fill(bench, ["a"], 20)
    bench.deliver("a", 5)
    bench.tables.upkeep.maybe_sent["a"] = 12
    fill(bench, ["a"], 400)
    assert min(entry.seq_first for entry in bench.ledger().dropped) == 12
    numbers = [batch.seq_first for batch in bench.batches("a")]
    assert numbers[:8] == list(range(5, 13)), "and the gap comes behind it"
    bench.again()
    assert bench.tables.upkeep.maybe_sent == bench.tables.state.next_seq, "what the last run had sent nobody knows"
    bench.max_bytes = 1 << 20
    before = bench.ledger().streams[0].dropped["full"]
    fill(bench, ["a"], 400)
    ledger = bench.ledger()
    assert ledger.whole and ledger.streams[0].dropped["full"] > before, "when there is nothing else, it goes"


def test_a_gap_takes_the_place_of_what_was_dropped(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "spool.db", policy=Policy(drop=True))
    fill(bench, ["a", "b"], 600)
    codec = Codec()
    for stream in ("a", "b"):
        batches = bench.batches(stream)
        header, gap = codec.decode_gap(batches[0].blob)
        assert (header.kind, header.seq_first, gap.why, gap.kind) == (BatchKind.GAP, 0, "full", BatchKind.INFERENCES)
        assert sum(codec.check(b.blob).kind is BatchKind.GAP for b in batches) == 1, "one gap, however often it grew"
        assert [b.seq_first for b in batches] == [0, *[b.seq_first + b.n for b in batches][:-1]], "no hole"
        assert batches[-1].seq_first + batches[-1].n == bench.tables.state.next_seq[stream]
    # whoever sends on from anywhere comes by it before what follows it
    ids = [batch.id for batch in bench.tables.read_after(0, 1 << 30)]
    assert ids == sorted(ids)
    bench.deliver("a", bench.batches("a")[0].n)
    bench.tables.upkeep.make_room(bench.confirmed, disk=False)
    assert codec.check(bench.batches("a")[0].blob).kind is BatchKind.INFERENCES, "a gap that was told is forgotten"


def test_the_slowest_uplink_decides(tmp_path: Path) -> None:
    policy = Policy((Rule("*", keep_bytes=1),), uplinks=("main", "site"))
    bench = Bench(tmp_path / "spool.db", policy=policy)
    for _ in range(10):
        bench.readings(STREAM, 10)
    bench.deliver(STREAM, 100, "main")
    bench.upkeep()
    assert bench.numbers(STREAM) == list(range(100))
    bench.deliver(STREAM, 40, "site")
    bench.deliver(STREAM, 100, "of another config")
    bench.upkeep()
    assert bench.numbers(STREAM) == list(range(40, 100))
    bench.again()
    assert bench.confirmed["site"] == {STREAM: 40}
    ledger = bench.ledger()
    assert ledger.whole
    assert ledger.streams[0].delivered == {"main": 100, "site": 40}


def test_bytes_per_stream_bound_the_history_and_survive_a_restart(tmp_path: Path) -> None:
    policy = Policy((Rule("a", keep_bytes=20_000),))
    bench = Bench(tmp_path / "spool.db", policy=policy, max_bytes=8 << 20)
    for i in range(30):
        bench.row("a", incompressible(2000))
        bench.row("b", incompressible(2000))
        bench.deliver("a", i + 1)
        bench.deliver("b", i + 1)
    bench.again()
    bench.deliver("a", 30)
    bench.deliver("b", 30)
    bench.upkeep()
    sizes = {name: sum(len(batch.blob) for batch in bench.batches(name)) for name in ("a", "b")}
    assert 15_000 < sizes["a"] <= 20_000
    assert len(bench.batches("b")) == 30
    totals = bench.tables.upkeep.books.totals[bench.tables.state.ids["a"]]
    assert (totals.bytes, totals.batches) == (sizes["a"], len(bench.batches("a")))


def test_without_an_uplink_limits_delete_and_the_ledger_says_so(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "spool.db", policy=Policy((Rule("*", keep_bytes=20_000),), uplinks=()))
    for _ in range(30):
        bench.row("a", incompressible(2000))
    bench.upkeep()
    ledger = bench.ledger()
    assert ledger.whole
    assert ledger.streams[0].dropped == {"bytes": bench.batches("a")[0].seq_first}
    assert all(Codec().check(batch.blob).kind is BatchKind.EVENTS for batch in bench.batches("a")), "nobody to tell"


def test_age_is_time_switched_on(tmp_path: Path) -> None:
    times = Times()
    bench = Bench(tmp_path / "spool.db", times=times, policy=Policy((Rule("*", keep_ns=2 * DAY),)))
    for _ in range(5):
        bench.readings(STREAM, 10)
        times.wait(DAY)
    bench.deliver(STREAM, 50)
    bench.upkeep()
    assert bench.numbers(STREAM) == list(range(20, 50)), "the last minute that is too old may stay with what follows"


@pytest.mark.parametrize("years", [-30, -1, 1, 30])
@pytest.mark.parametrize("trusted", [True, False])
def test_no_step_of_the_wall_clock_deletes_or_keeps_anything(tmp_path: Path, years: int, trusted: bool) -> None:
    times = Times()
    bench = Bench(tmp_path / "spool.db", times=times, policy=Policy((Rule("*", keep_ns=2 * DAY),)))
    for _ in range(5):
        bench.readings(STREAM, 10)
        times.wait(DAY // 4)
        times.wall += years * 365 * DAY
        times.error = 10**6 if trusted else DAY
    bench.deliver(STREAM, 50)
    bench.upkeep()
    assert bench.numbers(STREAM) == list(range(50)), "a day and a quarter have passed, whatever the wall clock says"
    times.reboot("boot-2")
    bench.again()
    bench.readings(STREAM, 10)
    times.wait(DAY)
    bench.upkeep()
    assert bench.numbers(STREAM)[-1] == 59
    assert 0 < len(bench.numbers(STREAM)) <= 60
    assert bench.ledger().whole


def test_small_batches_become_large_ones_with_every_reading(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "spool.db", max_bytes=64 << 20)
    for _ in range(600):
        bench.readings(STREAM, 10)
    bench.deliver(STREAM, 5000)
    bench.upkeep()
    batches = bench.batches(STREAM)
    assert len(batches) < 200
    assert bench.numbers(STREAM) == list(range(6000))
    assert batches[0].n >= WORTH and sum(len(b.blob) for b in batches) < 6 * 6000
    totals = bench.tables.upkeep.books.totals[bench.tables.state.ids[STREAM]]
    assert (totals.batches, totals.bytes) == (len(batches), sum(len(b.blob) for b in batches))
    point = bench.tables.rewind_point({STREAM: 4321})
    after = bench.tables.read_after(point, 1 << 30)
    assert after[0].seq_first <= 4321 < after[0].seq_first + after[0].n


def test_a_spool_of_version_1_is_taken_over(tmp_path: Path) -> None:
    spool_v1.make(tmp_path / "spool.db")
    bench = Bench(tmp_path / "spool.db")
    assert bench.tables.recovered is None
    assert bench.tables.state.epoch == spool_v1.EPOCH
    assert bench.confirmed == {"main": {STREAM: spool_v1.CONFIRMED}}
    assert bench.numbers(STREAM) == list(range(300))
    assert bench.tables.state.marks["press"].next_seq == 29
    bench.readings(STREAM, 10)
    bench.upkeep()
    assert bench.tables.upkeep.books.totals[1].batches == 31
    assert bench.ledger().whole
    bench.again()
    assert bench.numbers(STREAM) == list(range(310))


def test_the_ledger_finds_what_is_missing(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "spool.db")
    for _ in range(10):
        bench.readings(STREAM, 10)
    with sqlite3.connect(tmp_path / "spool.db") as db:
        db.execute("DELETE FROM batch WHERE seq_first IN (30, 40)")
    db.close()
    ledger = bench.ledger()
    assert not ledger.whole
    assert ledger.streams[0].missing == ((30, 50),)


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40))), st.integers(0, 40))
def test_holes_are_what_no_range_covers(ranges: list[tuple[int, int]], end: int) -> None:
    covered = {number for first, last in ranges for number in range(first, last)}
    found = {number for first, last in holes([r for r in ranges if r[0] < r[1]], end) for number in range(first, last)}
    assert found == set(range(end)) - covered
