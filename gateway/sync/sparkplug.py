"""Sparkplug B 3.0 payloads, encoded and (as far as commands need it) decoded by hand.

Field numbers and datatypes are those of the specification's protobuf schema (section 6.4.1, 6.4.6). Only what an edge
node sends is here: metrics with a name or an alias, a timestamp, a datatype and one value.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

NAMESPACE = "spBv1.0"
MAX_PAYLOAD = 1 << 20

# datatypes of section 6.4.16
INT8, INT16, INT32, INT64, UINT8, UINT16, UINT32, UINT64, FLOAT, DOUBLE, BOOLEAN, STRING = range(1, 13)
DATATYPE_OF_CODE = {
    "b": INT8, "h": INT16, "i": INT32, "q": INT64, "B": UINT8, "H": UINT16, "I": UINT32, "Q": UINT64,
    "f": FLOAT, "d": DOUBLE,
}  # fmt: skip

Value = bool | int | float | str


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric; births carry `name` and `alias`, data the alias alone.

    The datatype is sent in data too: npm's sparkplug-payload decodes an aliased metric without it to null.
    """

    datatype: int
    value: Value
    name: str = ""
    alias: int | None = None
    timestamp_ms: int | None = None
    unit: str = ""


def encode(metrics: Sequence[Metric], timestamp_ms: int | None, seq: int | None) -> bytes:
    """A Payload message; `seq` is None in a NDEATH."""
    out = bytearray()
    if timestamp_ms is not None:
        out += b"\x08" + _varint(timestamp_ms)
    for metric in metrics:
        body = _metric(metric)
        out += b"\x12" + _varint(len(body)) + body
    if seq is not None:
        out += b"\x18" + _varint(seq)
    return bytes(out)


def _metric(metric: Metric) -> bytes:
    out = bytearray()
    if metric.name:
        out += _text(1, metric.name)
    if metric.alias is not None:
        out += b"\x10" + _varint(metric.alias)
    if metric.timestamp_ms is not None:
        out += b"\x18" + _varint(metric.timestamp_ms)
    out += b"\x20" + _varint(metric.datatype)
    if metric.unit:
        out += _bytes(9, _unit_property(metric.unit))
    return bytes(out) + _value(metric.datatype, metric.value)


def _unit_property(unit: str) -> bytes:
    """A PropertySet with the one key that hosts show beside a value, `engUnit`."""
    value = b"\x08" + _varint(STRING) + _text(8, unit)
    return _text(1, "engUnit") + _bytes(2, value)


def _value(datatype: int, value: Value) -> bytes:
    if datatype == STRING:
        return _text(15, str(value))
    if datatype == BOOLEAN:
        return b"\x70" + _varint(int(bool(value)))
    if datatype == FLOAT:
        return b"\x65" + struct.pack("<f", value)
    if datatype == DOUBLE:
        return b"\x69" + struct.pack("<d", value)
    number = int(value)
    if datatype in (INT64, UINT64):
        return b"\x58" + _varint(number & (1 << 64) - 1)
    return b"\x50" + _varint(number & (1 << 32) - 1)  # negative ones sign-extended to 32 bits


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _bytes(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _text(field: int, text: str) -> bytes:
    return _bytes(field, text.encode())


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protobuf message as (number, value); ValueError when it is none.

    Varints and fixed-width fields come as int, length-delimited ones as bytes.
    """
    if len(data) > MAX_PAYLOAD:
        raise ValueError("larger than any command")
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _read_varint(data, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _read_varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if at + size > len(data):
            raise ValueError("cut short")
        raw = data[at : at + size]
        yield number, raw if wire == 2 else int.from_bytes(raw, "little")
        at += size


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while at < len(data) and shift < 64:
        byte = data[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number, at
    raise ValueError("not a varint")


def rebirth_asked(payload: bytes) -> bool:
    """Whether a NCMD sets `Node Control/Rebirth`; ValueError when it is not a payload."""
    for number, metric in fields(payload):
        if number == 2 and isinstance(metric, bytes):
            parts = dict(fields(metric))
            if parts.get(1) == b"Node Control/Rebirth" and parts.get(14):
                return True
    return False
