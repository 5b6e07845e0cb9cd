"""The receiver over a real PostgreSQL: its tables, and several consumers that share the work while one is killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import sys
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest

from gateway.contract import BatchKind, Channel, Schema
from gateway.errors import StoreError
from gateway.store.columns import with_header
from sdk.ingest import Ingest
from sdk.ingest.__main__ import main
from sdk.ingest.batches import Arrived, Counts
from sdk.ingest.ledger import whole
from sdk.ingest.postgres import PostgresSink
from sdk.ingest.store import Table
from tests.integration.harness import COUNTS, ROOT, config, daemon, node, stored, until
from tests.integration.mosquitto import mosquitto
from tests.integration.postgres import Postgres, postgres
from tests.unit.ingest_samples import STREAM, any_history, events, gap, readings, rows


@pytest.fixture(scope="module")
def cluster() -> Iterator[Postgres]:
    with postgres() as made:
        yield made


@pytest.fixture
def dsn(cluster: Postgres, request: pytest.FixtureRequest) -> str:
    """A database of the test's own."""
    name = f"t{zlib.crc32(request.node.nodeid.encode()):x}"
    asyncio.run(_execute(cluster.dsn, f"CREATE DATABASE {name}"))
    return cluster.dsn.replace("/postgres?", f"/{name}?")


