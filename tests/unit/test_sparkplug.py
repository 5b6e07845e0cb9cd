"""Sparkplug payloads, checked field by field, and commands read back."""

from __future__ import annotations

import contextlib
import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.sync import sparkplug
from gateway.sync.protobuf import MAX_MESSAGE, fields, put_varint, varint
from gateway.sync.sparkplug import MAX_COMMAND, MAX_METRICS, Metric, Value, decode, encode
from tests.unit.sparkplug_host import seen, told

VALUES: list[tuple[int, Value, int, int | bytes]] = [
    (sparkplug.INT8, -1, 10, 0xFFFFFFFF),  # sign-extended to 32 bits
    (sparkplug.INT16, -300, 10, 0xFFFFFED4),
    (sparkplug.INT32, -(1 << 31), 10, 1 << 31),
    (sparkplug.UINT8, 255, 10, 255),
    (sparkplug.UINT16, 65535, 10, 65535),
    (sparkplug.UINT32, 4_000_000_000, 11, 4_000_000_000),
    (sparkplug.INT64, -2, 11, 0xFFFFFFFFFFFFFFFE),
    (sparkplug.UINT64, (1 << 64) - 1, 11, (1 << 64) - 1),
    (sparkplug.FLOAT, 1.5, 12, int.from_bytes(struct.pack("<f", 1.5), "little")),
    (sparkplug.DOUBLE, 2.25, 13, int.from_bytes(struct.pack("<d", 2.25), "little")),
    (sparkplug.BOOLEAN, True, 14, 1),
    (sparkplug.STRING, "läuft", 15, "läuft".encode()),
]


def metrics(payload: bytes) -> list[dict[int, int | bytes]]:
    return [dict(fields(body)) for number, body in fields(payload) if number == 2 and isinstance(body, bytes)]


@pytest.mark.tck("tck-id-payloads-metric-datatype-value", "tck-id-payloads-metric-datatype-value-type")
@pytest.mark.parametrize(("datatype", "value", "field", "raw"), VALUES)
def test_values_stand_in_their_fields(datatype: int, value: Value, field: int, raw: int | bytes) -> None:
    payload = encode([Metric(datatype, value, "m", alias=7, timestamp_ms=1000)], 2000, 255)
    assert dict(fields(payload))[1] == 2000
    assert dict(fields(payload))[3] == 255
    (metric,) = metrics(payload)
    assert metric == {1: b"m", 2: 7, 3: 1000, 4: datatype, field: raw}
    assert 1 <= datatype <= 12


@pytest.mark.parametrize(("datatype", "value", "field", "raw"), VALUES)
def test_a_command_gives_the_same_value_back(datatype: int, value: Value, field: int, raw: int | bytes) -> None:
    (received,) = decode(encode([Metric(datatype, value, "m", alias=3)], 1, None))
    assert (received.name, received.alias, received.datatype) == ("m", 3, datatype)
    assert received.typed(datatype) == value


def test_a_death_has_no_seq_and_null_has_no_value() -> None:
    assert 3 not in dict(fields(encode([], 1, None)))
    (metric,) = metrics(encode([Metric(sparkplug.DOUBLE, None, "m")], None, 0))
    assert metric == {1: b"m", 4: sparkplug.DOUBLE, 7: 1}
    (metric,) = metrics(encode([Metric(sparkplug.UINT8, 4, alias=1, historical=True)], None, 0))
    assert metric == {2: 1, 4: sparkplug.UINT8, 5: 1, 10: 4}


@pytest.mark.tck(
    "tck-id-payloads-metric-propertyvalue-type-req",
    "tck-id-payloads-metric-propertyvalue-type-type",
    "tck-id-payloads-metric-propertyvalue-type-value",
    "tck-id-payloads-propertyset-keys-array-size",
    "tck-id-payloads-propertyset-quality-value-type",
    "tck-id-payloads-propertyset-quality-value-value",
    "tck-id-payloads-propertyset-values-array-size",
)
@pytest.mark.parametrize(("unit", "quality"), [("A", None), ("", sparkplug.STALE), ("kW", sparkplug.GOOD), ("", None)])
def test_unit_and_quality_travel_as_properties(unit: str, quality: int | None) -> None:
    payload = encode([Metric(sparkplug.FLOAT, 1.0, "current", unit=unit, quality=quality)], None, 0)
    (metric,) = told("spBv1.0/g/DBIRTH/n/d", payload).metrics  # reads as many values as keys, or fails
    expected: dict[str, tuple[int, Value]] = {"engUnit": (sparkplug.STRING, unit)} if unit else {}
    if quality is not None:
        expected["Quality"] = (3, quality)
        assert quality in (0, 192, 500)
    assert metric.properties == expected


