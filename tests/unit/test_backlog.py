"""The backlog plane, against a store and a link that are scripted: what is sent, when, and from where."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import pytest

from gateway.contract import Batch
from gateway.sync import backlog
from gateway.sync.backlog import FRESH_BYTES, Ack, Backlog
from gateway.sync.bucket import TokenBucket

EPOCH = b"e" * 16


class Disk:
    """A spool of one stream, with batches of one row."""

    def __init__(self) -> None:
        self.epoch = EPOCH
        self.batches: list[Batch] = []
        self.known: dict[str, int] = {}
        self.sent_to: dict[str, int] = {}

    @property
    def head(self) -> int:
        return len(self.batches)

    def commit(self, n: int, size: int = 10) -> list[Batch]:
        fresh = [Batch(self.head + 1 + i, "s", self.head + i, 1, b"x" * size) for i in range(n)]
        self.batches += fresh
        return fresh

    async def read_after(self, batch_id: int) -> list[Batch]:
        await asyncio.sleep(0)
        return self.batches[batch_id : batch_id + 7]

    async def fit(self, batch: Batch, largest: int) -> list[Batch]:
        await asyncio.sleep(0)
        cuts = range(0, len(batch.blob), largest)
        ids = [batch.id - 1] * (len(cuts) - 1) + [batch.id]
        return [
            Batch(id, "s", batch.seq_first, 1, batch.blob[k : k + largest]) for id, k in zip(ids, cuts, strict=True)
        ]

    async def rewind_point(self, watermark: Mapping[str, int]) -> int:
        await asyncio.sleep(0)
        return watermark.get("s", 0)

    def confirm(self, watermark: Mapping[str, int]) -> None:
        self.known.update(watermark)

    def confirmed(self) -> Mapping[str, int]:
        return dict(self.known)

    def sending(self, stream: str, seq: int) -> None:
        self.sent_to[stream] = max(seq, self.sent_to.get(stream, 0))


class Wire:
    """A link with a window."""

    def __init__(self, window: int) -> None:
        self.window = window
        self.up = True
        self.sent: list[int] = []
        self.sizes: list[int] = []
        self.largest = 0
        self.inflight = 0

    def room(self) -> bool:
        return self.up and self.inflight < self.window

    def send(self, batch: Batch) -> bool:
        if not self.up:
            return False
        assert self.inflight < self.window
        self.inflight += 1
        assert len(batch.blob) <= (self.largest or len(batch.blob))
        self.sent.append(batch.seq_first)
        self.sizes.append(len(batch.blob))
        return True


class Bench:
    def __init__(self, window: int, bucket: TokenBucket | None) -> None:
        self.disk, self.wire = Disk(), Wire(window)
        self.backlog = Backlog(self.disk, self.wire.send, self.wire.room, bucket, lambda _: self.wire.largest)

    def commit(self, n: int, size: int = 10) -> None:
        self.backlog.committed(self.disk.commit(n, size))

    def acknowledge(self) -> None:
        self.wire.inflight = 0
        self.backlog.push()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Acknowledge whatever is under way until `condition` holds."""
        async with asyncio.timeout(30):
            while not condition():
                self.acknowledge()
                await asyncio.sleep(0)

    async def settle(self) -> None:
        for _ in range(200):
            await asyncio.sleep(0)


@asynccontextmanager
async def bench(window: int = 3, bucket: TokenBucket | None = None) -> AsyncIterator[Bench]:
    made = Bench(window, bucket)
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(made.backlog.run())
        yield made
        task.cancel()


def test_everything_once_and_in_order_from_disk_and_memory() -> None:
    async def scenario() -> None:
        async with bench() as b:
            b.commit(30)  # while the link is down
            b.backlog.start()
            await b.until(lambda: len(b.wire.sent) == 30)
            for _ in range(20):
                b.commit(2)
                b.acknowledge()
                await asyncio.sleep(0)
            await b.until(lambda: len(b.wire.sent) == 70)
            assert b.wire.sent == list(range(70))

    asyncio.run(scenario())


