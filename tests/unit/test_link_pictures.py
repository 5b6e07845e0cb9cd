"""Pictures of a node's camera on the link: put together between readings, bounded, counted when they are lost."""

from __future__ import annotations

import asyncio
from array import array
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.contract import SourceState
from gateway.errors import LinkError
from gateway.link import messages
from gateway.link.messages import BlobChunk, Data, Hello, Message, Resume, SayHello
from gateway.link.receiver import Receiver
from tests.unit.fake_node import COUNTER, FakeNode, running
from tests.unit.simulated_camera import PictureSink

JPEG = b"\xff\xd8" + bytes(range(256)) * 8 + b"\xff\xd9"
HELLO = Hello((1,), "n", 7, "0", 0, 0, 0, (COUNTER,), cameras=("top", "side"))


def receiver(max_picture: int = 1 << 20) -> Receiver:
    made = Receiver("m", max_picture)
    made.start(HELLO, 0)
    made.feed(messages.encode(Resume(0, 5_000_000_000, 0, 0)), 0)
    return made


def pieces(blob: int, data: bytes, size: int = 512) -> list[Message]:
    return [BlobChunk(blob, at, len(data), data[at : at + size]) for at in range(0, len(data), size)]


def wire(parts: list[Message], us: int = 5_000_001_000) -> list[bytes]:
    return [messages.encode(part, 0, us & 0xFFFFFFFF) for part in parts]


def test_pictures_come_between_readings_with_their_camera_and_time() -> None:
    made = receiver()
    taken = 0
    for number, piece in enumerate(wire(pieces(0x0103, JPEG))):
        data = messages.encode(Data(0, 10, array("I", [number]).tobytes()), number, 5_000_002_000 & 0xFFFFFFFF)
        taken += sum(sample.n for sample in made.feed(piece + data, 0))
    assert list(made.pictures) == [("side", 5_000_001_000, JPEG)]
    assert taken == len(pieces(0, JPEG)) == made.readings
    assert (made.pictures_lost, made.bad) == (0, 0)


def test_what_is_lost_is_counted() -> None:
    made = receiver()
    parts = wire(pieces(1, JPEG))
    made.feed(b"".join(parts[:2] + parts[3:]), 0)  # a piece is missing
    assert (len(made.pictures), made.pictures_lost) == (0, 1)
    made.feed(b"".join(parts[:2]), 0)
    made.stop()  # the line is cut in the middle
    assert made.pictures_lost == 2
    made.start(HELLO, 0)
    made.feed(b"".join(parts), 0)  # before the node said where it goes on: of an earlier dialogue
    made.feed(messages.encode(Resume(0, 5_000_000_000, 0, 0)) + b"".join(wire(pieces(1, b"no JPEG"))), 0)
    assert (made.pictures_lost, made.bad) == (3, 1)
    made.feed(b"".join(parts * 3), 0)  # nobody took the first of three
    assert (len(made.pictures), made.pictures_lost) == (2, 4)
    small = receiver(100)
    small.feed(b"".join(parts), 0)
    assert (len(small.pictures), small.pictures_lost) == (0, 1)


def test_a_camera_that_was_not_announced_is_a_fault() -> None:
    made = receiver()
    made.feed(b"".join(wire(pieces(0x0200, JPEG))), 0)
    assert not made.pictures and "camera 2" in str(made.faults[-1])
    with pytest.raises(LinkError):
        Hello((1,), "n", 7, "0", 0, 0, 0, (), cameras=("../../etc",)).camera(0)


@given(
    parts=st.lists(
        st.builds(BlobChunk, st.integers(0, 0x1FF), st.integers(0, 99), st.integers(0, 99), st.binary(max_size=40)),
        max_size=20,
    ),
    good=st.integers(0, 20),
)
def test_whatever_pieces_come_the_next_whole_picture_arrives(parts: list[Message], good: int) -> None:
    made = receiver()
    made.feed(b"".join(wire(parts)), 0)
    made.pictures.clear()
    made.feed(b"".join(wire(pieces(3, JPEG))), 0)
    assert [picture for _, _, picture in made.pictures] == [JPEG]


class CameraNode(FakeNode):
    """A fake node with two cameras."""

    def hello(self) -> None:
        self.say(Hello((1,), "fake", self.session, "0", 0, len(self.frames), 10**6, (COUNTER,), cameras=("top",)))


def test_a_nodes_pictures_are_frames_and_unplugging_drops_the_one_under_way(tmp_path: Path) -> None:
    async def story() -> None:
        sink = PictureSink()
        with CameraNode(tmp_path / "tty") as fake:
            async with running(fake.port, sink) as source:
                for number in range(10):
                    fake.count_to(2 * number + 1)
                    await sink.until_slowly(lambda: source.status().state is SourceState.OK)
                    for part in wire(pieces(number, JPEG)):
                        fake.write(part)
                    fake.count_to(2 * number + 2)
                    await sink.has_frames(number + 1)
                    await sink.has(2 * number + 2)
                    fake.write(b"".join(wire(pieces(99, JPEG))[:2]))
                    fake.unplug()
                    await sink.until_slowly(lambda: source.status().state is SourceState.LOST)
                    fake.plug()
                    await fake.hears(SayHello(), number + 2)
                status = source.status()
        assert [(frame.source, frame.seq, frame.data) for frame in sink.frames] == [
            ("m/top", seq, JPEG) for seq in range(10)
        ]
        assert sink.values == list(range(20))
        assert status.dropped <= 10 and status.bad == 0

    asyncio.run(story())
