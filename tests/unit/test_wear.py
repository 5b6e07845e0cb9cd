"""What the card is spared: undelivered batches packed under a consumer's feet, a budget kept, books that say it."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from gateway.__main__ import main
from gateway.contract import Batch
from gateway.store import upkeep
from gateway.store.columns import Codec
from gateway.store.repack import LARGEST, LARGEST_BYTES
from gateway.store.worn import read_worn, worn_text
from sdk.ingest.batches import Arrived, Counts
from sdk.ingest.sqlite import SqliteSink
from sdk.ingest.store import Table
from tests.unit.spools import Bench

STREAM, OTHER = "press/power", "press/noise"
FOR_EVER = 1 << 40

# commits readings and packs them, whoever has them, until it is killed; says after each commit how far it is
VICTIM = """
import os, sys
from pathlib import Path
from gateway.clock import Clock
from gateway.store import upkeep
from gateway.store.tables import Tables
from tests.unit.samples import counted
upkeep.COMMITS, upkeep.WAL_PAGES = 20, 60
tables = Tables(Path(sys.argv[1]), Clock(), 64 << 20)
while True:
    at = tables.state.next_seq.get("press/power", 0)
    tables.commit({"press/power": [counted("press/power", at, 150)]}, {}, {})
    os.write(1, b"%d\\n" % (at + 150))
    tables.after_commit({})
"""


def arrived(batches: list[Batch]) -> list[Arrived]:
    codec = Codec()
    return [Arrived("g", codec.check(batch.blob), batch.blob) for batch in batches]


@pytest.mark.parametrize("seed", range(12))
def test_packing_what_is_under_way_loses_and_doubles_nothing_at_the_consumer(tmp_path: Path, seed: int) -> None:
    """Some arrives, some too early, some never; then it is packed, the gateway goes back to any watermark it was told."""
    dice = random.Random(seed)
    bench, counts = Bench(tmp_path / "spool.db", max_bytes=64 << 20), Counts()

    async def scenario() -> None:
        sink = SqliteSink(tmp_path / "consumer.db")
        table, epoch = Table(sink), bench.tables.state.epoch.hex()
        try:
            for _ in range(4):
                for _ in range(dice.randint(100, 300)):
                    bench.readings(dice.choice((STREAM, STREAM, OTHER)), dice.randint(1, 40))
                watermark = {stream: table.next.get(("g", epoch, stream), 0) for stream in (STREAM, OTHER)}
                batches = bench.tables.read_after(bench.tables.rewind_point(watermark), FOR_EVER)
                some = [batch for batch in batches if dice.random() < 0.97]
                for i in range(0, len(some), 50):
                    await table.take(arrived(some[i : i + 50]), counts)
                bench.upkeep()
            await table.take(arrived(bench.tables.read_after(bench.tables.rewind_point({}), FOR_EVER)), counts)
            ledger = {entry.stream: entry for entry in await sink.ledger(count=True)}
        finally:
            await sink.close()
        for stream, entry in ledger.items():
            taken = bench.tables.state.next_seq[stream]
            assert (entry.next_seq, entry.committed, entry.rows) == (taken, taken, taken), stream
            assert (entry.missing, entry.waiting, entry.hole) == (0, 0, None)

    asyncio.run(scenario())


def test_who_sends_on_from_among_the_parts_misses_none(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "spool.db", max_bytes=64 << 20)
    ends = {}
    for i in range(600):
        bench.readings(OTHER if i % 3 == 0 else STREAM, 20)
        ends[bench.tables.state.head] = dict(bench.tables.state.next_seq)
    bench.upkeep()
    assert len(bench.batches(STREAM)) < 300
    for id, sent in ends.items():
        after = bench.tables.read_after(id, FOR_EVER)
        for stream, end in bench.tables.state.next_seq.items():
            following = sent.get(stream, 0)
            for batch in (batch for batch in after if batch.stream == stream):
                assert batch.seq_first <= following, "a hole"
                following = max(following, batch.seq_first + batch.n)
            assert following == end


def test_a_packed_batch_stays_below_the_bound_of_brokers(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "spool.db", max_bytes=64 << 20)
    for _ in range(3000):
        bench.readings(STREAM, 8)
    bench.upkeep()
    batches = bench.batches(STREAM)
    assert max(batch.n for batch in batches) <= LARGEST
    assert max(len(batch.blob) for batch in batches) <= LARGEST_BYTES + 1024


def test_a_kill_while_it_packs_loses_nothing_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    dice = random.Random(5)
    for _ in range(6):
        before = 0
        with subprocess.Popen([sys.executable, "-c", VICTIM, str(path)], stdout=subprocess.PIPE) as victim:
            assert victim.stdout is not None
            for _ in range(dice.randint(15, 70)):  # commits; every 20th packs what there is
                before = int(victim.stdout.readline())
            os.kill(victim.pid, signal.SIGKILL)
            said = victim.stdout.read().split()
        acknowledged = int(said[-1]) if said else before
        bench = Bench(path, max_bytes=64 << 20)
        assert bench.tables.recovered is None
        taken = bench.tables.state.next_seq[STREAM]
        assert acknowledged <= taken <= acknowledged + 150
        assert bench.numbers(STREAM) == list(range(taken))
        assert bench.ledger().whole
        bench.tables.close()
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT max(n) FROM batch").fetchone()[0] > 2000, "it did pack"


def test_status_wear_tells_days_and_streams(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "gateway.toml"
    config.write_text('[gateway]\nid = "g"\ndata_dir = "data"\n[store]\ncard_tbw = 20.0\nwear_gb_day = 2\n')
    assert main(["status", "--wear", "--config", str(config)]) == 1
    assert "there is no spool" in capsys.readouterr().err
    bench = Bench(tmp_path / "data" / "spool.db")
    assert "nothing is in the books yet" in worn_text(read_worn(bench.path, 0, 0))
    for day in range(2):
        for _ in range(30):
            bench.readings(STREAM, 10)
            bench.readings(OTHER, 5)
            bench.times.wait(240 * 10**9)
        bench.upkeep()
        bench.times.wait((86_400 - 7_200) * 10**9 if day == 0 else 0)
    assert main(["status", "--wear", "--json", "--config", str(config)]) == 0
    worn = json.loads(capsys.readouterr().out)
    assert [day["day"] for day in worn["days"]] == [1, 2]
    assert [day["commits"] for day in worn["days"]] == [60, 60]
    for day in worn["days"]:
        assert {stream["stream"]: stream["n"] for stream in day["streams"]} == {STREAM: 300, OTHER: 150}
    assert sum(s["bytes"] for day in worn["days"] for s in day["streams"] if s["stream"] == STREAM) == sum(
        len(batch.blob) for batch in bench.batches(STREAM)
    ), "nothing was packed here"
    assert (worn["card_tbw"], worn["budget"]) == (20.0, 2e9)
    assert main(["status", "--wear", "--config", str(config)]) == 0
    text = capsys.readouterr().out
    assert "press/noise" in text and "budget 2,000 MB/day" in text and "20 TB" in text


def test_undelivered_readings_are_packed_by_the_first_upkeep(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "spool.db", max_bytes=64 << 20)
    for _ in range(upkeep.COMMITS):
        bench.readings(STREAM, 20)
    assert len(bench.batches(STREAM)) <= 10
    assert sum(len(batch.blob) for batch in bench.batches(STREAM)) <= 6 * bench.tables.state.next_seq[STREAM]
