"""Packets between engine and worker: there and back, and nonsense is recognised."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.infer import wire


@given(number=st.integers(0, 2**32 - 1), media=st.text("abc/;:,", max_size=40), data=st.binary(max_size=200))
def test_an_inline_job_comes_back(number: int, media: str, data: bytes) -> None:
    packet = wire.pack_job(number, media.encode(), wire.NO_SLOT, len(data)) + media.encode() + data
    job = wire.unpack_job(memoryview(packet))
    assert (job.number, job.media, job.size, bytes(job.inline)) == (number, media, len(data), data)


def test_a_job_in_shared_memory_comes_back() -> None:
    job = wire.unpack_job(memoryview(wire.pack_job(7, b"image/jpeg", 1, 200_000) + b"image/jpeg"))
    assert job == wire.Job(7, "image/jpeg", 1, 200_000, memoryview(b""))


@pytest.mark.parametrize("kind", list(wire.Kind))
def test_an_answer_comes_back(kind: wire.Kind) -> None:
    packet = wire.pack_answer(3, 1234, kind, b"payload")
    assert wire.unpack_answer(packet) == wire.Answer(3, 1234, kind, b"payload")


@given(data=st.binary(max_size=60))
def test_nonsense_is_recognised(data: bytes) -> None:
    for unpack in (lambda: wire.unpack_job(memoryview(data)), lambda: wire.unpack_answer(data)):
        try:
            unpack()
        except wire.Mismatch:
            continue


def test_cut_and_long_packets_are_refused() -> None:
    packet = wire.pack_job(1, b"image/png", wire.NO_SLOT, 4) + b"image/png" + b"data"
    for bad in (packet[:5], packet[:-1], packet + b"x"):
        with pytest.raises(wire.Mismatch):
            wire.unpack_job(memoryview(bad))
    with pytest.raises(wire.Mismatch):
        wire.unpack_answer(wire.pack_answer(1, 2, wire.Kind.READY, b"")[:-1])
    with pytest.raises(wire.Mismatch):
        wire.unpack_answer(b"\0" * 8 + b"\x63")
