"""What goes to PostgreSQL: the binary rows of COPY, and events and inferences as columns."""

from __future__ import annotations

import datetime
import itertools
import json
import struct
from array import array
from collections.abc import Iterator
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from gateway.contract import CHANNEL_TYPES, BatchKind, Channel, Event, Inference, Result, Sample, Schema, Severity
from gateway.store.columns import expand
from sdk.ingest.copying import TYPES, copy_rows
from sdk.ingest.documents import event_row, inference_row
from tests.unit.ingest_samples import OFFSET_NS, header, stamp

HEAD = msgspec.structs.replace(header(0, 1, BatchKind.EVENTS), wall_offset_ns=None)

FORMATS = {"smallint": "h", "integer": "i", "bigint": "q", "real": "f", "double precision": "d"}


def fields(data: bytes) -> Iterator[list[bytes | None]]:
    """The rows of COPY's binary form, read as its manual page describes them."""
    at = 0
    while at < len(data):
        (count,) = struct.unpack_from(">h", data, at)
        at += 2
        row: list[bytes | None] = []
        for _ in range(count):
            (size,) = struct.unpack_from(">i", data, at)
            at += 4
            row.append(None if size < 0 else data[at : at + size])
            at += max(size, 0)
        yield row


def number(sql: str, field: bytes) -> Any:
    if sql.startswith("numeric"):
        count, weight, sign, scale, *digits = struct.unpack(f">{len(field) // 2}h", field)
        assert (count, sign, scale) == (len(digits), 0, 0)
        return sum(digit * 10000 ** (weight - i) for i, digit in enumerate(digits))
    return struct.unpack(">" + FORMATS[sql], field)[0]


LIMITS = {code: (8 * struct.calcsize("<" + code), code.islower()) for code in "bBhHiIqQ"}


def values(code: str) -> st.SearchStrategy[Any]:
    if code in "fd":
        return st.floats(width=32 if code == "f" else 64)
    bits, signed = LIMITS[code]
    return st.integers(-(1 << bits - 1), (1 << bits - 1) - 1) if signed else st.integers(0, (1 << bits) - 1)


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    codes = draw(st.lists(st.sampled_from(CHANNEL_TYPES), min_size=1, max_size=5))
    schema = Schema(tuple(Channel(f"c{i}", code) for i, code in enumerate(codes)))
    counts = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    times = st.integers(-(1 << 40), 1 << 60)
    firsts = array("q", [draw(times) for _ in counts])
    steps = array("q", [draw(st.sampled_from([0, 1, -7, 1_000_000])) for _ in counts])
    records = [draw(st.tuples(*map(values, codes))) for _ in range(sum(counts))]
    data = b"".join(struct.pack(schema.format, *record) for record in records)
    return Sample("s", schema, firsts, steps, array("H", counts), data)


@given(samples(), st.integers(0, 1 << 60), st.none() | st.integers(0, 1 << 60), st.integers(0, 3))
def test_copied_rows_are_the_readings(sample: Sample, first: int, offset: int | None, skip: int) -> None:
    rows = list(fields(copy_rows(7, first, sample, offset, skip)))
    expected = list(expand(sample))[skip:]
    assert len(rows) == len(expected)
    for i, (row, (mono_ns, record)) in enumerate(zip(rows, expected, strict=True)):
        stream, seq, mono, at, *channels = row
        assert [int.from_bytes(f or b"", signed=True) for f in (stream, seq, mono)] == [7, first + skip + i, mono_ns]
        if offset is None:
            assert at is None
        else:
            since_2000_us = int.from_bytes(at or b"", signed=True)
            assert since_2000_us == (mono_ns + offset) // 1000 - 946_684_800_000_000
        for channel, field, value in zip(sample.schema.channels, channels, record, strict=True):
            assert field is not None
            read = number(TYPES[channel.type][0], field)
            assert read == value or (read != read and value != value)


def test_every_type_of_channel_has_a_column() -> None:
    assert set(TYPES) == set(CHANNEL_TYPES)


def test_a_batch_of_thousands_costs_slices_not_calls() -> None:
    """The shape of the result shows that rows have one length: the whole method stands on it."""
    schema = Schema((Channel("a", "H"), Channel("b", "Q")))
    n = 5000
    data = b"".join(struct.pack("<HQ", i, i << 40) for i in range(n))
    made = copy_rows(1, 0, Sample("s", schema, array("q", [0]), array("q", [1]), array("H", [n]), data), None)
    assert len(made) == n * (2 + 3 * 12 + 4 + 8 + 22)


any_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 53), 1 << 53) | st.text(max_size=8),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=8,
)


@given(st.text(max_size=12), st.dictionaries(st.text(max_size=5), any_json, max_size=3), st.none() | st.just(OFFSET_NS))
def test_an_event_becomes_columns_without_nul(word: str, detail: dict[str, Any], wall_ns: int | None) -> None:
    event = Event(word, word, "raised", Severity.ALARM, stamp(wall_ns), word, detail)
    at, mono_ns, boot, name, *_, severity, message, kept, text = event_row(msgspec.json.encode(event), HEAD)
    clean = word.replace("\0", "\ufffd")
    assert (mono_ns, boot, name, severity, message) == (5, "boot-1", clean, "alarm", clean)
    assert (at is None) == (wall_ns is None)
    assert b"\\u0000" not in kept.encode() and "\0" not in text
    if "\0" not in str(detail) and "\\x00" not in repr(detail):
        assert json.loads(kept) == detail


@given(st.binary(max_size=80) | any_json.map(msgspec.json.encode))
def test_what_is_no_event_or_inference_keeps_its_text(row: bytes) -> None:
    for columns in (event_row(row, HEAD), inference_row(row, HEAD)):
        assert columns[-1] == row.decode(errors="replace").replace("\0", "\ufffd")
        assert all(column is None for column in columns[:-1])


def test_an_inference_becomes_columns() -> None:
    seen = Inference("state", stamp(), "m", "b" * 12, "onnx", 1500, Result("on", 0.9, {"on": 0.9}), 42)
    row = inference_row(msgspec.json.encode(seen), HEAD)
    assert row[0] == datetime.datetime(2023, 11, 14, 22, 13, 20, tzinfo=datetime.UTC)
    assert row[1:10] == (5, "boot-1", "m", "b" * 12, "onnx", 1500, 42, "on", 0.9)
    assert json.loads(row[10])["scores"] == {"on": 0.9}


def test_numbers_no_column_can_hold_leave_the_text() -> None:
    for took, wall in itertools.product((5, 1 << 63), (OFFSET_NS, (1 << 63) - 1, -(1 << 63))):
        if took == 5 and wall == OFFSET_NS:
            continue
        row = msgspec.json.encode(Inference("p", stamp(wall), "m", "b", "onnx", took, Result()))
        columns = inference_row(row, HEAD)
        assert columns[-1] == row.decode()
