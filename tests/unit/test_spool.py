"""The spool: on disk before it is said to be, in order, and never losing what it said."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.clock import Clock
from gateway.contract import Batch, BatchKind, Mark, Severity
from gateway.errors import StoreError
from gateway.store.columns import Codec, expand
from gateway.store.spool import Spool
from tests.unit.samples import counted

STREAM = "press/power"


@asynccontextmanager
async def spool(
    folder: Path, *, max_bytes: int = 64 << 20, told: list[tuple[str, str]] | None = None
) -> AsyncIterator[Spool]:
    def notify(name: str, state: str, severity: Severity, message: str) -> None:
        if told is not None:
            told.append((name, state))

    path = folder / "spool.db"
    async with Spool.open(path, Clock(), commit_s=0.001, max_bytes=max_bytes, notify=notify) as opened:
        yield opened


def numbers(batches: list[Batch]) -> list[int]:
    codec = Codec()
    return [int(v[0]) for batch in batches for _, v in expand(codec.decode_samples(batch.blob)[1])]


def test_what_is_done_is_on_disk(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with spool(tmp_path) as opened:
            await opened.append_samples([counted(STREAM, 0, 10)], Mark("press", 77, 4))
            # another connection sees it although the spool is still open
            with sqlite3.connect(tmp_path / "spool.db") as other:
                assert other.execute("SELECT sum(n) FROM batch").fetchone() == (10,)
                assert other.execute("SELECT session, mark FROM batch").fetchall() == [(77, 4)]
            other.close()

    asyncio.run(scenario())


def test_order_sequence_and_marks_survive_a_restart(tmp_path: Path) -> None:
    async def first() -> bytes:
        async with spool(tmp_path) as opened:
            for i in range(20):
                opened.append_samples([counted(STREAM, i * 10, 10)], Mark("press", 1, i))
                if i % 3 == 0:
                    await opened.append_row("events", BatchKind.EVENTS, b"{}")
            return opened.epoch

    async def second(epoch: bytes) -> None:
        async with spool(tmp_path) as opened:
            assert opened.epoch == epoch
            assert opened.mark("press") == Mark("press", 1, 19)
            assert opened.next_seq() == {STREAM: 200, "events": 7}
            batches = await opened.read_after(0)
            assert [b.id for b in batches] == sorted(b.id for b in batches)
            mine = [b for b in batches if b.stream == STREAM]
            assert numbers(mine) == list(range(200))
            ends = [b.seq_first + b.n for b in mine]
            assert [b.seq_first for b in mine] == [0, *ends[:-1]]
            assert opened.kind("events") is BatchKind.EVENTS

    asyncio.run(second(asyncio.run(first())))


def test_commits_are_handed_on_in_order(tmp_path: Path) -> None:
    async def scenario() -> None:
        seen: list[Batch] = []
        async with spool(tmp_path) as opened:
            opened.on_commit = seen.extend
            for i in range(50):
                opened.append_samples([counted(STREAM, i, 1)], None)
                await asyncio.sleep(0)
        assert numbers(seen) == list(range(50))
        assert seen[-1].id == opened.head

    asyncio.run(scenario())


def test_a_large_run_is_split_into_bounded_batches(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with spool(tmp_path) as opened:
            await opened.append_samples([counted(STREAM, i * 5000, 5000) for i in range(6)], None)
            batches = await opened.read_after(0)
            assert max(batch.n for batch in batches) <= 8192
            assert numbers(batches) == list(range(30000))

    asyncio.run(scenario())


def test_rewind_point_and_watermark(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with spool(tmp_path) as opened:
            for i in range(10):
                await opened.append_samples([counted("a/x", i * 5, 5)], None)
                await opened.append_samples([counted("b/x", i * 5, 5)], None)
            assert await opened.rewind_point({}) == 0
            assert await opened.rewind_point({"a/x": 50, "b/x": 50}) == opened.head
            after = await opened.read_after(await opened.rewind_point({"a/x": 50, "b/x": 20}))
            assert after[0].seq_first == 20
            # a watermark within a batch sends that batch whole: its key stays what it was
            after = await opened.read_after(await opened.rewind_point({"a/x": 50, "b/x": 23}))
            assert (after[0].stream, after[0].seq_first) == ("b/x", 20)
            opened.confirm({"a/x": 30, "b/x": 10})
            opened.confirm({"a/x": 25})  # it never goes back by itself
            await opened.append_samples([counted("a/x", 50, 1)], None)
            assert opened.confirmed() == {"a/x": 30, "b/x": 10}
            assert opened.status().backlog == (51 - 30) + (50 - 10)
        async with spool(tmp_path) as opened:
            assert opened.confirmed() == {"a/x": 30, "b/x": 10}

    asyncio.run(scenario())


def test_delivered_batches_are_trimmed_and_others_are_not(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with spool(tmp_path, max_bytes=1 << 20) as opened:
            for written in range(1, 401):
                await opened.append_row("events", BatchKind.EVENTS, _incompressible(4000))
                opened.confirm({"events": written - 5})
            assert opened.status().bytes <= 1 << 20
            kept = await opened.read_after(0, 1 << 30)
            assert [b.seq_first for b in kept][-5:] == [395, 396, 397, 398, 399]
            assert len(kept) < 300

    asyncio.run(scenario())


def test_sequence_marks_and_ids_survive_trimming_and_a_restart(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with spool(tmp_path, max_bytes=1 << 20) as opened:
            await opened.append_samples([counted(STREAM, 0, 10)], Mark("press", 9, 3))
            await opened.append_samples([], Mark("idle-node", 5, 1))  # a mark without readings
            for written in range(1, 500):
                await opened.append_row("events", BatchKind.EVENTS, _incompressible(4000))
                opened.confirm({"events": written, STREAM: 10})
            head = opened.head
            assert STREAM not in {b.stream for b in await opened.read_after(0, 1 << 30)}
        async with spool(tmp_path, max_bytes=1 << 20) as opened:
            assert opened.head == head
            assert opened.mark("press") == Mark("press", 9, 3)
            assert opened.mark("idle-node") == Mark("idle-node", 5, 1)
            assert opened.next_seq() == {STREAM: 10, "events": 499}
            await opened.append_samples([counted(STREAM, 10, 1)], Mark("press", 9, 4))
        async with spool(tmp_path, max_bytes=1 << 20) as opened:
            assert opened.mark("press") == Mark("press", 9, 4)
            assert opened.next_seq()[STREAM] == 11

    asyncio.run(scenario())


def test_a_full_spool_waits_and_goes_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        told: list[tuple[str, str]] = []
        async with spool(tmp_path, max_bytes=1 << 20, told=told) as opened:
            written = 0
            while not told:
                done = opened.append_row("events", BatchKind.EVENTS, _incompressible(20000))
                written += 1
                await asyncio.wait([done], timeout=0.2)
            assert told == [("store.full", "raised")]
            assert not done.done()  # nothing is acknowledged that is not on disk
            assert opened.status().state == "full"
            stored = opened.next_seq()["events"]
            assert [b.seq_first for b in await opened.read_after(0, 1 << 30)] == list(range(stored))
            opened.confirm({"events": stored})
            await asyncio.wait_for(done, 10)
            assert told[-1] == ("store.full", "cleared")
            assert opened.next_seq()["events"] == written

    asyncio.run(scenario())


def test_closing_a_full_spool_does_not_hang(tmp_path: Path) -> None:
    async def scenario() -> None:
        told: list[tuple[str, str]] = []
        async with spool(tmp_path, max_bytes=1 << 20, told=told) as opened:
            while not told:
                done = opened.append_row("events", BatchKind.EVENTS, _incompressible(20000))
                await asyncio.wait([done], timeout=0.2)
        assert not done.done()

    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_a_newer_file_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "spool.db") as db:
        db.execute("PRAGMA user_version = 999")
    db.close()

    async def scenario() -> None:
        with pytest.raises(StoreError, match="newer version"):
            async with spool(tmp_path):
                pass

    asyncio.run(scenario())


def test_the_file_is_private(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with spool(tmp_path):
            assert (tmp_path / "spool.db").stat().st_mode & 0o077 == 0

    asyncio.run(scenario())


def _incompressible(size: int) -> bytes:
    import os

    return os.urandom(size // 2).hex().encode()
