"""A spool that was damaged: noticed, rebuilt with whatever can be read, and nothing passed over in silence."""

from __future__ import annotations

import asyncio
import random
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from gateway.clock import Clock
from gateway.contract import BatchKind, Severity
from gateway.store.columns import Codec
from gateway.store.ledger import read_ledger
from gateway.store.spool import Spool
from tests.unit.samples import counted
from tests.unit.spools import Bench

STREAM = "press/power"


def run(path: Path) -> tuple[list[str], dict[str, int], list[str]]:
    """Open, take a few readings, read everything, close: (events, next numbers, kinds of batches in order)."""
    told: list[str] = []

    def notify(name: str, state: str, severity: Severity, message: str) -> None:
        told.append(name)

    async def scenario() -> tuple[dict[str, int], list[str]]:
        async with Spool.open(path, Clock(), commit_s=0.001, max_bytes=64 << 20, notify=notify) as spool:
            first = spool.next_seq().get(STREAM, 0)
            await spool.append_samples([counted(STREAM, first, 5)], None)
            batches, at = [], 0
            while more := await spool.read_after(at):
                batches += more
                at = more[-1].id
            return dict(spool.next_seq()), [Codec().check(batch.blob).kind for batch in batches]

    following, kinds = asyncio.run(scenario())
    return told, following, kinds


def filled(path: Path, *, close: bool = True) -> Bench:
    bench = Bench(path, max_bytes=64 << 20)
    for _ in range(300):
        bench.readings(STREAM, 50)
    if close:
        bench.tables.close()
    return bench


@pytest.mark.parametrize("content", [b"not a database at all" * 100, b"SQLite format 3\0" + b"\xff" * 4096])
def test_a_file_that_is_no_spool_is_moved_aside_and_told(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "spool.db"
    path.write_bytes(content)
    told, following, _ = run(path)
    assert told == ["store.rebuilt"]
    assert following == {STREAM: 5}
    assert (tmp_path / "spool.db.damaged").read_bytes() == content, "what may be rescued by hand stays"
    assert run(path)[0] == [], "once"


@pytest.mark.parametrize("seed", range(6))
def test_broken_pages_cost_what_was_on_them_and_no_more(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "spool.db"
    epoch = filled(path).tables.state.epoch
    pages = path.stat().st_size // 4096
    dice = random.Random(seed)
    with path.open("r+b") as file:
        for _ in range(3):
            file.seek(4096 * dice.randrange(6, pages))
            file.write(dice.randbytes(4096))
    told, following, kinds = run(path)
    ledger = read_ledger(path, ("main",), check=True)
    assert ledger.whole, "what is lost is in the ledger"
    assert told, "and it is told"
    lost = sum(entry.n for entry in ledger.dropped)
    assert lost < 15_000
    assert kinds.count("samples") > 100
    assert following[STREAM] <= 15_005
    if "store.rebuilt" in told:
        assert ledger.epoch != epoch.hex()
        assert ledger.history[0]["epoch_before"] == epoch.hex()


def test_a_batch_with_a_wrong_checksum_becomes_a_gap(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    filled(path)
    with closing(sqlite3.connect(path)) as db:
        (blob,) = db.execute("SELECT blob FROM batch WHERE id = 100").fetchone()
        db.execute("UPDATE batch SET blob = ? WHERE id = 100", (blob[:-20] + bytes(20),))
        (moved,) = db.execute("SELECT blob FROM batch WHERE id = 200").fetchone()
        db.execute("UPDATE batch SET blob = ? WHERE id = 201", (moved,))
        db.commit()
    assert not read_ledger(path, ("main",), check=True).whole
    told, following, kinds = run(path)
    assert told == ["store.damaged", "store.damaged"]
    assert [at for at, kind in enumerate(kinds, 1) if kind is BatchKind.GAP] == [100, 201]
    assert following == {STREAM: 15_005}
    ledger = read_ledger(path, ("main",), check=True)
    assert ledger.whole
    assert [(entry.seq_first, entry.n, entry.why) for entry in ledger.dropped] == [
        (4950, 50, "damaged"), (10_000, 50, "damaged"),
    ]  # fmt: skip


def cut_wal(source: Path, target: Path, frame: int) -> None:
    """A copy of a spool whose log is broken at one frame (from 0), as a bad sector would."""
    for side in ("", "-wal"):
        shutil.copy(source.with_name(source.name + side), target.with_name(target.name + side))
    with target.with_name(target.name + "-wal").open("r+b") as file:
        file.seek(32 + frame * 4120 + 2000)
        file.write(b"\xaa" * 512)


def test_a_log_that_is_broken_in_the_middle_is_not_passed_over(tmp_path: Path) -> None:
    """SQLite by itself would open it without a word, some acknowledged commits ago."""
    bench = filled(tmp_path / "spool.db", close=False)
    (tmp_path / "copy").mkdir()
    frames = (tmp_path / "spool.db-wal").stat().st_size // 4120
    cut_wal(tmp_path / "spool.db", tmp_path / "copy" / "spool.db", frames // 2)
    bench.tables.close()
    told, following, _ = run(tmp_path / "copy" / "spool.db")
    assert told == ["store.rebuilt"]
    assert 100 < following[STREAM] < 15_000
    ledger = read_ledger(tmp_path / "copy" / "spool.db", ("main",), check=True)
    assert ledger.epoch != bench.tables.state.epoch.hex(), "nobody knows which numbers had been given out"
    assert "log is broken" in ledger.history[0]["reason"]


def test_a_torn_last_commit_is_no_damage(tmp_path: Path) -> None:
    bench = filled(tmp_path / "spool.db", close=False)
    (tmp_path / "copy").mkdir()
    frames = (tmp_path / "spool.db-wal").stat().st_size // 4120
    cut_wal(tmp_path / "spool.db", tmp_path / "copy" / "spool.db", frames - 1)
    bench.tables.close()
    told, following, _ = run(tmp_path / "copy" / "spool.db")
    assert told == []
    assert following[STREAM] == 14_955


def test_a_rebuild_that_was_interrupted_is_finished(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    filled(path)
    path.rename(tmp_path / "spool.db.rebuilt")
    told, following, _ = run(path)
    assert told == []
    assert following[STREAM] == 15_005