def test_fresh_batches_pass_without_a_detour_by_the_disk() -> None:
    async def scenario() -> None:
        async with bench() as b:
            b.backlog.start()
            await b.settle()
            b.commit(2)
            assert b.wire.sent == [0, 1]  # no await in between

    asyncio.run(scenario())


def test_the_window_is_kept() -> None:
    async def scenario() -> None:
        async with bench(window=3) as b:
            b.commit(10)
            b.backlog.start()
            await b.settle()
            assert b.wire.sent == [0, 1, 2]
            b.acknowledge()
            await b.settle()
            assert b.wire.sent == [0, 1, 2, 3, 4, 5]

    asyncio.run(scenario())


def test_commits_during_catching_up_are_not_overtaken() -> None:
    async def scenario() -> None:
        async with bench() as b:
            b.commit(20)
            b.backlog.start()
            while len(b.wire.sent) < 60:
                b.commit(1)
                b.acknowledge()
                await asyncio.sleep(0)
                if len(b.disk.batches) >= 60:
                    break
            await b.until(lambda: len(b.wire.sent) == len(b.disk.batches))
            assert b.wire.sent == list(range(len(b.disk.batches)))

    asyncio.run(scenario())


def test_more_than_memory_holds_comes_from_disk() -> None:
    async def scenario() -> None:
        async with bench() as b:
            b.backlog.start()
            await b.settle()
            for _ in range(30):
                b.commit(1, FRESH_BYTES // 8)
            await b.until(lambda: len(b.wire.sent) == 30)
            assert b.wire.sent == list(range(30))

    asyncio.run(scenario())


def test_a_broken_link_goes_back_to_the_watermark() -> None:
    async def scenario() -> None:
        async with bench() as b:
            b.commit(10)
            b.backlog.start()
            await b.until(lambda: len(b.wire.sent) == 10)
            b.backlog.acknowledged(Ack("one", EPOCH.hex(), {"s": 4}))
            b.wire.up = False
            b.backlog.stop()
            b.commit(3)
            await b.settle()
            b.wire.up, b.wire.sent, b.wire.inflight = True, [], 0
            b.backlog.start()
            await b.until(lambda: len(b.wire.sent) == 9)
            assert b.wire.sent == list(range(4, 13))

    asyncio.run(scenario())


def test_a_new_session_of_the_consumer_goes_back_even_below_what_it_had_confirmed() -> None:
    async def scenario() -> None:
        async with bench() as b:
            b.commit(10)
            b.backlog.acknowledged(Ack("one", EPOCH.hex(), {"s": 10}))
            b.backlog.start()
            await b.settle()
            assert b.wire.sent == []
            b.backlog.acknowledged(Ack("two", EPOCH.hex(), {"s": 6}))  # its database was restored from a backup
            await b.until(lambda: b.wire.sent == [6, 7, 8, 9])

    asyncio.run(scenario())


def test_the_same_session_moves_the_watermark_and_nothing_else() -> None:
    async def scenario() -> None:
        async with bench(window=50) as b:
            b.commit(10)
            b.backlog.start()
            await b.settle()
            b.backlog.acknowledged(Ack("one", EPOCH.hex(), {"s": 5}))
            await b.until(lambda: len(b.wire.sent) == 15)  # a session not known before: sent again from 5 on
            b.backlog.acknowledged(Ack("one", EPOCH.hex(), {"s": 10}))
            await b.settle()
            assert len(b.wire.sent) == 15
            assert b.disk.known == {"s": 10}

    asyncio.run(scenario())


def test_a_watermark_of_another_epoch_counts_for_nothing() -> None:
    async def scenario() -> None:
        async with bench() as b:
            b.commit(3)
            b.backlog.acknowledged(Ack("one", "00" * 16, {"s": 3}))
            b.backlog.start()
            await b.until(lambda: b.wire.sent == [0, 1, 2])
            assert b.disk.known == {}

    asyncio.run(scenario())


def test_the_bucket_slows_what_waited_and_not_what_is_fresh() -> None:
    async def scenario() -> None:
        async with bench(window=50, bucket=TokenBucket(1e4, 100)) as b:
            b.commit(11, 100)
            loop = asyncio.get_running_loop()
            started = loop.time()
            b.backlog.start()
            await b.until(lambda: len(b.wire.sent) == 11)
            assert loop.time() - started >= 0.08  # 1,000 bytes beyond the burst at 10 kB/s, less what was on credit
            await b.until(lambda: b.backlog.idle)
            b.commit(40, 100)
            assert b.wire.sent == list(range(51))  # at once

    asyncio.run(scenario())


def test_a_silent_consumer_is_asked_and_its_answer_is_the_new_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog, "SILENCE_S", 0.01)

    async def scenario() -> None:
        async with bench(window=50) as b:
            b.backlog.acknowledged(Ack("one", EPOCH.hex(), {}))
            b.commit(4)
            b.backlog.start()
            await b.until(lambda: len(b.wire.sent) >= 5)
            assert b.wire.sent[:5] == [0, 1, 2, 3, 0]  # the first once more: the question
            # it had got one of them only, and its session is still the same
            b.backlog.acknowledged(Ack("one", EPOCH.hex(), {"s": 1}))
            del b.wire.sent[:]
            await b.until(lambda: b.wire.sent[:3] == [1, 2, 3])
            b.backlog.acknowledged(Ack("one", EPOCH.hex(), {"s": 4}))
            await b.until(lambda: b.backlog._timer is None)  # nothing left to wait for: no timer

    asyncio.run(scenario())


