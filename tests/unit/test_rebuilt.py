"""A spool that is rebuilt after damage repeats what it does not know to be delivered; the receiver knows it again."""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.contract import Batch
from gateway.errors import StoreError
from gateway.store.columns import MAX_WAS, read_header, with_header
from sdk.ingest.batches import Arrived, Counts, StreamLedger
from sdk.ingest.ledger import as_text, whole
from sdk.ingest.sqlite import SqliteSink
from sdk.ingest.store import Table
from tests.unit.ingest_samples import readings
from tests.unit.spools import Bench

STREAM = "press/power"


def deliver(path: Path, batches: list[Batch]) -> list[StreamLedger]:
    """Into the consumer's table; its ledger."""

    async def within() -> list[StreamLedger]:
        sink = SqliteSink(path)
        try:
            counts, table = Counts(), Table(sink)
            arrived = [Arrived("g1", read_header(batch.blob)[0], batch.blob) for batch in batches]
            for at in range(0, len(arrived), 50):
                await table.take(arrived[at : at + 50], counts)
            assert not counts.refused and not counts.gaps
            return await sink.ledger(count=True)
        finally:
            await sink.close()

    return asyncio.run(within())


def numbers(path: Path) -> Counter[int]:
    """How often each reading is in the table; a reading's value is its number."""
    with closing(sqlite3.connect(path)) as db:
        return Counter(int(json.loads(value)[0]) for (value,) in db.execute("SELECT value FROM reading"))


def damage(bench: Bench, seed: int) -> None:
    """Close it, break a page of batches, and open it: rebuilt."""
    bench.tables.close()
    path, epoch = bench.path, bench.tables.state.epoch
    dice = random.Random(seed)
    with path.open("r+b") as file:
        pages = path.stat().st_size // 4096
        file.seek(4096 * dice.randrange(pages // 2, pages * 3 // 4))
        file.write(dice.randbytes(4096))
    bench.path.with_name(bench.path.name + ".suspect").touch()
    bench.open()
    assert bench.tables.state.epoch != epoch and bench.tables.recovered is not None


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("had", [0, 60, 300])
def test_what_a_rebuilt_spool_repeats_is_in_the_table_once(tmp_path: Path, rounds: int, had: int, packed: bool) -> None:
    """The consumer has some of it, and the damaged file does not say how much. Rebuilt again before it is sent, and
    made into larger batches.
    """
    bench, db = Bench(tmp_path / "spool.db", max_bytes=64 << 20), tmp_path / "consumer.db"
    for _ in range(300):
        bench.readings(STREAM, 50)
    deliver(db, bench.batches(STREAM)[:had])
    assert sum(numbers(db).values()) == had * 50
    for seed in range(rounds):
        damage(bench, seed)
    if packed:
        before = len(bench.batches(STREAM))
        bench.upkeep()
        assert len(bench.batches(STREAM)) < before / 10
    kept = set(bench.numbers(STREAM))
    assert 10_000 < len(kept) < 15_000
    ledger = deliver(db, bench.batches(STREAM))
    found = numbers(db)
    assert set(found.values()) == {1}, "nothing twice"
    assert set(found) == kept | set(range(had * 50)), "and nothing lost that anybody had"
    assert whole(ledger)
    new = ledger[-1]
    assert new.there == len(kept & set(range(had * 50)))
    assert new.committed == len(kept) - new.there
    assert new.next_seq == bench.tables.state.next_seq[STREAM] == new.there + new.committed + new.dropped
    assert ("before the spool was rebuilt" in as_text(ledger)) == (had > 0)


def test_a_batch_that_is_half_there_is_taken_by_the_other_half(tmp_path: Path) -> None:
    db, old = tmp_path / "db", readings(0, 25)
    saved = readings(20, 10, epoch=b"n" * 16)
    header = msgspec.structs.replace(saved.header, seq_first=0, was=((old.header.epoch, 20),))
    again = with_header(saved.blob, header)
    deliver(db, [Batch(1, STREAM, 0, 25, old.blob), Batch(2, STREAM, 0, 10, again)])
    assert numbers(db) == Counter(range(30))


@given(st.lists(st.tuples(st.binary(max_size=20), st.integers(-5, 1 << 63)), max_size=8))
def test_what_a_batch_was_is_bounded(was: list[tuple[bytes, int]]) -> None:
    made = readings(0, 3)
    blob = with_header(made.blob, msgspec.structs.replace(made.header, was=tuple(was)))
    if len(was) <= MAX_WAS and all(len(epoch) == 16 and first >= 0 for epoch, first in was):
        assert read_header(blob)[0].was == tuple(was)
    else:
        with pytest.raises(StoreError):
            read_header(blob)
