"""The receiver's logic over SQLite, its parsers, and what each promises."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import struct
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.contract import BatchKind, Channel, Sample, Schema, topic_up
from gateway.errors import StoreError
from gateway.store.columns import Codec, Header
from gateway.sync.backlog import decode_ack
from sdk.ingest.batches import Counts, Cursor, Gap, Parked, Span, arrived, content, plan, spans
from sdk.ingest.ledger import as_json, as_text, whole
from sdk.ingest.names import MAX_IDENTIFIER, column_names, distinct, identifier
from sdk.ingest.sqlite import SqliteSink
from sdk.ingest.store import MAX_PARKED, Table
from tests.unit.ingest_samples import EPOCH, OFFSET_NS, STREAM, any_history, events, gap, header, readings, rows


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[tuple[SqliteSink, Table]]:
    sink = SqliteSink(path)
    try:
        yield sink, Table(sink)
    finally:
        await sink.close()


def run(path: Path, scenario: Callable[[SqliteSink, Table], Awaitable[None]]) -> None:
    async def within() -> None:
        async with opened(path) as (sink, table):
            await scenario(sink, table)

    asyncio.run(within())


def query(path: Path, sql: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as db:
        return db.execute(sql).fetchall()


# --- what comes next ---------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(1, 2), st.integers(0, 30), st.integers(1, 8)), max_size=40), st.integers(0, 10))
def test_a_plan_takes_every_number_once_and_in_order(runs: list[tuple[int, int, int]], begin: int) -> None:
    offers = [Parked(*run) for run in runs]
    made = plan({1: begin, 2: 0}, offers)
    for stream, first in ((1, begin), (2, 0)):
        numbers = [
            n
            for offer, skip in made.takes
            if offer.stream == stream
            for n in range(offer.seq_first + skip, offer.seq_first + offer.n)
        ]
        assert numbers == list(range(first, made.next[stream]))
        # what is early begins behind a hole
        assert all(offer.seq_first > made.next[stream] for offer in made.early if offer.stream == stream)
    assert len(made.takes) + len(made.early) + len(made.repeated) == len(offers)


@given(
    st.lists(st.tuples(st.integers(1, 9), st.sampled_from(["taken", "dropped"])), min_size=1, max_size=30), st.data()
)
def test_runs_join_the_same_however_they_are_cut(pieces: list[tuple[int, str]], data: st.DataObject) -> None:
    runs, at = [], 0
    for n, state in pieces:
        runs.append(Span(1, at, at + n, state))
        at += n
    whole_runs = {span.first: span for span in spans(Cursor(0), runs)[0]}
    stored: dict[int, Span] = {}
    cursor, rest = Cursor(0), runs
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        joined, cursor = spans(cursor, rest[:size])
        stored.update({span.first: span for span in joined})
        rest = rest[size:]
    assert stored == whole_runs
    assert cursor.next_seq == at


@settings(max_examples=25, deadline=None)
@given(st.integers())
def test_any_history_ends_whole_in_sqlite(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    path = tmp_path_factory.mktemp("ingest") / "db"

    async def scenario() -> None:
        async with opened(path) as (sink, _):
            await any_history(sink, random.Random(seed), 200)

    asyncio.run(scenario())
    kept = query(path, "SELECT seq, json_extract(value, '$[0]') FROM reading")
    assert all(seq == count for seq, count in kept)


# --- the parsers -------------------------------------------------------------------------------------------------


@given(
    st.binary(max_size=300) | st.binary(max_size=60).map(lambda b: readings(0, 5).blob[:40] + b), st.text(max_size=20)
)
def test_any_message_is_a_batch_or_refused(payload: bytes, topic: str) -> None:
    for name in (topic, topic_up("g1", STREAM)):
        try:
            batch = arrived(name, payload, "octo/v1")
            content(Codec(), batch.blob)
        except StoreError:
            continue
        assert batch.gateway == "g1"


@pytest.mark.parametrize("change", ["kind", "stream", "numbers", "gateway"])
def test_a_batch_of_another_kind_stream_or_size_is_refused(change: str) -> None:
    head = list(msgspec.to_builtins(header(0, 5, BatchKind.SAMPLES)))
    head[0] = EPOCH
    topic = topic_up("g1", STREAM)
    if change == "kind":
        head[4] = "poems"
    elif change == "stream":
        topic = topic_up("g1", "other/stream")
    elif change == "numbers":
        head[2] = (1 << 63) - 2
    else:
        topic = topic_up("g" * 300, STREAM)
    packed = msgspec.msgpack.encode(head)
    with pytest.raises(StoreError):
        arrived(topic, b"OB\x01" + struct.pack("<H", len(packed)) + packed + b"?", "octo/v1")


@given(st.binary(max_size=200))
def test_a_gap_is_taken_whatever_its_reason_says(reason: bytes) -> None:
    head = header(5, 1, BatchKind.GAP)
    blob = Codec().encode_rows(head, [reason])
    held = content(Codec(), blob)
    assert isinstance(held, Gap)
    assert held.why.isprintable()
    assert isinstance(content(Codec(), blob[:-3]), Gap)


@given(st.lists(st.text(min_size=1, max_size=80), min_size=1, max_size=20))
def test_column_names_are_distinct_short_and_quoted(names: list[str]) -> None:
    made = column_names(Schema(tuple(Channel(name, "f") for name in names)))
    assert len({name.lower() for name in made}) == len(names)
    assert all(len(name.encode()) <= MAX_IDENTIFIER for name in made)
    assert "seq" not in made
    quoted = ", ".join(f"1 AS {identifier(name)}" for name in made)
    with closing(sqlite3.connect(":memory:")) as db:
        described = [column[0] for column in db.execute(f"SELECT {quoted}").description]
    assert described == [name.replace("\0", "") for name in made]


def test_a_cut_name_stays_unlike_others() -> None:
    one, other = distinct(["x" * 80 + "1", "x" * 80 + "2"], [])
    assert one != other


# --- one consumer's store ----------------------------------------------------------------------------------------


def test_what_is_early_waits_for_the_hole_and_then_is_taken(tmp_path: Path) -> None:
    async def scenario(sink: SqliteSink, table: Table) -> None:
        counts = Counts()
        taken = await table.take([readings(0, 10), readings(20, 10)], counts)
        assert taken.early == {"g1"}
        assert taken.acks["g1"].next == {STREAM: 10}
        (stream,) = await sink.ledger(count=True)
        assert (stream.committed, stream.missing, stream.waiting, stream.hole) == (10, 10, 10, (10, 20))
        assert not whole([stream]) and "NOT WHOLE" in as_text([stream])
        taken = await table.take([readings(10, 10)], counts)
        assert taken.acks["g1"].next == {STREAM: 30}
        assert counts == Counts(batches=3, rows=30, gaps=1)
        assert whole(await sink.ledger(count=True))

    run(tmp_path / "db", scenario)


def test_a_stream_may_begin_with_what_was_dropped(tmp_path: Path) -> None:
    head = header(0, 7, BatchKind.GAP, stream="events")
    body = {"why": "full", "kind": "events", "boot": "boot-1", "mono_ns": 5}
    begin = type(gap(0, 1))("g1", head, Codec().encode_rows(head, [msgspec.json.encode(body)]))

    async def scenario(sink: SqliteSink, table: Table) -> None:
        await sink.hook_start("h")
        assert (await table.take([begin, events(7, ["hot"])], Counts())).events
        (stream,) = await sink.ledger(count=True)
        assert (stream.kind, stream.dropped, stream.committed) == ("events", 7, 1)
        assert stream.runs[0].when_ns == OFFSET_NS + 5
        assert [event["seq"] for event in await sink.hook_events("h", 9)] == [7]

    run(tmp_path / "db", scenario)


def test_a_hole_that_nobody_fills_is_ledgered_as_missing(tmp_path: Path) -> None:
    async def scenario(sink: SqliteSink, table: Table) -> None:
        counts = Counts()
        await table.take([readings(0, 5)], counts)
        for _ in range(4):
            await table.take([readings(9, 5)], counts)
            await table.give_up(counts, older_s=0)
            assert counts.missing == 0  # asked too seldom to be sure
        await table.take([readings(9, 5)], counts)
        await table.give_up(counts, older_s=3600)
        assert counts.missing == 0  # not for long enough
        await table.give_up(counts, older_s=0)
        assert counts.missing == 4
        await table.take([readings(14, 1)], counts)
        (stream,) = await sink.ledger(count=True)
        assert (stream.next_seq, stream.committed, stream.missing) == (15, 11, 4)
        assert as_json([stream])["ok"] is False

    run(tmp_path / "db", scenario)


def test_the_parking_place_is_bounded(tmp_path: Path) -> None:
    async def scenario(sink: SqliteSink, table: Table) -> None:
        counts = Counts()
        many = [readings(10 + i, 1) for i in range(MAX_PARKED + 50)]
        await table.take(many[:300], counts)
        await table.take(many[300:], counts)
        (stream,) = await sink.ledger(count=False)
        assert stream.waiting == MAX_PARKED
        assert counts.gaps == len(many)
        await table.take([readings(0, 10)], counts)  # the gateway goes back and sends the rest again
        await table.take(many, counts)
        (stream,) = await sink.ledger(count=True)
        assert (stream.committed, stream.waiting) == (10 + len(many), 0)

    run(tmp_path / "db", scenario)


def test_a_new_epoch_is_another_stream_and_an_old_one_can_return(tmp_path: Path) -> None:
    other = bytes(reversed(EPOCH))

    async def scenario(_: SqliteSink, table: Table) -> None:
        counts = Counts()
        await table.take([readings(0, 10)], counts)
        taken = await table.take([readings(0, 3, epoch=other)], counts)
        assert (taken.acks["g1"].epoch, taken.acks["g1"].next) == (other.hex(), {STREAM: 3})
        taken = await table.take([readings(0, 10)], counts)  # its old disk is back
        assert (taken.acks["g1"].epoch, taken.acks["g1"].next) == (EPOCH.hex(), {STREAM: 10})
        assert counts == Counts(batches=2, rows=13, repeated=1)

    run(tmp_path / "db", scenario)


def test_a_damaged_batch_is_refused_and_the_others_of_its_commit_are_taken(tmp_path: Path) -> None:
    async def scenario(_: SqliteSink, table: Table) -> None:
        counts = Counts()
        good = readings(5, 5)
        bad = type(good)("g1", good.header, good.blob[:-3] + b"???")
        taken = await table.take([readings(0, 5), bad, events(0, ["hot"])], counts)
        assert counts == Counts(batches=2, rows=6, refused=1)
        assert taken.events
        # times that 64 bits cannot hold
        head = Header(EPOCH, STREAM, 5, 1, BatchKind.SAMPLES, "a:b:", "boot-1", (1 << 63) - 1, 0)
        late = Sample(STREAM, Schema((Channel("a", "b"),)), array("q", [9]), array("q", [0]), array("H", [1]), b"\0")
        await table.take([type(good)("g1", head, Codec().encode_samples(head, [late])), events(1, ["cold"])], counts)
        assert counts == Counts(batches=3, rows=7, refused=2)
        assert (await table.take([good], counts)).acks["g1"].next == {STREAM: 10, "events": 2}

    run(tmp_path / "db", scenario)


def test_sessions_change_when_asked_but_not_too_often(tmp_path: Path) -> None:
    async def scenario(_: SqliteSink, table: Table) -> None:
        await table.take([readings(0, 5), readings(0, 5, gateway="g2")], Counts())
        first = await table.renew({"g1"})
        assert set(first) == {"g1"}
        assert await table.renew({"g1"}) == {}  # it has just been asked
        forced = await table.renew(None, force=True)
        assert set(forced) == {"g1", "g2"}
        assert forced["g1"].session != first["g1"].session
        assert decode_ack(msgspec.json.encode(forced["g1"])).next == {STREAM: 5}  # the gateway's own reader

    run(tmp_path / "db", scenario)


def test_views_show_channels_by_name_also_after_they_changed(tmp_path: Path) -> None:
    path = tmp_path / "db"
    wild = Schema((Channel('a"; DROP TABLE reading; --', "I"), Channel("seq", "f")))

    async def scenario(sink: SqliteSink, table: Table) -> None:
        await table.take([readings(0, 3)], Counts())
        await table.take([readings(3, 2, schema=wild), events(0, ["hot"])], Counts())
        await table.take([readings(5, 1)], Counts())

    run(path, scenario)
    assert query(path, f'SELECT seq, count, watts, wall_ns FROM "v_{STREAM}"') == [
        (i, i, i / 2, OFFSET_NS + i * 1_000_000) for i in (0, 1, 2, 5)
    ]
    assert query(path, f'SELECT seq, "a""; DROP TABLE reading; --", "seq (2)" FROM "v_{STREAM} (2)"') == [
        (3, 3, 1.5),
        (4, 4, 2.0),
    ]
    assert query(path, "SELECT stream, name, message, detail FROM v_event") == [
        ("events", "hot", "about hot", '{"n":0}')
    ]


def test_numbers_that_json_does_not_know(tmp_path: Path) -> None:
    path = tmp_path / "db"
    head = header(0, 3, BatchKind.SAMPLES, spec="a:d:")
    odd = struct.pack("<3d", float("nan"), float("inf"), 1.5)
    run_of = Sample(STREAM, Schema((Channel("a", "d"),)), array("q", [0]), array("q", [1]), array("H", [3]), odd)
    batch = type(readings(0, 1))("g1", head, Codec().encode_samples(head, [run_of]))

    async def scenario(_: SqliteSink, table: Table) -> None:
        await table.take([batch], Counts())

    run(path, scenario)
    assert query(path, f'SELECT a FROM "v_{STREAM}"') == [(None,), (float("inf"),), (1.5,)]


def test_a_database_of_the_first_version_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "db"
    with closing(sqlite3.connect(path)) as db:
        db.executescript(
            "CREATE TABLE stream (id INTEGER PRIMARY KEY, gateway TEXT NOT NULL, epoch TEXT NOT NULL, stream TEXT NOT"
            " NULL, kind TEXT NOT NULL, channels TEXT NOT NULL, next_seq INTEGER NOT NULL DEFAULT 0,"
            " UNIQUE (gateway, epoch, stream));"
            "CREATE TABLE reading (stream INTEGER NOT NULL, seq INTEGER NOT NULL, mono_ns INTEGER, wall_ns INTEGER,"
            " value TEXT NOT NULL, PRIMARY KEY (stream, seq)) WITHOUT ROWID;"
        )
        db.execute("INSERT INTO stream VALUES (1, 'g1', ?, ?, 'samples', 'count:I:', 2)", (EPOCH.hex(), STREAM))
        db.executemany("INSERT INTO reading VALUES (1, ?, 0, 0, '[0]')", [(0,), (1,)])
        db.commit()

    async def scenario(sink: SqliteSink, table: Table) -> None:
        taken = await table.take([readings(0, 10)], Counts())
        assert taken.acks["g1"].next == {STREAM: 10}
        (stream,) = await sink.ledger(count=True)
        assert whole([stream]) and stream.committed == 10

    run(path, scenario)


def test_a_second_consumer_of_one_file_is_refused(tmp_path: Path) -> None:
    async def scenario(_: SqliteSink, __: Table) -> None:
        with pytest.raises(StoreError, match="another octogate-ingest"):
            SqliteSink(tmp_path / "db")

    run(tmp_path / "db", scenario)
    run(tmp_path / "db", lambda _sink, table: table.load())  # the lock went with the first one


def test_a_transaction_that_is_cancelled_leaves_nothing(tmp_path: Path) -> None:
    """The statement that runs is waited for: it must not go on outside of its transaction."""

    async def scenario(sink: SqliteSink, table: Table) -> None:
        await table.take([readings(0, 1)], Counts())
        for turns in range(12):
            async with asyncio.TaskGroup() as tasks:
                task = tasks.create_task(table.take([readings(1, 3000)], Counts()), name="take")
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
            (stream,) = await sink.ledger(count=True)
            assert stream.rows == stream.committed == stream.next_seq
        await table.take([readings(1, 3000)], Counts())
        assert whole(await sink.ledger(count=True))

    run(tmp_path / "db", scenario)


def test_rows_that_are_no_events_are_kept_as_text(tmp_path: Path) -> None:
    path = tmp_path / "db"

    async def scenario(_: SqliteSink, table: Table) -> None:
        await table.take([rows(0, [b'{"name": 5}', b"\xff\x00 no json"], BatchKind.EVENTS, "events")], Counts())

    run(path, scenario)
    assert len(query(path, "SELECT value FROM reading")) == 2
    assert query(path, "SELECT name FROM v_event") == [(5,)]
