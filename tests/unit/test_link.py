"""Frames and messages of the node link: docs/link.md, sections 1 to 4."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import LinkError
from gateway.link import framing, messages
from gateway.link.blobs import Assembler
from gateway.link.framing import Deframer, Type
from gateway.link.messages import (
    Ack,
    BlobChunk,
    Command,
    Data,
    Hello,
    Log,
    Nak,
    NodeStream,
    Ping,
    Pong,
    Reply,
    Resume,
    SayHello,
)  # fmt: skip

HELLO = Hello(
    (1,), "press-4", 7, "0.1.0", 5, 9, 123_456_789_012, (NodeStream(0, "power", (("i", "f", "A"),), 200.0),), 256
)
MESSAGES = [
    HELLO,
    Data(3, 5000, b"\0" * 400),
    BlobChunk(1, 1024, 4096, bytes(range(256)) * 4),
    Pong(7, 1 << 40, 70_000),
    Resume(70_000, 1 << 33, 3, 30),
    Log(30, "straße".encode()),
    Reply(4, b'{"ok":true}'),
]
LINES = [SayHello(), Ack(70_000), Nak(3), Ping(12), Command(5, b'{"rate": 10}')]

payloads = st.binary(max_size=600) | st.integers(0, 4063).map(lambda n: b"\xff" * n)
frames = st.lists(st.tuples(st.integers(0, 65535), st.integers(0, 2**32 - 1), payloads), max_size=12)
text = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "Zs")), max_size=60)


def cut(wire: bytes, at: list[int]) -> list[bytes]:
    edges = [0, *sorted(min(a, len(wire)) for a in at), len(wire)]
    return [wire[a:b] for a, b in itertools.pairwise(edges)]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_message_survives_the_wire(message: messages.Message) -> None:
    [frame] = Deframer().feed(messages.encode(message, 70_001, (1 << 32) + 5))
    assert messages.decode(frame) == message
    assert framing.HEADER.unpack_from(frame) == (1, message.kind, 70_001 & 0xFFFF, 5)


@pytest.mark.parametrize("line", LINES, ids=lambda m: type(m).__name__)
def test_line_survives_the_wire(line: messages.Line) -> None:
    wire = line.to_line()
    assert messages.parse_line(wire) == line
    assert wire.isascii() and wire.endswith(b"\n") and b"\x03" not in wire


@pytest.mark.parametrize("line", [b"", b"ACK", b"ACK x", b"RESET 1", b"CMD x {}"])
def test_a_strange_line_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError):
        messages.parse_line(line)


@given(frames, st.lists(st.integers(0, 9000), max_size=20))
def test_chunking_does_not_matter(sent: list[tuple[int, int, bytes]], at: list[int]) -> None:
    wire = b"".join(framing.encode(Type.DATA, *one) for one in sent)
    deframer = Deframer()
    got = [frame for chunk in cut(wire, at) for frame in deframer.feed(chunk)]
    assert [(*framing.HEADER.unpack_from(f)[2:], f[8:-4]) for f in got] == sent
    assert deframer.bad == 0


@given(st.binary(max_size=12_000), st.lists(st.integers(0, 12_000), max_size=12), frames)
def test_garbage_ends_with_the_next_frame(garbage: bytes, at: list[int], sent: list[tuple[int, int, bytes]]) -> None:
    wire = garbage + b"".join(framing.encode(Type.DATA, *one) for one in sent)
    whole, parts = Deframer(), Deframer()
    got = whole.feed(wire)
    assert [f for chunk in cut(wire, at) for f in parts.feed(chunk)] == got
    assert (parts.bad, list(parts.lines)) == (whole.bad, list(whole.lines))
    assert [f[8:-4] for f in got] == [payload for *_, payload in sent]


@given(st.binary(min_size=0, max_size=300), st.data())
def test_a_flipped_bit_never_gives_a_frame(payload: bytes, data: st.DataObject) -> None:
    wire = bytearray(framing.encode(Type.DATA, 1, 2, payload))
    bit = data.draw(st.integers(8, 8 * (len(wire) - 1) - 1))
    wire[bit // 8] ^= 1 << bit % 8
    deframer = Deframer()
    assert deframer.feed(bytes(wire) + framing.encode(Type.DATA, 2, 2, b"next")) == deframer.feed(
        framing.encode(Type.DATA, 2, 2, b"next")
    )
    assert deframer.bad + len(deframer.lines) > 0


@given(st.lists(text, max_size=5), frames)
def test_text_between_frames_is_kept(said: list[str], sent: list[tuple[int, int, bytes]]) -> None:
    wire = b"".join(framing.encode(Type.DATA, *one) + "\n".join(said).encode() for one in sent) + b"\0"
    deframer = Deframer()
    assert len(deframer.feed(wire)) == len(sent)
    lines = [line.strip() for line in said if line.strip()]
    assert list(deframer.lines) == (lines * len(sent))[-64:]
    assert deframer.bad == 0


def test_a_traceback_without_a_frame_after_it_can_be_asked_for() -> None:
    deframer = Deframer()
    deframer.feed(framing.encode(Type.DATA, 0, 0, b"x") + b"Traceback:\nMemoryError\n")
    assert deframer.rest() == "Traceback:\nMemoryError"


def test_endless_garbage_is_bounded() -> None:
    deframer = Deframer()
    for _ in range(100):
        deframer.feed(b"\xfe" * 65536)
    assert deframer.bad == 1
    assert len(deframer.feed(b"\0" + framing.encode(Type.DATA, 0, 0, b"x"))) == 1


def test_a_payload_too_long_is_refused() -> None:
    framing.encode(Type.DATA, 0, 0, b"\xff" * framing.MAX_PAYLOAD)
    with pytest.raises(ValueError, match="takes"):
        framing.encode(Type.DATA, 0, 0, b"\xff" * (framing.MAX_PAYLOAD + 1))


@given(st.binary(max_size=80))
@settings(max_examples=300)
def test_any_checked_frame_decodes_or_is_a_link_error(body: bytes) -> None:
    for kind in range(9):
        [frame] = Deframer().feed(framing.encode(kind, 0, 0, body))
        try:
            messages.decode(frame)
        except LinkError as error:
            assert error.hint


@pytest.mark.parametrize(
    "stream",
    [
        NodeStream(0, "a/b", (("x", "f", ""),)), NodeStream(0, "a", ()), NodeStream(0, "a", (("x", "s", ""),)),
        NodeStream(0, "a", (("x:y", "f", ""),)), NodeStream(0, "a", (("x", "f", "a,b"),)),
        NodeStream(256, "a", (("x", "f", ""),)),
    ],
)  # fmt: skip
def test_a_stream_that_cannot_be_stored_is_refused(stream: NodeStream) -> None:
    with pytest.raises(LinkError):
        stream.schema()


def test_blobs_come_together() -> None:
    whole = bytes(range(256)) * 10
    assembler = Assembler()
    chunks = [BlobChunk(4, at, len(whole), whole[at : at + 1000]) for at in range(0, len(whole), 1000)]
    assert [assembler.add(c) for c in chunks] == [None, None, whole]
    assert [assembler.add(c) for c in (chunks[0], chunks[2], chunks[1])] == [None, None, None]
    assert assembler.dropped == 1
    assert [assembler.add(c) for c in chunks][-1] == whole


def test_a_blob_too_large_takes_no_memory() -> None:
    assembler = Assembler(max_bytes=100)
    assert assembler.add(BlobChunk(1, 0, 101, b"x" * 101)) is None
    assert assembler.dropped == 1


@given(
    st.lists(st.builds(BlobChunk, st.integers(0, 2), st.integers(0, 30), st.integers(0, 40), st.binary(max_size=20)))
)
def test_any_chunks_give_whole_blobs_only(chunks: list[BlobChunk]) -> None:
    assembler = Assembler(max_bytes=30)
    for chunk in chunks:
        whole = assembler.add(chunk)
        assert whole is None or len(whole) == chunk.total
