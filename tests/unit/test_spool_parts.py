"""The small parts of the spool: pace, ballast, wear, pictures; and several uplinks on one spool."""

from __future__ import annotations

import asyncio
import os
import shutil
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.clock import Clock
from gateway.contract import BatchKind, Frame, Severity, Stamp
from gateway.errors import StoreError
from gateway.store.ballast import Ballast
from gateway.store.columns import Codec, Gap, Header, with_header
from gateway.store.pace import OWED_S, PIECES, SAVED_S, Pace
from gateway.store.pictures import Pictures
from gateway.store.retention import Policy
from gateway.store.spool import Spool
from gateway.store.wear import WalMeter, Wear, pace
from sdk.ingest.batches import Arrived, Counts
from sdk.ingest.sqlite import SqliteSink
from sdk.ingest.store import Table
from tests.unit.samples import SCHEMA, counted

STREAM = "press/power"


def nothing_told(name: str, state: str, severity: Severity, message: str) -> None:
    raise AssertionError(message)


# --- pace --------------------------------------------------------------------------------------------------------


def test_somebody_who_listens_waits_the_short_window() -> None:
    window = Pace(0.02, 1.0)
    assert window.due(5.0, eager=False, listening=True) == 5.02
    assert window.due(5.0, eager=False, listening=False) == 6.0
    assert window.due(5.0, eager=True, listening=False) == 5.02


def test_a_slow_disk_widens_the_window_and_the_declared_one_bounds_it() -> None:
    window = Pace(0.02, 0.5)
    for _ in range(100):
        window.took(0.1, 0.0)
    assert 0.19 < window.due(0.0, eager=True, listening=True) <= 0.2
    for _ in range(100):
        window.took(10.0, 0.0)
    assert window.due(0.0, eager=True, listening=True) == 0.5


def test_without_a_declared_window_the_wait_is_fixed() -> None:
    window = Pace(0.02, 0.0, wear_day=1.0, written=iter(range(0, 10**9, 10**6)).__next__)
    window.took(5.0, 0.0)
    for eager in (True, False):
        assert window.due(0.0, eager=eager, listening=True) == 0.02
        assert window.due(0.0, eager=eager, listening=False) == 0.02


class Disk:
    """What was written to it, as `Pace` asks."""

    def __init__(self) -> None:
        self.bytes = 0

    def written(self) -> int:
        return self.bytes


@given(cost=st.integers(1000, 10**6), rate=st.floats(1, 500), budget=st.floats(1e8, 1e11))
def test_a_steady_flow_keeps_the_budget_or_waits_the_whole_window(cost: int, rate: float, budget: float) -> None:
    """The same bytes a commit, readings of one rate: an hour's worth is simulated by its commits."""
    disk, now, last = Disk(), 1000.0, 0.0
    window = Pace(0.02, 1.0, budget, disk.written)
    waits = []
    for _ in range(2000):
        first = now + 1 / rate  # the next reading
        now = max(first, window.due(first, eager=False, listening=True))
        waits.append(now - first)
        last = disk.bytes
        disk.bytes += cost
        window.took(0.0, now)
    assert min(waits) >= 0.02 - 1e-6 and max(waits) <= 1.0 + 1e-6
    allowed = (now - 1000.0 + SAVED_S) * budget / 86_400
    assert last <= allowed + 1 or waits[-1] > 1.0 - 1e-6, "over the budget although it could have waited"
    if cost * 86_400 / (0.02 + 1 / rate) < budget / 2:
        assert max(waits) < 0.021, "waited although the budget was not used"


def test_what_is_urgent_does_not_wait_for_the_budget() -> None:
    disk = Disk()
    window = Pace(0.02, 1.0, 1e9, disk.written)
    disk.bytes = 10**9  # a bundle came in
    window.took(0.0, 100.0)
    assert window.due(100.0, eager=False, listening=True) == 101.0
    assert window.due(100.0, eager=True, listening=True) == 100.02
    after = 100.0 + OWED_S
    assert window.due(after, eager=False, listening=True) == pytest.approx(after + 0.02), "forgiven after a while"


