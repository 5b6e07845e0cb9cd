"""A consumer that lost a batch and confirms others all the same, against a store and a link that are scripted."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from gateway.contract import Batch
from gateway.sync import backlog
from gateway.sync.backlog import Ack
from tests.unit.test_backlog import EPOCH, Bench, Disk, bench


class TwoStreams(Disk):
    """Batches of one row, of `s` or of `t`."""

    def add(self, stream: str) -> Batch:
        seq = sum(batch.stream == stream for batch in self.batches)
        self.batches.append(Batch(self.head + 1, stream, seq, 1, b"x"))
        return self.batches[-1]

    async def rewind_point(self, watermark: Mapping[str, int]) -> int:
        return min((b.id for b in self.batches if b.seq_first >= watermark.get(b.stream, 0)), default=self.head + 1) - 1


def prepare(b: Bench) -> tuple[TwoStreams, list[tuple[str, int]]]:
    """Two streams in place of one, and what is sent of them."""
    disk, sent = TwoStreams(), []

    def send(batch: Batch) -> bool:
        sent.append((batch.stream, batch.seq_first))
        return True

    b.backlog._store, b.backlog._send = disk, send
    return disk, sent


async def talk(b: Bench, disk: TwoStreams, seconds: float, lost: int = 0) -> None:
    """The consumer confirms all of `s` that is there, and goes on with that, and `lost` of `t`."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while loop.time() < end:
        b.backlog.committed([disk.add("s")])
        count = sum(batch.stream == "s" for batch in disk.batches)
        b.backlog.acknowledged(Ack("one", EPOCH.hex(), {"s": count, "t": lost}))
        await asyncio.sleep(0.002)


def test_what_was_lost_is_sent_again_ever_more_rarely_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog, "SILENCE_S", 0.05)

    async def scenario() -> None:
        async with bench(window=50) as b:
            disk, sent = prepare(b)
            b.backlog.acknowledged(Ack("one", EPOCH.hex(), {}))
            b.backlog.start()
            await b.settle()
            b.backlog.committed([disk.add("t")])
            await talk(b, disk, 0.8)
            again = sent.count(("t", 0)) - 1
            assert 1 <= again <= 5  # after 0.1, 0.2, 0.4 ... and not 16 times
            assert len([one for one in sent if one[0] == "s"]) <= len(disk.batches) + 2 * again  # not all that followed
            b.backlog.acknowledged(Ack("one", EPOCH.hex(), {"s": len(disk.batches) - 1, "t": 1}))
            del sent[:]
            await talk(b, disk, 0.3, lost=1)
            assert ("t", 0) not in sent

    asyncio.run(scenario())


def test_one_that_is_slow_but_takes_all_in_order_is_not_sent_anything_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog, "SILENCE_S", 0.02)

    async def scenario() -> None:
        async with bench(window=50) as b:
            disk, sent = prepare(b)
            b.backlog.acknowledged(Ack("one", EPOCH.hex(), {}))
            b.backlog.start()
            await b.settle()
            for i in range(200):
                b.backlog.committed([disk.add("t" if i % 10 == 9 else "s")])
            for i in range(1, 201):  # ten times as long as it would take to miss something
                done = {"s": sum(x.stream == "s" for x in disk.batches[:i]), "t": i // 10}
                b.backlog.acknowledged(Ack("one", EPOCH.hex(), done))
                await asyncio.sleep(0.002)
            assert len(sent) == len(set(sent)) == 200

    asyncio.run(scenario())
