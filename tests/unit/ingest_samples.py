"""Batches as gateways make them, and what must be in a store after any history of them."""

from __future__ import annotations

import random
import struct
from array import array

import msgspec

from gateway.clock import Clock
from gateway.contract import BatchKind, Channel, Event, Sample, Schema, Severity, Stamp
from gateway.store.columns import Codec, Header
from sdk.ingest.batches import Arrived, Counts
from sdk.ingest.ledger import whole
from sdk.ingest.store import Sink, Table

EPOCH = bytes(range(16))
POWER = Schema((Channel("count", "I"), Channel("watts", "f", "W")))
STREAM = "press/power"
OFFSET_NS = 1_700_000_000_000_000_000
_codec = Codec()


def sample(first: int, n: int, schema: Schema = POWER, stream: str = STREAM) -> Sample:
    """Readings whose first channel is their number and whose time is a millisecond a number."""
    data = b"".join(
        struct.pack(schema.format, i, *[i / 2] * (len(schema.channels) - 1)) for i in range(first, first + n)
    )
    return Sample(stream, schema, array("q", [first * 1_000_000]), array("q", [1_000_000]), array("H", [n]), data)


def header(
    first: int, n: int, kind: BatchKind, *, stream: str = STREAM, spec: str = "", epoch: bytes = EPOCH
) -> Header:
    return Header(epoch, stream, first, n, kind, spec, "boot-1", OFFSET_NS, 1000)


def readings(
    first: int, n: int, *, gateway: str = "g1", stream: str = STREAM, epoch: bytes = EPOCH, schema: Schema = POWER
) -> Arrived:
    head = header(first, n, BatchKind.SAMPLES, stream=stream, spec=schema.spec(), epoch=epoch)
    return Arrived(gateway, head, _codec.encode_samples(head, [sample(first, n, schema, stream)]))


def gap(first: int, n: int, why: str = "store full", *, stream: str = STREAM) -> Arrived:
    head = header(first, n, BatchKind.GAP, stream=stream)
    row = msgspec.json.encode({"why": why, "kind": "samples", "boot": "boot-1", "mono_ns": 5})
    return Arrived("g1", head, _codec.encode_rows(head, [row]))


def events(first: int, texts: list[str], *, gateway: str = "g1") -> Arrived:
    head = header(first, len(texts), BatchKind.EVENTS, stream="events")
    stamp = Clock().now()
    rows = [
        msgspec.json.encode(Event(text, "press", "raised", Severity.ALARM, stamp, f"about {text}", {"n": i}))
        for i, text in enumerate(texts)
    ]
    return Arrived(gateway, head, _codec.encode_rows(head, rows))


def rows(first: int, texts: list[bytes], kind: BatchKind, stream: str) -> Arrived:
    head = header(first, len(texts), kind, stream=stream)
    return Arrived("g1", head, _codec.encode_rows(head, texts))


def stamp(wall_ns: int | None = OFFSET_NS) -> Stamp:
    return Stamp("boot-1", 5, wall_ns, 1000)


async def any_history(sink: Sink, choose: random.Random, total: int = 400) -> Counts:
    """Deliver a stream in batches that come late, early, twice and after rewinds, with a dropped range in it.

    Afterwards the ledger is whole, and every sequence number is committed or ledgered as dropped.
    """
    table, counts = Table(sink), Counts()
    batches, at, dropped = [], 0, 0
    while at < total:
        n = choose.randint(1, 40)
        if choose.random() < 0.15:
            dropped += n
            batches.append(gap(at, n))
        else:
            batches.append(readings(at, n))
        at += n
    while True:
        begin = table.next.get(batches[0].key, 0)
        waiting = [batch for batch in batches if batch.end > begin]
        if not waiting:
            break
        sent = [batch for batch in waiting for _ in range(choose.choice((0, 1, 1, 1, 2)))]
        if choose.random() < 0.3:
            choose.shuffle(sent)
        while sent:
            size = choose.randint(1, 6)
            await table.take(sent[:size], counts)
            sent = sent[size:]
            (stream,) = await sink.ledger(count=True)
            assert stream.next_seq == table.next[batches[0].key]
            assert stream.rows == stream.committed and stream.committed + stream.dropped == stream.next_seq
    (stream,) = await sink.ledger(count=True)
    assert whole([stream]) and stream.next_seq == at
    assert (stream.dropped, stream.committed, stream.waiting) == (dropped, at - dropped, 0)
    assert (counts.dropped, counts.rows) == (dropped, at - dropped)
    return counts