def test_what_comes_after_a_pause_is_no_steady_flow() -> None:
    window = Pace(0.02, 1.0)
    assert [window.begins(i * 0.9) for i in range(10)] == [False] * 8 + [True] * 2
    assert [window.begins(now) for now in (8.2, 9.3, 9.4)] == [True, False, False]


def test_a_flow_that_waits_its_whole_window_stays_one() -> None:
    window, now, steady = Pace(0.02, 1.0), 0.0, []
    for _ in range(30):
        now += 0.05  # to the next reading
        steady.append(window.begins(now))
        now = window.due(now, eager=not steady[-1], listening=False)
        window.ends(now)  # the next reading may well come before the commit is over
    assert steady == [False] * 8 + [True] * 22


def test_commits_are_rare_while_nobody_listens_and_events_do_not_wait(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Spool.open(
            tmp_path / "s.db", Clock(), commit_s=0.001, durability_s=2.0, max_bytes=1 << 22, notify=nothing_told
        ) as spool:
            loop = asyncio.get_running_loop()
            spool.listening = lambda: False
            for i in range(8):  # the first after a pause are taken soon
                await asyncio.wait_for(spool.append_samples([counted(STREAM, i, 1)], None), 1.5)
            waiting = spool.append_samples([counted(STREAM, 8, 1)], None)
            started = loop.time()
            done, _ = await asyncio.wait([waiting], timeout=0.3)
            assert not done
            await spool.append_row("events", BatchKind.EVENTS, b"{}")
            assert waiting.done(), "they share the commit"
            assert loop.time() - started < 1.5
            waiting = spool.append_samples([counted(STREAM, 9, 1)], None)
            spool.listening = lambda: True
            await spool.rewind_point({})  # an uplink is back
            await asyncio.wait_for(waiting, 1.5)
            spool.listening = lambda: False
            many = [spool.append_samples([counted(STREAM, 10 + i, 1)], None) for i in range(PIECES)]
            await asyncio.wait_for(asyncio.gather(*many), 1.5)  # a node's ring is not filled while it waits

    asyncio.run(scenario())


# --- several uplinks ---------------------------------------------------------------------------------------------


def test_each_uplink_has_its_own_watermark(tmp_path: Path) -> None:
    policy = Policy(uplinks=("cloud", "site"))

    async def scenario() -> None:
        async with Spool.open(
            tmp_path / "s.db", Clock(), commit_s=0.001, max_bytes=1 << 22, notify=nothing_told, policy=policy
        ) as spool:
            await spool.append_samples([counted(STREAM, 0, 10)], None)
            cloud, site = spool.uplink("cloud"), spool.uplink("site")
            cloud.confirm({STREAM: 8})
            cloud.confirm({STREAM: 6})
            assert (cloud.confirmed(), site.confirmed()) == ({STREAM: 8}, {})
            assert spool.delivered(STREAM) == 0
            assert spool.status().backlog == 10
            site.confirm({STREAM: 3})
            assert spool.delivered(STREAM) == 3
            assert (site.epoch, site.head) == (spool.epoch, spool.head)
            assert await site.read_after(await site.rewind_point({STREAM: 10})) == []
        async with Spool.open(
            tmp_path / "s.db", Clock(), commit_s=0.001, max_bytes=1 << 22, notify=nothing_told, policy=policy
        ) as spool:
            assert (spool.confirmed("cloud"), spool.confirmed("site")) == ({STREAM: 8}, {STREAM: 3})

    asyncio.run(scenario())


# --- gaps on the wire --------------------------------------------------------------------------------------------


def a_header(kind: BatchKind, seq: int, n: int) -> Header:
    spec = SCHEMA.spec() if kind is BatchKind.SAMPLES else ""
    return Header(b"e" * 16, STREAM, seq, n, kind, spec, "boot", None, 0)


@given(st.integers(0, 1 << 60), st.integers(1, 1 << 20), st.text(max_size=20))
def test_a_gap_reads_as_it_was_written(seq: int, n: int, why: str) -> None:
    header, gap = a_header(BatchKind.GAP, seq, n), Gap(why, BatchKind.SAMPLES, "boot", 5)
    blob = Codec().encode_gap(header, gap)
    assert Codec().decode_gap(blob) == (header, gap)
    changed = a_header(BatchKind.GAP, seq + 1, n)
    assert Codec().decode_gap(with_header(blob, changed)) == (changed, gap)


def test_what_is_no_gap_is_refused() -> None:
    blob = Codec().encode_rows(a_header(BatchKind.GAP, 0, 1), [b'{"why": 3}'])
    with pytest.raises(StoreError, match="is damaged"):
        Codec().decode_gap(blob)


def test_the_consumer_does_not_wait_for_what_is_no_more(tmp_path: Path) -> None:
    codec, counts = Codec(), Counts()
    blobs = [
        codec.encode_gap(a_header(BatchKind.GAP, 0, 20), Gap("full", BatchKind.SAMPLES, "boot", 5)),
        codec.encode_samples(a_header(BatchKind.SAMPLES, 20, 5), [counted(STREAM, 20, 5)]),
        codec.encode_gap(a_header(BatchKind.GAP, 20, 30), Gap("full", BatchKind.SAMPLES, "boot", 5)),  # has grown
        codec.encode_samples(a_header(BatchKind.SAMPLES, 50, 5), [counted(STREAM, 50, 5)]),
    ]

    async def scenario() -> None:
        sink = SqliteSink(tmp_path / "consumer.db")
        try:
            taken = await Table(sink).take([Arrived("g", codec.check(blob), blob) for blob in blobs], counts)
        finally:
            await sink.close()
        assert taken.early == set()
        assert (counts.rows, counts.gaps) == (10, 0)
        assert (taken.acks["g"].epoch, taken.acks["g"].next) == ((b"e" * 16).hex(), {STREAM: 55})

    asyncio.run(scenario())


# --- ballast, wear, pictures -------------------------------------------------------------------------------------


def test_ballast_is_there_until_it_is_dropped(tmp_path: Path) -> None:
    ballast = Ballast(tmp_path / "s.db", 1 << 16)
    assert ballast.make()
    file = tmp_path / "s.db.ballast"
    assert file.stat().st_blocks * 512 >= 1 << 16, "really allocated"
    assert ballast.make()
    assert ballast.drop()
    assert not file.exists()
    assert not ballast.drop()
    assert not Ballast(tmp_path / "s.db", 0).make()
    total = shutil.disk_usage(tmp_path).total
    assert Ballast(tmp_path / "s.db", 1 << 60).size <= total // 16, "a small disk is not all ballast"


def test_years_left_follow_from_the_pace() -> None:
    assert pace(10**6, 30) == 0
    assert pace(10**6, 3600) == pytest.approx(24e6)
    worn = Wear(written=2 * 10**12, per_day=1e9)
    assert worn.years_left(0) is None
    assert worn.years_left(30) == pytest.approx(28e12 / 365.25e9)
    assert worn.years_left(1) == 0
    assert Wear(5, 0).years_left(30) is None


def test_the_log_is_counted_over_its_rounds(tmp_path: Path) -> None:
    def begin(number: int) -> None:
        (tmp_path / "s.db-wal").write_bytes(struct.pack(">8I", 0x377F0682, 3007000, 4096, number, 1, 2, 3, 4))

    meter = WalMeter(tmp_path / "s.db")
    meter.checkpointed(10)
    assert meter.bytes == 0, "no log, nothing written"
    begin(0)
    meter.checkpointed(10)
    meter.checkpointed(15)
    begin(1)
    meter.checkpointed(4)
    meter.checkpointed(-1)
    assert meter.bytes == 19 * 4120


def test_the_newest_picture_stays_whatever_its_date(tmp_path: Path) -> None:
    def picture(number: int) -> Frame:
        return Frame("cam", number, Stamp("boot", number, None, 0), bytes(400))

    pictures = Pictures(tmp_path, 1000)
    first, _ = pictures.keep(picture(0))
    second, _ = pictures.keep(picture(1))
    os.utime(tmp_path / first, (4e9, 4e9))  # taken while the clock was years ahead
    third, _ = Pictures(tmp_path, 1000).keep(picture(2))
    assert sorted(path.name for path in tmp_path.iterdir()) == [second, third]