async def _execute(dsn: str, sql: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(sql)
    finally:
        await connection.close()


async def fetch(dsn: str, sql: str) -> list[tuple[Any, ...]]:
    connection = await asyncpg.connect(dsn)
    try:
        return [tuple(row) for row in await connection.fetch(sql)]
    finally:
        await connection.close()


@asynccontextmanager
async def opened(dsn: str) -> AsyncIterator[tuple[PostgresSink, Table]]:
    sink = await PostgresSink.open(dsn)
    try:
        yield sink, Table(sink)
    finally:
        await sink.close()


@pytest.mark.parametrize("seed", range(4))
def test_any_history_ends_whole(dsn: str, seed: int) -> None:
    async def scenario() -> None:
        async with opened(dsn) as (sink, _):
            await any_history(sink, random.Random(seed))
        kept = await fetch(dsn, f'SELECT seq, count FROM octogate_streams."{STREAM}" ORDER BY seq')
        assert all(seq == count for seq, count in kept)

    asyncio.run(scenario())


@pytest.mark.parametrize("at_once", [True, False])
def test_what_a_rebuilt_spool_repeats_is_known_again(dsn: str, at_once: bool) -> None:
    """tests/unit/test_rebuilt.py is the long version; here the statements and the locks of PostgreSQL."""

    async def scenario() -> None:
        async with opened(dsn) as (sink, table):
            old, saved = readings(0, 25), readings(20, 10, epoch=b"n" * 16)
            header = msgspec.structs.replace(saved.header, seq_first=0, was=((old.header.epoch, 20),))
            again = Arrived("g1", header, with_header(saved.blob, header))
            for arrived in ([old, again],) if at_once else ([old], [again]):
                await table.take(arrived, Counts())
            ledger = await sink.ledger(count=True)
            assert whole(ledger) and [(s.committed, s.there, s.dropped) for s in ledger] == [(25, 0, 0), (5, 5, 0)]
        kept = await fetch(dsn, f'SELECT count FROM octogate_streams."{STREAM}" ORDER BY count')
        assert [count for (count,) in kept] == list(range(30))

    asyncio.run(scenario())


def test_views_have_typed_columns_by_the_channels_names(dsn: str) -> None:
    async def scenario() -> None:
        async with opened(dsn) as (_, table):
            await table.take([readings(0, 3), readings(0, 2, gateway="g2")], Counts())
            await table.take([gap(3, 2), events(0, ["hot", "cold"])], Counts())
            big = readings(5, 1, schema=Schema((Channel("n", "Q"), Channel("f", "f"))))
            await table.take([big], Counts())
            await table.take([rows(0, [b'{"bad": "\\u0000"}'], BatchKind.EVENTS, "odd")], Counts())
        view = f'octogate_streams."{STREAM}"'
        kept = await fetch(dsn, f"SELECT gateway, seq, count, watts FROM {view} ORDER BY gateway, seq")
        assert kept == [("g1", 0, 0, 0.0), ("g1", 1, 1, 0.5), ("g1", 2, 2, 1.0), ("g2", 0, 0, 0.0), ("g2", 1, 1, 0.5)]
        types = await fetch(
            dsn,
            "SELECT column_name, data_type FROM information_schema.columns"
            f" WHERE table_schema = 'octogate_streams' AND table_name = '{STREAM}' ORDER BY ordinal_position",
        )
        assert types == [
            ("gateway", "text"), ("epoch", "text"), ("seq", "bigint"), ("at", "timestamp with time zone"),
            ("mono_ns", "bigint"), ("count", "bigint"), ("watts", "real"),
        ]  # fmt: skip
        (row,) = await fetch(dsn, f'SELECT n::text, f FROM octogate_streams."{STREAM} (2)"')
        assert row == ("5", 2.5)
        alarms = await fetch(dsn, "SELECT seq, name, severity, detail->>'n' FROM octogate.event WHERE name IS NOT NULL")
        assert alarms == [(0, "hot", "alarm", "0"), (1, "cold", "alarm", "1")]
        assert (await fetch(dsn, "SELECT value FROM octogate.event WHERE name IS NULL"))[0][0].startswith('{"bad"')

    asyncio.run(scenario())


def test_names_from_outside_are_only_names(dsn: str) -> None:
    wild = Schema((Channel('a"; DROP SCHEMA octogate CASCADE; -', "Q"), Channel("seq", "f"), Channel("x" * 90, "d")))
    stream = "press/'; DROP SCHEMA octogate CASCADE; --\""

    async def scenario() -> None:
        async with opened(dsn) as (sink, table):
            await table.take([readings(0, 3, schema=wild, stream=stream)], Counts())
            assert whole(await sink.ledger(count=True))
        ((name,),) = await fetch(dsn, "SELECT name FROM octogate.view")
        view = name.replace('"', '""')
        channel = wild.channels[0].name.replace('"', '""')
        kept = await fetch(dsn, f'SELECT "{channel}"::bigint, "seq (2)" FROM octogate_streams."{view}"')
        assert kept == [(0, 0.0), (1, 0.5), (2, 1.0)]

    asyncio.run(scenario())


def test_two_tables_on_one_database_take_each_number_once(dsn: str) -> None:
    """As two consumers of a shared subscription do: each has every other batch, at the same time."""

    async def scenario() -> None:
        batches = [readings(i * 20, 20) for i in range(60)]
        counts = Counts()
        async with opened(dsn) as (sink, one), opened(dsn) as (_, other):

            async def work(table: Table, mine: list[Any]) -> None:
                for i in range(0, len(mine), 3):
                    await table.take(mine[i : i + 3], counts)

            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(work(one, batches[0::2] + batches[5:9]), name="one")
                tasks.create_task(work(other, batches[1::2] + batches[:4]), name="other")
            (stream,) = await sink.ledger(count=True)
        assert (stream.committed, stream.rows, stream.waiting) == (1200, 1200, 0)
        assert counts.rows == 1200 and counts.batches == 60

    asyncio.run(scenario())


def test_a_server_that_is_killed_takes_up_where_it_was(tmp_path: Path) -> None:
    async def scenario(server: Postgres) -> None:
        counts = Counts()
        async with opened(server.dsn) as (sink, table):
            await table.take([readings(0, 10)], counts)
            server.kill()
            with pytest.raises(StoreError):
                await table.take([readings(10, 10)], counts)
            server.start()
            await table.take([readings(0, 10), readings(10, 10)], counts)  # nothing is taken for done
            assert counts == Counts(batches=2, rows=20, repeated=1)
            assert whole(await sink.ledger(count=True))

    with postgres() as server:
        asyncio.run(scenario(server))


def test_one_consumer_posts_events_until_it_is_gone(dsn: str) -> None:
    async def scenario() -> None:
        async with opened(dsn) as (other, table):
            async with opened(dsn) as (one, _):
                await one.hook_start("h")
                await other.hook_start("h")
                await table.take([events(0, ["a", "b"])], Counts())
                assert [event["seq"] for event in await one.hook_events("h", 10)] == [0, 1]
                assert await other.hook_events("h", 10) == []
                stream = (await one.hook_events("h", 10))[0]["at"]
                await one.hook_done("h", stream, 1)
            assert [event["seq"] for event in await other.hook_events("h", 10)] == [1]

    asyncio.run(scenario())


class Consumer:
    """`octogate-ingest` as a process."""

    def __init__(self, folder: Path, name: str, *arguments: str) -> None:
        self.log = folder / f"{name}.log"
        self._arguments = arguments
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "sdk.ingest", *self._arguments, stdout=log, stderr=log, cwd=ROOT
            )

    async def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)
        return await asyncio.wait_for(self._process.wait(), 20)

    def totals(self) -> dict[str, int]:
        """What it said at its end in good order."""
        said = [line for line in self.log.read_text().splitlines() if line.startswith("{")]
        return dict(json.loads(said[-1]))


