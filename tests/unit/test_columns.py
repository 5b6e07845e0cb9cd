"""The batch codec: what goes in comes out, and damage is noticed."""

from __future__ import annotations

import struct
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.contract import CHANNEL_TYPES, BatchKind, Channel, Sample, Schema
from gateway.errors import StoreError
from gateway.store.columns import Codec, Header, expand, read_header
from tests.unit.samples import SCHEMA, counted


def header(n: int, spec: str = SCHEMA.spec(), kind: BatchKind = BatchKind.SAMPLES) -> Header:
    return Header(b"e" * 16, "press/power", 7, n, kind, spec, "boot", 123, 456)


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    codes = draw(st.lists(st.sampled_from(CHANNEL_TYPES), min_size=1, max_size=5))
    schema = Schema(tuple(Channel(f"c{i}", code, "u") for i, code in enumerate(codes)))
    counts = draw(st.lists(st.integers(1, 40), min_size=1, max_size=8))
    n, size = sum(counts), schema.record_size
    times = st.lists(st.integers(0, 2**62), min_size=len(counts), max_size=len(counts))
    data = draw(st.binary(min_size=n * size, max_size=n * size))
    return Sample("press/power", schema, array("q", draw(times)), array("q", draw(times)), array("H", counts), data)


@given(samples())
def test_samples_round_trip(sample: Sample) -> None:
    codec = Codec()
    wanted = header(sample.n, sample.schema.spec())
    got, back = codec.decode_samples(codec.encode_samples(wanted, [sample]))
    assert got == wanted
    assert back == sample


def test_pieces_become_one_run() -> None:
    codec = Codec()
    pieces = [counted("press/power", 0, 3), counted("press/power", 3, 5), counted("press/power", 8, 1)]
    _, whole = codec.decode_samples(codec.encode_samples(header(9), pieces))
    readings = list(expand(whole))
    assert [values[0] for _, values in readings] == list(range(9))
    assert [mono_ns for mono_ns, _ in readings] == [5_000_000 * i for i in range(9)]


def test_rows_round_trip() -> None:
    codec = Codec()
    wanted = header(2, "", BatchKind.EVENTS)
    assert codec.decode_rows(codec.encode_rows(wanted, [b'{"a":1}', b"{}"])) == (wanted, [b'{"a":1}', b"{}"])


@given(st.integers(0, 10**6), st.integers(0, 255))
def test_a_changed_byte_is_noticed_or_harmless(where: int, value: int) -> None:
    codec = Codec()
    sample = counted("press/power", 0, 50)
    blob = bytearray(codec.encode_samples(header(50), [sample]))
    blob[where % len(blob)] = value
    try:
        got, back = codec.decode_samples(bytes(blob))
    except StoreError:
        return
    assert back.data == sample.data  # the header has no checksum of its own; the readings do
    assert got.n == 50


@given(st.binary(max_size=200))
def test_garbage_is_no_batch(data: bytes) -> None:
    with pytest.raises(StoreError):
        Codec().decode_samples(data)


def test_a_batch_that_claims_to_be_huge_is_refused() -> None:
    codec = Codec()
    blob = codec.encode_rows(header(1, "", BatchKind.EVENTS), [b"x" * (65 << 20)])
    with pytest.raises(StoreError, match="out of bounds"):
        codec.decode_rows(blob)


@pytest.mark.parametrize("cut", [1, 4, 10, 60])
def test_a_cut_batch_is_refused(cut: int) -> None:
    codec = Codec()
    blob = codec.encode_samples(header(50), [counted("press/power", 0, 50)])
    with pytest.raises(StoreError):
        codec.decode_samples(blob[:-cut])


def test_header_is_read_without_unpacking() -> None:
    blob = Codec().encode_samples(header(50), [counted("press/power", 0, 50)])
    got, at = read_header(blob)
    assert got == header(50)
    assert struct.unpack("<I", blob[at : at + 4]) == (0xFD2FB528,)  # Zstandard's magic number
