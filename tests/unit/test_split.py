"""Batches cut for a broker that does not take them whole, and what is known of that broker."""

from __future__ import annotations

import asyncio
import random
from array import array
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from gateway.clock import Clock
from gateway.contract import Batch, BatchKind, Channel, Sample, Schema
from gateway.errors import UplinkError
from gateway.store.columns import Codec, Header, expand, joined, read_header
from gateway.store.ledger import read_ledger
from gateway.store.split import split
from gateway.store.spool import Spool
from gateway.sync.packets import LEAST, SUSPECT, PacketLimit

SCHEMA = Schema((Channel("a", "I"), Channel("b", "d")))
CODEC = Codec()
EPOCH = b"e" * 16


def header(kind: BatchKind, n: int, seq: int = 0, spec: str = "") -> Header:
    return Header(EPOCH, "s", seq, n, kind, spec, "boot", 5, 7)


def sample(counts: list[int]) -> Sample:
    n = sum(counts)
    firsts = array("q", [1_000_000 * i for i in range(len(counts))])
    steps = array("q", [10 + i for i in range(len(counts))])
    return Sample("s", SCHEMA, firsts, steps, array("H", counts), random.Random(n).randbytes(n * SCHEMA.record_size))


@given(st.lists(st.integers(1, 60), min_size=1, max_size=30), st.integers(200, 3000), st.integers(0, 1 << 40))
def test_the_parts_of_a_saved_batch_know_what_they_were(counts: list[int], largest: int, before: int) -> None:
    whole = sample(counts)
    saved = msgspec.structs.replace(header(BatchKind.SAMPLES, whole.n, 70, SCHEMA.spec()), was=((b"o" * 16, before),))
    parts = split(CODEC, Batch(9, "s", 70, whole.n, CODEC.encode_samples(saved, [whole])), largest, Clock())
    for part in parts:
        head, _ = read_header(part.batch.blob)
        assert head.was == ((b"o" * 16, before + head.seq_first - 70),)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=30), st.integers(200, 3000), st.integers(0, 1 << 40))
def test_the_parts_of_readings_fit_and_are_the_whole(counts: list[int], largest: int, seq: int) -> None:
    whole = sample(counts)
    blob = CODEC.encode_samples(header(BatchKind.SAMPLES, whole.n, seq, SCHEMA.spec()), [whole])
    parts = split(CODEC, Batch(9, "s", seq, whole.n, blob), largest, Clock())
    assert all(len(part.batch.blob) <= largest and not part.size for part in parts)
    at = seq
    decoded = []
    for part in parts:
        head, piece = CODEC.decode_samples(part.batch.blob)
        assert (head.seq_first, head.n, head.epoch, head.boot) == (at, part.batch.n, EPOCH, "boot")
        assert part.batch.seq_first == at
        at += head.n
        decoded.append(piece)
    together = joined(decoded)
    assert together.data == whole.data
    assert [ns for ns, _ in expand(together)] == [ns for ns, _ in expand(whole)]
    assert [part.batch.id for part in parts] == [8] * (len(parts) - 1) + [9]
    again = split(CODEC, Batch(9, "s", seq, whole.n, blob), largest, Clock())
    assert parts == again  # the bytes under a key never change


@given(st.lists(st.integers(1, 900), min_size=1, max_size=40))
def test_rows_that_fit_go_and_a_row_that_does_not_is_a_gap(sizes: list[int]) -> None:
    rows = [random.Random(size).randbytes(size).hex().encode() for size in sizes]
    blob = CODEC.encode_rows(header(BatchKind.EVENTS, len(rows)), rows)
    parts = split(CODEC, Batch(1, "s", 0, len(rows), blob), 700, Clock())
    at = 0
    for part in parts:
        assert part.batch.seq_first == at and len(part.batch.blob) <= 700
        if part.size:
            assert part.size > 700 and part.batch.n == 1
            head, gap = CODEC.decode_gap(part.batch.blob)
            assert (head.seq_first, head.n, gap.why, gap.kind) == (at, 1, "packet", BatchKind.EVENTS)
        else:
            assert CODEC.decode_rows(part.batch.blob)[1] == rows[at : at + part.batch.n]
        at += part.batch.n
    assert at == len(rows)


def test_what_does_not_fit_is_told_and_ledgered_once_and_kept(tmp_path: Path) -> None:
    told: list[str] = []

    async def scenario() -> None:
        async with Spool.open(
            tmp_path / "spool.db", Clock(), commit_s=0.001, max_bytes=64 << 20,
            notify=lambda name, state, severity, message: told.append(f"{name} {message}"),
        ) as spool:  # fmt: skip
            big = random.Random(1).randbytes(3000).hex().encode()
            for row in (b"small", big, b"small too"):
                spool.append_row("s", BatchKind.EVENTS, row)
            await spool.append_row("s", BatchKind.EVENTS, b"last")
            store = spool.uplink("cloud")
            [batch] = await store.read_after(0)
            for _ in range(2):
                parts = await store.fit(batch, 2000)
                kinds = [read_header(part.blob)[0].kind for part in parts]
                assert sum(part.n for part in parts) == 4 and kinds.count(BatchKind.GAP) == 1
            assert len(await store.read_after(0)) == 1  # as it was
            spool.confirm({"s": 4})

    asyncio.run(scenario())
    [message] = told
    assert message.startswith("uplink.too_large") and "'cloud'" in message and "s 1:" in message and "2000" in message
    ledger = read_ledger(tmp_path / "spool.db", ("main",), check=True)
    assert ledger.whole
    assert [(d.stream, d.seq_first, d.n, d.why) for d in ledger.dropped] == [("s", 1, 1, "packet")]


# --- what is known of the broker ---------------------------------------------------------------------------------


def said(largest: int) -> Properties:
    properties = Properties(PacketTypes.CONNACK)  # type: ignore[no-untyped-call]
    properties.MaximumPacketSize = largest
    return properties


def test_the_smaller_of_config_and_the_brokers_word_counts() -> None:
    limit = PacketLimit("broker:1883")
    limit.connected(None)
    assert (limit.packet, limit.room("t")) == (0, 0)
    limit = PacketLimit("broker:1883", 20 << 10)
    limit.connected(said(1 << 20))
    assert limit.packet == 20 << 10
    limit.connected(said(5000))
    assert limit.packet == 5000
    payload = b"x" * limit.room("octo/v1/press/up/s")
    assert limit.size("octo/v1/press/up/s", payload) == 5000
    with pytest.raises(UplinkError, match="800 bytes"):
        limit.connected(said(LEAST - 224))


def test_a_connection_that_ends_twice_under_a_packet_teaches_its_size() -> None:
    limit = PacketLimit("broker:1883")
    limit.broken(SUSPECT - 1)
    limit.broken(0)
    limit.broken(40_000)
    assert [limit.packet] == [0]
    limit.broken(40_000)
    assert limit.packet == 20_000
    limit.acknowledged(19_000)
    for _ in range(5):
        limit.broken(19_000)  # such a one was taken before: it is not the size
    assert limit.packet == 20_000
    limit.broken(19_900)
    limit.broken(19_900)
    assert limit.packet == 19_000  # never less than what was taken


def test_an_acknowledgement_between_two_breaks_clears_the_suspicion() -> None:
    limit = PacketLimit("broker:1883")
    limit.broken(40_000)
    limit.acknowledged(40_000)
    limit.broken(40_000)
    limit.broken(41_000)
    assert [limit.packet] == [0]