async def next_seq(dsn: str) -> int:
    found = await fetch(dsn, f"SELECT coalesce(max(next_seq), 0) FROM octogate.stream WHERE stream = '{COUNTS}'")
    return int(found[0][0])


async def until_taken(dsn: str, at_least: int, patience_s: float = 60.0) -> None:
    async with asyncio.timeout(patience_s):
        while await next_seq(dsn) < at_least:
            await asyncio.sleep(0.05)


@pytest.mark.timeout(180)
def test_two_consumers_share_the_work_and_one_is_killed(dsn: str, tmp_path: Path) -> None:
    """0 lost, 0 doubled, 0 inversions, whoever is killed in the middle of whatever."""
    moments = random.Random(3)

    async def scenario() -> int:
        with mosquitto(tmp_path / "mosquitto") as broker:
            arguments = ("--postgres", dsn, "--port", str(broker.plain), "--share", "plant")
            consumers = [Consumer(tmp_path, name, *arguments) for name in ("one", "two")]
            text = config(tmp_path, broker.plain) + "[store]\nwear_gb_day = 0\n"  # many small batches
            async with node(tmp_path), daemon(tmp_path, text) as gateway:
                for consumer in consumers:
                    await consumer.start()
                await until_database(dsn)
                for round_ in range(6):
                    at = await next_seq(dsn)
                    await until_taken(dsn, at + 300)  # with whom is left, for one of the two is always there
                    await asyncio.sleep(moments.uniform(0, 0.4))
                    victim = consumers[round_ % 2]
                    await victim.end(signal.SIGKILL)
                    await until_taken(dsn, await next_seq(dsn) + 100)
                    await victim.start()
                await until_taken(dsn, await next_seq(dsn) + 2000)  # both are there again
                await gateway.end()
                on_disk = stored(gateway.spool)[COUNTS]
                await gateway.start()
                await until_taken(dsn, on_disk)
            for consumer in consumers:
                assert await consumer.end() == 0
            totals = [consumer.totals() for consumer in consumers]
            print(f"{on_disk} readings: {totals}")
            assert all(each["refused"] == each["missing"] == each["shed"] == 0 for each in totals)
            assert all(each["batches"] + each["gaps"] > 10 for each in totals)  # the work was shared
            return on_disk

    on_disk = asyncio.run(scenario())
    kept = asyncio.run(fetch(dsn, f'SELECT seq, n FROM octogate_streams."{COUNTS}" ORDER BY seq'))
    assert len(kept) >= on_disk > 1500
    assert [seq for seq, _ in kept] == [n for _, n in kept] == list(range(len(kept)))
    # committed in order as well, by whichever of the two: a later transaction holds later readings
    by_transaction = "SELECT seq, xmin::text::bigint AS by FROM octogate.reading_1 ORDER BY by, seq"
    assert [seq for seq, _ in asyncio.run(fetch(dsn, by_transaction))] == list(range(len(kept)))
    assert main(["ledger", "--postgres", dsn, "--count"]) == 0


async def until_database(dsn: str) -> None:
    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(asyncpg.PostgresError):
                await fetch(dsn, "SELECT 1 FROM octogate.stream")
                return
            await asyncio.sleep(0.05)


@pytest.mark.timeout(120)
def test_an_outage_of_the_database_costs_nothing(tmp_path: Path) -> None:
    async def scenario(server: Postgres) -> None:
        with mosquitto(tmp_path / "mosquitto") as broker:
            said: list[str] = []
            async with Ingest.open(postgres=server.dsn, port=broker.plain, say=said.append) as ingest:
                async with node(tmp_path), daemon(tmp_path, config(tmp_path, broker.plain)) as gateway:
                    await until_taken(server.dsn, 300)
                    server.kill()
                    await until(lambda: bool(ingest.trouble), "the outage is noticed")
                    server.start()
                    await until(lambda: not ingest.trouble, "it commits again")
                    await until_taken(server.dsn, await next_seq(server.dsn) + 300)
                    await gateway.end()
                    on_disk = stored(gateway.spool)[COUNTS]
                    await gateway.start()
                    await until_taken(server.dsn, on_disk)
                streams = await ingest.table.sink.ledger(count=True)
                assert whole(streams)
            told = [line.partition(":")[0] for line in said if "ommit" in line]
            assert told == ["cannot commit", "committing again, nothing was lost"]
        kept = await fetch(server.dsn, f'SELECT seq, n FROM octogate_streams."{COUNTS}" ORDER BY seq')
        assert [seq for seq, _ in kept] == [n for _, n in kept] == list(range(len(kept)))
        assert len(kept) >= on_disk

    with postgres() as server:
        asyncio.run(scenario(server))
