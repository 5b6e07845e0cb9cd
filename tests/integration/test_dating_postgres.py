"""Rows that were committed before their gateway knew the time are dated when it does: over a real PostgreSQL."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from gateway.contract import BatchKind
from gateway.store.columns import Codec
from sdk.ingest.batches import Arrived, Counts
from sdk.ingest.dating import MAX_MONO_NS
from sdk.ingest.store import Table
from tests.integration.postgres import Postgres, postgres
from tests.integration.test_ingest_postgres import dsn, fetch, opened
from tests.unit.dating_samples import NTP, RTC, TRUE_NS, UNKNOWN, any_dating, event, header, readings
from tests.unit.ingest_samples import STREAM

__all__ = ["dsn"]  # a fixture
MS = 1_000_000
WALLS = f'SELECT (extract(epoch FROM at) * 1000000)::bigint FROM octogate_streams."{STREAM}" ORDER BY seq'


@pytest.fixture(scope="module")
def cluster() -> Iterator[Postgres]:
    with postgres() as made:
        yield made


async def walls_us(dsn: str, sql: str = WALLS) -> list[int | None]:
    return [wall for (wall,) in await fetch(dsn, sql)]


@pytest.mark.parametrize("seed", range(4))
def test_any_history_ends_with_true_dates(dsn: str, seed: int) -> None:
    async def shown() -> dict[int, int | None]:
        return {i: None if wall is None else wall // 1000 for i, wall in enumerate(await walls_us(dsn))}

    async def scenario() -> None:
        async with opened(dsn) as (sink, _):
            await any_dating(sink, random.Random(seed), shown)

    asyncio.run(scenario())


def test_a_date_that_comes_late_is_the_date_that_a_batch_gives(dsn: str) -> None:
    """To the microsecond, which is all that PostgreSQL keeps; events in their own table as well."""

    async def scenario() -> None:
        async with opened(dsn) as (_, table):
            await table.take([readings(0, 5, UNKNOWN), event(0, UNKNOWN), event(1, RTC)], Counts())
            await table.take([event(2, NTP, stamped=UNKNOWN), event(3, NTP)], Counts())
            await table.take([readings(5, 5, NTP), readings(0, 10, NTP, gateway="g2")], Counts())
            while await table.dating.step():
                pass
        assert (
            await walls_us(dsn, WALLS.replace("BY", "BY gateway,"))
            == [(TRUE_NS + i * MS) // 1000 for i in range(10)] * 2
        )
        events = "SELECT (extract(epoch FROM at) * 1000000)::bigint FROM octogate.event ORDER BY seq"
        assert await walls_us(dsn, events) == [(TRUE_NS + i * MS) // 1000 for i in range(4)]
        assert await fetch(dsn, "SELECT * FROM octogate.undated") == []
        assert await fetch(dsn, "SELECT gateway, boot, offset_ns, trust FROM octogate.boot ORDER BY 1") == [
            ("g1", "boot-a", TRUE_NS, 2),
            ("g2", "boot-a", TRUE_NS, 2),
        ]

    asyncio.run(scenario())


def test_times_that_no_timestamp_can_hold_are_left_alone(dsn: str) -> None:
    codec = Codec()
    text = b'{"name":"x","origin":"o","state":"point","severity":"info","stamp":{"boot":"%s","mono_ns":%d,"wall_ns":null,"uncertainty_ns":0},"message":""}'
    texts = [
        text % (b"boot-a", MAX_MONO_NS + 1),
        text % (b"boot-a", -5),
        text % (b"other", 5),
        b"{",
        text % (b"boot-a", 5000),
    ]

    def row(first: int) -> Arrived:
        head = header(first, 1, BatchKind.EVENTS, UNKNOWN, "events")
        return Arrived("g1", head, codec.encode_rows(head, [texts[first]]))

    async def scenario() -> None:
        async with opened(dsn) as (_, table):
            await table.take([*map(row, range(len(texts))), readings(0, 1, NTP)], Counts())
            while await table.dating.step():
                pass
        events = "SELECT (extract(epoch FROM at) * 1000000)::bigint FROM octogate.event ORDER BY seq"
        assert await walls_us(dsn, events) == [None] * 4 + [TRUE_NS // 1000 + 5]

    asyncio.run(scenario())


@asynccontextmanager
async def consumers(dsn: str, n: int) -> AsyncIterator[list[Table]]:
    if n == 0:
        yield []
        return
    async with opened(dsn) as (_, table), consumers(dsn, n - 1) as others:
        yield [table, *others]


def test_several_consumers_date_at_once_while_more_comes_in(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdk.ingest.dating.STEP_ROWS", 50)
    streams = ("a/x", "b/x", "c/x")

    async def date(table: Table) -> None:
        while True:
            if not await table.dating.step():
                table.dating.look_again()
            await asyncio.sleep(0)

    async def scenario() -> None:
        async with consumers(dsn, 3) as (writer, *daters):
            for stream in streams:
                await writer.take([readings(i * 40, 40, UNKNOWN, stream=stream) for i in range(20)], Counts())
            async with asyncio.TaskGroup() as tasks:
                running = [tasks.create_task(date(table), name="dates") for table in daters]
                await writer.take([event(0, RTC)], Counts())
                for i in range(20, 40):  # of this boot, but made before the clock was known
                    await writer.take([readings(i * 40, 40, UNKNOWN, stream=stream) for stream in streams], Counts())
                await writer.take([event(1, NTP)], Counts())
                for task in running:
                    task.cancel()
            for table in (writer, *daters):
                table.dating.look_again()
                while await table.dating.step():
                    pass
        for stream in streams:
            sql = WALLS.replace(STREAM, stream)
            assert await walls_us(dsn, sql) == [(TRUE_NS + i * MS) // 1000 for i in range(1600)]
        assert await fetch(dsn, "SELECT * FROM octogate.undated") == []

    asyncio.run(scenario())
