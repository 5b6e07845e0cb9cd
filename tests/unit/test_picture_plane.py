"""Pictures in blocks: what is sent, where it resumes, and that only whole and verified files stand at the receiver."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.blocks import BLOCK, MAX_PICTURE, Block, PictureAck, count, parse
from gateway.sync import pictures
from gateway.sync.pictures import Pictures, Shelf
from sdk.pictures import MAX_PARTS, Receiver

NAME = "dock-0f1e2d3c-00000000000000000042.jpg"


def blocks_of(data: bytes, name: str = NAME) -> list[Block]:
    digest = hashlib.sha256(data).digest()
    return [Block(name, k, digest, len(data), data[k * BLOCK : (k + 1) * BLOCK]) for k in range(count(len(data)))]


# --- the format --------------------------------------------------------------------------------------------------


@given(st.binary(min_size=1, max_size=500), st.integers(0, 3))
def test_a_block_comes_back_as_it_was(data: bytes, whole: int) -> None:
    for block in blocks_of(bytes(BLOCK * whole) + data):
        assert parse(NAME, str(block.number), block.to_payload()) == block


@given(st.text(max_size=40), st.text(max_size=6), st.binary(max_size=100))
def test_anything_else_is_refused_or_fits(name: str, number: str, payload: bytes) -> None:
    try:
        block = parse(name, number, payload)
    except ValueError:
        return
    assert block.size <= MAX_PICTURE and len(block.data) <= BLOCK


@pytest.mark.parametrize(
    ("name", "number", "cut"),
    [
        ("../../etc/passwd.jpg", "0", 0),
        ("A.jpg", "0", 0),
        (NAME, "1", 0),
        (NAME, "-1", 0),
        (NAME, "²", 0),
        (NAME, "0", 1),
    ],
)
def test_what_does_not_fit_is_refused(name: str, number: str, cut: int) -> None:
    (block,) = blocks_of(b"picture")
    payload = block.to_payload()
    with pytest.raises(ValueError):
        parse(name, number, payload[: len(payload) - cut])


# --- the receiver ------------------------------------------------------------------------------------------------


def test_a_picture_stands_there_only_when_it_is_whole(tmp_path: Path) -> None:
    data = os.urandom(2 * BLOCK + 100)
    first, second, third = blocks_of(data)
    receiver = Receiver(tmp_path)
    assert receiver.take("press", first).next == 1
    assert receiver.take("press", third).next == 1  # too early
    assert receiver.take("press", first).next == 1  # once more
    assert Receiver(tmp_path).take("press", second).next == 2  # after a restart
    assert not (tmp_path / "press" / NAME).exists()
    assert receiver.take("press", third).done
    assert (tmp_path / "press" / NAME).read_bytes() == data
    assert receiver.take("press", first).done  # it says so when it is asked again
    assert [path.name for path in (tmp_path / "press").iterdir()] == [NAME]


def test_a_wrong_digest_starts_anew(tmp_path: Path) -> None:
    data = os.urandom(BLOCK + 5)
    first, second = blocks_of(data)
    receiver = Receiver(tmp_path)
    bad = Block(first.name, 0, first.sha256, first.size, os.urandom(BLOCK))
    assert receiver.take("press", bad).next == 1
    assert receiver.take("press", second) == PictureAck(NAME, first.sha256.hex(), 0, refused=True)
    assert receiver.take("press", first).next == 1
    assert receiver.take("press", second).done


def test_a_write_that_was_cut_off_starts_anew(tmp_path: Path) -> None:
    first, second = blocks_of(os.urandom(BLOCK + 5))
    receiver = Receiver(tmp_path)
    receiver.take("press", first)
    (part,) = (tmp_path / "press").iterdir()
    with part.open("ab") as file:
        file.truncate(100)
    assert receiver.take("press", second).next == 0
    assert receiver.take("press", first).next == 1
    assert receiver.take("press", second).done


def test_incomplete_pictures_are_bounded(tmp_path: Path) -> None:
    receiver = Receiver(tmp_path)
    for i in range(3 * MAX_PARTS):
        receiver.take("press", blocks_of(os.urandom(BLOCK + 1), f"dock-{i}.jpg")[0])
    assert len(list((tmp_path / "press").iterdir())) == MAX_PARTS


def test_a_gateway_that_is_a_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        Receiver(tmp_path).take("..", blocks_of(b"x")[0])


# --- the sender --------------------------------------------------------------------------------------------------


class Line:
    """A link to a receiver; blocks can be lost on it."""

    def __init__(self, folder: Path) -> None:
        self.receiver = Receiver(folder / "received")
        self.sent: list[tuple[str, int]] = []
        self.free = True
        self.lossy: set[int] = set()  # the nth blocks that vanish
        self.sender = Pictures(Shelf(folder / "pictures", folder / "notes"), self.send, lambda: self.free)

    def send(self, block: Block) -> bool:
        self.sent.append((block.name, block.number))
        if len(self.sent) - 1 not in self.lossy:
            asyncio.get_running_loop().call_soon(self.answer, block)
        return True

    def answer(self, block: Block) -> None:
        self.sender.acknowledged(self.receiver.take("press", block))


@asynccontextmanager
async def line(folder: Path) -> AsyncIterator[Line]:
    made = Line(folder)
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(made.sender.run())
        yield made
        task.cancel()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


def keep(folder: Path, name: str, size: int, age: int = 0) -> bytes:
    (folder / "pictures").mkdir(exist_ok=True)
    data = os.urandom(size)
    path = folder / "pictures" / name
    path.write_bytes(data)
    os.utime(path, ns=(10**18 - age, 10**18 - age))
    return data


def test_pictures_go_oldest_first_and_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        new, old = keep(tmp_path, "new.jpg", 7 * BLOCK), keep(tmp_path, "old.jpg", 100, age=5)
        keep(tmp_path, "half.part", 100)
        async with line(tmp_path) as it:
            it.sender.start()
            await until(lambda: it.sender.delivered == 2)
            assert it.sent == [("old.jpg", 0), *(("new.jpg", k) for k in range(7))]
            keep(tmp_path, "newest.png", 10)
            it.sender.kept()
            await until(lambda: it.sender.delivered == 3)
        assert (tmp_path / "received/press/new.jpg").read_bytes() == new
        assert (tmp_path / "received/press/old.jpg").read_bytes() == old
        async with line(tmp_path) as again:  # the notes are on disk
            again.sender.start()
            keep(tmp_path, "last.jpg", 10)
            again.sender.kept()
            await until(lambda: again.sender.delivered == 1)
            assert again.sent == [("last.jpg", 0)]

    asyncio.run(scenario())


@pytest.mark.parametrize("years", [-20, 20])
def test_the_order_of_pictures_is_that_of_their_numbers_whatever_the_clock_said(tmp_path: Path, years: int) -> None:
    """Dates of files follow every step of the clock."""

    async def scenario() -> None:
        year = 365 * 86_400 * 10**9
        keep(tmp_path, "00000009-cam-a.jpg", 10)
        keep(tmp_path, "00000010-cam-b.jpg", 10, age=years * year)
        keep(tmp_path, "00000011-cam-c.jpg", 10, age=-years * year)
        keep(tmp_path, "123456789-cam-d.jpg", 10, age=5 * year)
        keep(tmp_path, "cam-of-an-older-version.jpg", 10)
        async with line(tmp_path) as it:
            it.sender.start()
            await until(lambda: it.sender.delivered == 5)
            assert [name[:3] for name, _ in it.sent] == ["cam", "000", "000", "000", "123"]
            assert [name for name, _ in it.sent[1:]] == sorted(name for name, _ in it.sent[1:])

    asyncio.run(scenario())


def test_it_goes_on_where_the_receiver_is(tmp_path: Path) -> None:
    async def scenario() -> None:
        data = keep(tmp_path, NAME, 6 * BLOCK)
        async with line(tmp_path) as it:
            for block in blocks_of(data)[:4]:
                it.receiver.take("press", block)
            it.sender.acknowledged(PictureAck(NAME, hashlib.sha256(data).hexdigest(), 4))  # retained
            it.sender.start()
            await until(lambda: it.sender.delivered == 1)
            assert it.sent == [(NAME, 4), (NAME, 5)]

    asyncio.run(scenario())


def test_lost_blocks_are_sent_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "ANSWER_S", 0.02)

    async def scenario() -> None:
        data = keep(tmp_path, NAME, 9 * BLOCK)
        async with line(tmp_path) as it:
            it.lossy = {0, 3, 7, 8}
            it.sender.start()
            await until(lambda: it.sender.delivered == 1)
            assert len(it.sent) < 9 + 4 * pictures.AHEAD + 1  # each loss costs a few blocks, no more
        assert (tmp_path / "received/press" / NAME).read_bytes() == data

    asyncio.run(scenario())


def test_sending_runs_only_a_little_ahead_and_yields(tmp_path: Path) -> None:
    async def scenario() -> None:
        keep(tmp_path, NAME, (2 * pictures.AHEAD) * BLOCK)
        async with line(tmp_path) as it:
            it.lossy = set(range(100))
            it.free = False
            it.sender.start()
            for _ in range(50):
                await asyncio.sleep(0.001)
            assert it.sent == []
            it.free = True
            it.sender.push()
            await until(lambda: len(it.sent) == pictures.AHEAD)
            it.sender.push()
            for _ in range(50):
                await asyncio.sleep(0.001)
            assert len(it.sent) == pictures.AHEAD

    asyncio.run(scenario())


def test_a_picture_that_went_away_or_is_too_large_holds_nobody_up(tmp_path: Path) -> None:
    async def scenario() -> None:
        keep(tmp_path, "huge.jpg", MAX_PICTURE + 1, age=5)
        keep(tmp_path, "empty.jpg", 0, age=4)
        keep(tmp_path, "good.jpg", 10)
        async with line(tmp_path) as it:
            it.sender.start()
            await until(lambda: it.sender.delivered == 1)
            assert it.sent == [("good.jpg", 0)]

    asyncio.run(scenario())


def test_a_picture_that_the_receiver_refuses_is_left_for_later(tmp_path: Path) -> None:
    async def scenario() -> None:
        data = keep(tmp_path, "bad.jpg", 3 * BLOCK, age=5)
        keep(tmp_path, "good.jpg", 10)
        digest = hashlib.sha256(data).hexdigest()
        async with line(tmp_path) as it:
            answer = it.answer

            def refusing(block: Block) -> None:
                if block.name != "bad.jpg":
                    answer(block)
                elif block.number == 2:
                    it.sender.acknowledged(PictureAck("bad.jpg", digest, 0, refused=True))
                else:
                    it.sender.acknowledged(PictureAck("bad.jpg", digest, block.number + 1))

            it.answer = refusing  # type: ignore[method-assign]
            it.sender.start()
            await until(lambda: it.sender.delivered == 1)
            assert it.sent.count(("bad.jpg", 0)) == pictures.REFUSALS
            assert it.sent[-1] == ("good.jpg", 0)

    asyncio.run(scenario())
