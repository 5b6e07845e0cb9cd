"""Every parser that reads from a wire takes any bytes: the functions that `bench.fuzz` runs for hours, for a moment here."""

from __future__ import annotations

import mmap
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.fuzz_targets import SEEDS, TARGETS
from gateway.acquire.capture import whole_jpeg

SOI, EOI = b"\xff\xd8", b"\xff\xd9"
# what makes parsers go on: marks of the formats, in any order among noise
MARKS = (
    b"\0",
    b"\n",
    b"\r\n",
    SOI,
    EOI,
    b"\xff\xfe",
    b"\x04",
    b"\x01",
    b"OK",
    b"R\x01",
    b"[[channel]]\n",
    b"$GP",
    b"*4F",
    b"W=1kg",
)
BYTES = st.one_of(
    st.binary(max_size=600), st.lists(st.one_of(st.sampled_from(MARKS), st.binary(max_size=8))).map(b"".join)
)


@pytest.mark.parametrize("name", TARGETS)
def test_any_bytes_are_taken_or_refused_in_words(name: str) -> None:
    seed = SEEDS.get(name, b"")

    @settings(max_examples=60)
    @given(BYTES, st.integers(0, len(seed)))
    def whatever(data: bytes, at: int) -> None:
        TARGETS[name](data)
        TARGETS[name](seed[:at] + data[:4] + seed[at + 4 :])

    whatever()


@given(noise=st.binary(max_size=300), tail=st.binary(max_size=40), before=st.binary(max_size=3))
def test_a_jpeg_ends_with_its_last_end_mark_and_nothing_else_is_one(noise: bytes, tail: bytes, before: bytes) -> None:
    picture = SOI + noise + EOI
    with mmap.mmap(-1, 4096) as buffer:
        buffer[: len(picture)] = picture
        assert whole_jpeg(buffer, len(picture)) == len(picture)
        for cut in random.Random(len(noise)).sample(range(len(picture)), min(5, len(picture))):
            size = whole_jpeg(buffer, cut)
            assert size <= cut and (not size or buffer[size - 2 : size] == EOI)
        padded = picture + tail.replace(b"\xff", b"\0")  # padding behind the end is no part of it
        buffer[: len(padded)] = padded
        assert whole_jpeg(buffer, len(padded)) == len(picture)
        other = before.replace(b"\xff", b"\0") + b"\0" + picture
        buffer[: len(other)] = other
        assert whole_jpeg(buffer, len(other)) == 0