@pytest.mark.parametrize(
    ("field", "raw", "datatype"),
    [
        (10, 300, sparkplug.UINT8),
        (10, 128, sparkplug.INT8),
        (10, 0xFFFFFF7F, sparkplug.INT8),  # -129
        (11, 1 << 32, sparkplug.UINT32),
        (11, (1 << 64) - 1, sparkplug.UINT16),
        (14, 1, sparkplug.INT32),
        (10, 1, sparkplug.BOOLEAN),
        (10, 1, sparkplug.DOUBLE),
        (10, 1, sparkplug.STRING),
        (12, 1 << 40, sparkplug.FLOAT),  # a float of the wrong width
    ],
)
def test_a_value_that_does_not_fit_its_metric_is_refused(field: int, raw: int, datatype: int) -> None:
    (received,) = decode(b"\x12" + varint(len(body := put_varint(field, raw))) + body)
    with pytest.raises(ValueError, match=r"fit|width"):
        received.typed(datatype)


def test_integers_may_come_in_either_width() -> None:
    (wide,) = decode(b"\x12" + varint(len(body := put_varint(11, (1 << 64) - 5))) + body)
    assert wide.typed(sparkplug.INT8) == -5
    (narrow,) = decode(b"\x12" + varint(len(body := put_varint(10, 0xFFFFFFFF))) + body)
    assert narrow.typed(sparkplug.INT64) == -1


def test_a_null_or_missing_value_writes_nothing() -> None:
    for payload in (encode([Metric(sparkplug.INT8, None, "m")], 1, None), b"\x12\x03\x0a\x01m"):
        (received,) = decode(payload)
        with pytest.raises(ValueError, match="no value"):
            received.typed(sparkplug.INT8)


def test_commands_are_bounded() -> None:
    with pytest.raises(ValueError, match="metrics"):
        decode(encode([Metric(sparkplug.BOOLEAN, True)] * (MAX_METRICS + 1), 1, None))
    assert len(decode(encode([Metric(sparkplug.BOOLEAN, True)] * MAX_METRICS, 1, None))) == MAX_METRICS
    with pytest.raises(ValueError, match="bytes"):
        decode(b"\x08\x01" * MAX_COMMAND)
    with pytest.raises(ValueError, match="bytes"):
        list(fields(bytes(MAX_MESSAGE + 1)))


@given(st.binary(max_size=300))
def test_garbage_is_refused_or_harmless(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        for received in decode(data):
            for datatype in range(1, 13):
                with contextlib.suppress(ValueError):
                    assert isinstance(received.typed(datatype), bool | int | float | str)


@given(st.data())
def test_a_command_that_is_cut_short_is_never_another_command(data: st.DataObject) -> None:
    whole = encode([Metric(sparkplug.STRING, "x" * 20, "name", alias=300, timestamp_ms=1 << 40)], 1 << 41, None)
    cut = data.draw(st.integers(1, len(whole) - 1))
    with contextlib.suppress(ValueError):
        assert decode(whole[:cut]) == []  # only what stands before the metric


INTEGERS = {sparkplug.INT8: (-128, 127), sparkplug.UINT16: (0, 65535), sparkplug.INT64: (-(1 << 63), (1 << 63) - 1)}


@given(st.sampled_from(sorted(INTEGERS)), st.data())
def test_every_integer_comes_back(datatype: int, data: st.DataObject) -> None:
    value = data.draw(st.integers(*INTEGERS[datatype]))
    (received,) = decode(encode([Metric(datatype, value)], None, None))
    assert received.typed(datatype) == value


@given(st.floats(width=32))
def test_every_float_comes_back(value: float) -> None:
    (received,) = decode(encode([Metric(sparkplug.FLOAT, value)], None, None))
    back = received.typed(sparkplug.FLOAT)
    assert back == value or (math.isnan(value) and isinstance(back, float) and math.isnan(back))


def test_the_reader_of_the_tests_can_fail() -> None:
    with pytest.raises(AssertionError, match="field 19"):
        seen(put_varint(19, 1))
