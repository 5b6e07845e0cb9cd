"""Packets between engine and worker: there and back, and nonsense is recognised."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.infer import wire


@given(number=st.integers(0, 2**32 - 1), media=st.text("abc/;:,", max_size=40), data=st.binary(max_size=200))
def test_an_inline_job_comes_back(number: int, media: str, data: bytes) -> None:
    one = wire.pack_job(number, 3, media.encode(), wire.NO_SLOT, len(data)) + media.encode() + data
    large = wire.pack_job(8, 0, b"image/png", 0, 99_999) + b"image/png"
    first, second, third = wire.unpack_jobs(memoryview(one + large + one))
    assert first == third == wire.Job(number, 3, media, wire.NO_SLOT, len(data), memoryview(data))
    assert second == wire.Job(8, 0, "image/png", 0, 99_999, memoryview(b""))


def test_a_job_in_shared_memory_comes_back() -> None:
    (job,) = wire.unpack_jobs(memoryview(wire.pack_job(7, 0, b"image/jpeg", 1, 200_000) + b"image/jpeg"))
    assert job == wire.Job(7, 0, "image/jpeg", 1, 200_000, memoryview(b""))


@pytest.mark.parametrize("kind", sorted(set(wire.Kind) - {wire.Kind.PICTURED}))  # see test_raw_pictures
def test_answers_come_back(kind: wire.Kind) -> None:
    packet = wire.pack_answer(3, 1234, 56, kind, b"payload") + wire.pack_answer(4, 5, 99_999, kind, b"")
    assert wire.unpack_answers(memoryview(packet)) == [
        wire.Answer(3, 1234, 56, kind, memoryview(b"payload")),
        wire.Answer(4, 5, 65535, kind, memoryview(b"")),
    ]


@given(data=st.binary(max_size=60))
def test_nonsense_is_recognised(data: bytes) -> None:
    for unpack in (lambda: wire.unpack_jobs(memoryview(data)), lambda: wire.unpack_answers(memoryview(data))):
        try:
            unpack()
        except wire.Mismatch:
            continue


def test_cut_and_long_packets_are_refused() -> None:
    packet = wire.pack_job(1, 0, b"image/png", wire.NO_SLOT, 4) + b"image/png" + b"data"
    for bad in (b"", packet[:5], packet[:-1], packet + b"x", packet + packet[:-1]):
        with pytest.raises(wire.Mismatch):
            wire.unpack_jobs(memoryview(bad))
    answer = wire.pack_answer(1, 2, 3, wire.Kind.READY, b"ready")
    for bad in (b"", answer[:5], answer[:-1], answer + b"x", answer.replace(b"\1\5", b"\x63\5")):
        with pytest.raises(wire.Mismatch):
            wire.unpack_answers(memoryview(bad))
