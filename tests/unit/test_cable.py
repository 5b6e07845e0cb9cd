"""The account that the emulator's cable keeps of a node's line."""

from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st

from firmware_tools.cable import Acknowledged
from gateway.link import messages


def frame(seq: int, n: int = 10) -> bytes:
    return messages.encode(messages.Data(0, 1000, bytes(4 * n)), seq)


def pieces(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    at = 0
    for cut in sorted(cut % (len(data) + 1) for cut in cuts):
        yield data[at:cut]
        at = cut
    yield data[at:]


@settings(deadline=None)
@given(st.lists(st.integers(0, 1 << 16), max_size=8), st.integers(1, 12))
def test_readings_count_once_they_are_acknowledged(cuts: list[int], acked: int) -> None:
    told = Acknowledged(4)
    for piece in pieces(b"".join(frame(seq) for seq in range(12)), cuts):
        told.from_node(piece)
    for piece in pieces(messages.Ack(acked).to_line() * 2, cuts):
        told.from_gateway(piece)
    assert (told.sent, told.readings) == (120, 10 * acked)


def test_what_comes_again_counts_once_and_what_was_overwritten_never() -> None:
    told = Acknowledged(4)
    for seq in (0, 1, 1, 5):  # the node's ring has overwritten 2 to 4 while it was unplugged
        told.from_node(frame(seq))
    told.from_gateway(messages.Ack(6).to_line())
    assert (told.sent, told.readings) == (30, 30)


def test_numbers_go_round() -> None:
    told = Acknowledged(4)
    for seq in range(66_000):
        told.from_node(frame(seq, 1))
        if seq % 1000 == 999:
            told.from_gateway(messages.Ack((seq + 1) & 0xFFFF).to_line())
    assert told.readings == 66_000
    told.from_gateway(messages.Ack(123).to_line())  # of before
    assert told.readings == 66_000


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_noise_is_borne(noise: bytes) -> None:
    told = Acknowledged(4)
    told.from_gateway(noise)
    told.from_node(noise)
    told.from_node(b"\0" + frame(0))
    told.from_gateway(b"\n" + messages.Ack(1).to_line())
    assert told.readings == 10
