"""Brokers that do not take large packets: one says so, the others close the connection. Nothing stops, nothing is lost."""

from __future__ import annotations

import asyncio
import random
from array import array
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import iotcore
import msgspec
import pytest

from gateway.clock import Clock
from gateway.contract import EVENTS_STREAM, BatchKind, Channel, Event, Sample, Schema, Severity
from gateway.store.ledger import read_ledger
from gateway.store.spool import Spool
from sdk.ingest import Ingest
from sdk.ingest.consumer import open_sink
from tests.integration.harness import (
    assert_whole,
    config,
    count,
    daemon,
    delivered,
    delivered_count,
    free_port,
    node,
    settled,
    until,
)
from tests.integration.mosquitto import plain_mosquitto

LIMIT = 20 << 10
NOISE, EACH, BATCHES = "old/noise", 8000, 4
SCHEMA = Schema((Channel("n", "Q"),))


@asynccontextmanager
async def small_broker(kind: str, folder: Path) -> AsyncIterator[int]:
    """A broker that takes 20 KiB a packet, and its port."""
    if kind == "mosquitto":
        async with plain_mosquitto(folder, f"max_packet_size {LIMIT}\n") as port:
            yield port
    else:
        port = free_port()
        with iotcore.Broker(port=port, listen="127.0.0.1"):  # as it comes
            yield port


async def fill(path: Path) -> list[int]:
    """A spool from before: readings that do not compress in batches of 64 kB, and an event of 50 kB among small ones."""
    made = random.Random(5)
    numbers = [made.getrandbits(64) for _ in range(EACH * BATCHES)]
    async with Spool.open(path, Clock(), commit_s=0.001, max_bytes=64 << 20, notify=lambda *_: None) as spool:
        for i in range(BATCHES):
            data = array("Q", numbers[i * EACH : (i + 1) * EACH]).tobytes()
            times = array("q", [i * EACH * 1000]), array("q", [1000]), array("H", [EACH])
            await spool.append_samples([Sample(NOISE, SCHEMA, *times, data)], None)
        for size in (10, 50_000, 20):
            event = Event("old", "test", "point", Severity.INFO, Clock().now(), made.randbytes(size // 2).hex())
            spool.append_row(EVENTS_STREAM, BatchKind.EVENTS, msgspec.json.encode(event))
    return numbers


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("mosquitto", 'protocol = "5"\n'),  # its CONNACK says so
        ("mosquitto", "max_packet_kib = 20\n"),
        ("iotcore", "max_packet_kib = 20\n"),
        ("mosquitto", ""),  # nobody says so: learned
        ("iotcore", ""),
    ],
    ids=["mosquitto-5", "mosquitto-config", "iotcore-config", "mosquitto-learned", "iotcore-learned"],
)
def test_a_backlog_of_large_batches_passes_a_broker_that_takes_small_ones(tmp_path: Path, kind: str, more: str) -> None:
    async def scenario() -> None:
        numbers, db = await fill(tmp_path / "data" / "spool.db"), tmp_path / "consumer.db"
        async with small_broker(kind, tmp_path) as port, Ingest.open(db, port=port) as ingest, node(tmp_path):
            async with daemon(tmp_path, config(tmp_path, port, more)) as gateway:
                await until(lambda: count(db, NOISE) == EACH * BATCHES, "what was large is there")
                await until(lambda: count(db) > 200, "and what came after it")
                await gateway.until(lambda s: "uplink.too_large" in {e.name for e in s.events}, "it is said")
                said = next(e for e in (await gateway.status()).events if e.name == "uplink.too_large")
                assert "events 1:" in said.message and "octogate ledger" in said.message
                if more:
                    assert (await gateway.status()).uplink.reconnects == 0  # it never came to a cut
                on_disk = await settled(gateway, db)
                status = await gateway.until(lambda s: s.uplink.state == "up", "it runs again")
                events = next(s.next_seq for s in status.streams if s.name == EVENTS_STREAM)
                await until(lambda: delivered_count(db, EVENTS_STREAM) >= events, "events too")
            assert ingest.counts.refused == 0
        assert [row[0] for _, row in delivered(db, NOISE)] == numbers
        assert_whole(db, on_disk)
        assert [seq for seq, _ in delivered(db, EVENTS_STREAM)][:3] == [0, 2, 3]
        ours = read_ledger(tmp_path / "data" / "spool.db", ("main",), check=True)
        assert ours.whole
        assert [(d.stream, d.seq_first, d.n, d.why) for d in ours.dropped] == [(EVENTS_STREAM, 1, 1, "packet")]
        sink = await open_sink(db, "", read_only=True)
        theirs = {ledger.stream: ledger for ledger in await sink.ledger(count=True)}
        await sink.close()
        assert (theirs[EVENTS_STREAM].dropped, theirs[EVENTS_STREAM].missing) == (1, 0)
        assert theirs[NOISE].committed == theirs[NOISE].rows == EACH * BATCHES

    asyncio.run(scenario())