def test_what_nobody_hears_is_not_sent_and_all_of_it_once_somebody_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog, "UNHEARD_S", 0.01)

    async def scenario() -> None:
        async with bench(window=2) as b:
            b.commit(6)
            b.backlog.start()
            await b.settle()
            assert b.wire.sent == [0, 1]
            b.wire.inflight = 0
            b.backlog.heard(False)
            b.commit(2)
            b.backlog.push()
            while len(b.wire.sent) < 3:
                await asyncio.sleep(0.001)
            assert b.wire.sent == [0, 1, 0]  # nothing but the question
            b.wire.inflight = 0
            await b.settle()
            assert set(b.wire.sent[2:]) == {0}
            b.backlog.heard(True)
            del b.wire.sent[:]
            await b.until(lambda: len(b.wire.sent) == 8)
            assert b.wire.sent == list(range(8))

    asyncio.run(scenario())


def test_a_consumer_that_announces_itself_ends_the_waiting() -> None:
    async def scenario() -> None:
        async with bench(window=50) as b:
            b.commit(3)
            b.backlog.start()
            await b.settle()
            b.backlog.heard(False)
            del b.wire.sent[:]
            b.backlog.acknowledged(Ack("one", EPOCH.hex(), {"s": 1}))
            await b.until(lambda: b.wire.sent == [1, 2])

    asyncio.run(scenario())


def test_what_the_broker_does_not_take_whole_goes_in_parts_from_memory_and_from_disk() -> None:
    async def scenario() -> None:
        async with bench(window=2) as b:
            b.wire.largest = 40
            b.commit(3, size=100)
            b.backlog.start()
            await b.until(lambda: len(b.wire.sent) == 9)
            b.commit(2, size=10)
            b.commit(1, size=100)
            b.commit(1, size=10)
            await b.until(lambda: len(b.wire.sent) == 15)
            assert b.wire.sent == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 4, 5, 5, 5, 6]
            assert b.wire.sizes[:3] == [40, 40, 20]
            b.wire.largest = 0  # another broker, or its limit was raised
            b.backlog.stop()
            b.wire.inflight = 0
            b.backlog.start()
            await b.until(lambda: len(b.wire.sent) == 22)
            assert b.wire.sent[15:] == list(range(7))

    asyncio.run(scenario())


def test_a_link_that_breaks_between_parts_begins_with_that_batch_again() -> None:
    async def scenario() -> None:
        async with bench(window=2) as b:
            b.wire.largest = 40
            b.commit(1, size=10)
            b.commit(1, size=100)
            b.backlog.start()
            await b.settle()
            assert b.wire.sent == [0, 1]
            b.backlog.stop()
            b.wire.inflight = 0
            b.backlog.start()
            await b.until(lambda: len(b.wire.sent) == 6)
            assert b.wire.sent[2:] == [0, 1, 1, 1]

    asyncio.run(scenario())
