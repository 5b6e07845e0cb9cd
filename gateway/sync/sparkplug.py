"""Sparkplug B 3.0 payloads, encoded and decoded by hand.

Field numbers and datatypes are those of the specification's protobuf schema (sections 6.4.1 and 6.4.16). Only what an
edge node sends is encoded: metrics with a name or an alias, a timestamp, a datatype, properties and one value. Only
what a command may hold is decoded.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from gateway.sync.protobuf import fields, put_bytes, put_text, put_varint

NAMESPACE = "spBv1.0"
MAX_COMMAND = 1 << 16  # bytes
MAX_METRICS = 1000  # in a command

INT8, INT16, INT32, INT64, UINT8, UINT16, UINT32, UINT64, FLOAT, DOUBLE, BOOLEAN, STRING = range(1, 13)
DATATYPE_OF_CODE = {
    "b": INT8, "h": INT16, "i": INT32, "q": INT64, "B": UINT8, "H": UINT16, "I": UINT32, "Q": UINT64,
    "f": FLOAT, "d": DOUBLE,
}  # fmt: skip
GOOD, STALE = 192, 500  # quality codes, section 6.4.10

_BITS = {INT8: 8, INT16: 16, INT32: 32, INT64: 64, UINT8: 8, UINT16: 16, UINT32: 32, UINT64: 64}
_SIGNED = (INT8, INT16, INT32, INT64)
# fields of a metric that hold its value
_INT, _LONG, _FLOAT, _DOUBLE, _BOOLEAN, _STRING = range(10, 16)

Value = bool | int | float | str


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric; births carry `name` and `alias`, data the alias alone.

    The datatype is sent in data too: npm's sparkplug-payload decodes an aliased metric without it to null.

    Attributes:
        value: None is sent as is_null.
        timestamp_ms: when the value was taken, UTC since 1970.
        historical: it must not move the host's present value.
        unit: the property `engUnit`.
        quality: the property `Quality`; None leaves it out, which means good.
    """

    datatype: int
    value: Value | None
    name: str = ""
    alias: int | None = None
    timestamp_ms: int | None = None
    unit: str = ""
    quality: int | None = None
    historical: bool = False


def encode(metrics: Sequence[Metric], timestamp_ms: int | None, seq: int | None) -> bytes:
    """A Payload message; `seq` is None in a NDEATH."""
    out = bytearray()
    if timestamp_ms is not None:
        out += put_varint(1, timestamp_ms)
    for metric in metrics:
        out += put_bytes(2, _metric(metric))
    if seq is not None:
        out += put_varint(3, seq)
    return bytes(out)


def _metric(metric: Metric) -> bytes:
    out = bytearray()
    if metric.name:
        out += put_text(1, metric.name)
    if metric.alias is not None:
        out += put_varint(2, metric.alias)
    if metric.timestamp_ms is not None:
        out += put_varint(3, metric.timestamp_ms)
    out += put_varint(4, metric.datatype)
    if metric.historical:
        out += put_varint(5, 1)
    if metric.value is None:
        out += put_varint(7, 1)
    if properties := _properties(metric):
        out += put_bytes(9, properties)
    return bytes(out) if metric.value is None else bytes(out) + _value(metric.datatype, metric.value)


def _properties(metric: Metric) -> bytes:
    """A PropertySet: all keys, then as many values."""
    keys, values = bytearray(), bytearray()
    if metric.unit:
        keys += put_text(1, "engUnit")
        values += put_bytes(2, put_varint(1, STRING) + put_text(8, metric.unit))
    if metric.quality is not None:
        keys += put_text(1, "Quality")
        values += put_bytes(2, put_varint(1, INT32) + put_varint(3, metric.quality))
    return bytes(keys + values)


def _value(datatype: int, value: Value) -> bytes:
    if datatype == STRING:
        return put_text(_STRING, str(value))
    if datatype == BOOLEAN:
        return put_varint(_BOOLEAN, int(bool(value)))
    if datatype == FLOAT:
        return b"\x65" + struct.pack("<f", value)
    if datatype == DOUBLE:
        return b"\x69" + struct.pack("<d", value)
    number = int(value)
    # UInt32 too: the specification's table says otherwise, but Tahu's Java, C and JavaScript write it so, and npm's
    # decoder reads nothing else
    if datatype in (INT64, UINT32, UINT64):
        return put_varint(_LONG, number & (1 << 64) - 1)
    return put_varint(_INT, number & (1 << 32) - 1)  # negative ones sign-extended to 32 bits


@dataclass(frozen=True, slots=True)
class Received:
    """A metric of a command, as it came; `typed` gives its value as the datatype that the metric was born with."""

    name: str
    alias: int | None
    datatype: int | None
    field: int | None  # which of the value fields it has; None: no value, or null
    raw: int | bytes

    def typed(self, datatype: int) -> Value:
        """The value; ValueError when it is none, or not compatible with `datatype`."""
        raw, field = self.raw, self.field
        if field is None:
            raise ValueError("no value")
        if datatype == STRING and field == _STRING and isinstance(raw, bytes):
            return raw.decode()
        if isinstance(raw, int):
            if datatype == BOOLEAN and field == _BOOLEAN:
                return bool(raw)
            if datatype in (FLOAT, DOUBLE) and field in (_FLOAT, _DOUBLE):
                return _real(field, raw)
            if datatype in _BITS and field in (_INT, _LONG):
                return _integer(datatype, field, raw)
        raise ValueError(f"value field {field} does not fit datatype {datatype}")


def _real(field: int, raw: int) -> float:
    layout, size = ("<f", 4) if field == _FLOAT else ("<d", 8)
    if raw >> 8 * size:
        raise ValueError("a number of the wrong width")
    value: float = struct.unpack(layout, raw.to_bytes(size, "little"))[0]
    return value


def _integer(datatype: int, field: int, raw: int) -> int:
    width = 32 if field == _INT else 64
    number = raw & (1 << width) - 1
    if datatype in _SIGNED and number >> width - 1:
        number -= 1 << width
    bits = _BITS[datatype]
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if datatype in _SIGNED else (0, (1 << bits) - 1)
    if not low <= number <= high:
        raise ValueError(f"{number} does not fit {bits} bits")
    return number


def decode(payload: bytes) -> list[Received]:
    """The metrics of a command; ValueError when it is no payload, or larger than any command."""
    if len(payload) > MAX_COMMAND:
        raise ValueError(f"a command of {len(payload)} bytes")
    metrics = []
    for number, body in fields(payload):
        if number != 2:
            continue
        if not isinstance(body, bytes):
            raise ValueError("a metric that is none")
        metrics.append(_received(body))
        if len(metrics) > MAX_METRICS:
            raise ValueError(f"more than {MAX_METRICS} metrics")
    return metrics


def _received(body: bytes) -> Received:
    name, alias, datatype, null = "", None, None, False
    field: int | None = None
    raw: int | bytes = 0
    for number, value in fields(body):
        if number == 1 and isinstance(value, bytes):
            name = value.decode()  # UnicodeDecodeError is a ValueError
        elif number == 2 and isinstance(value, int):
            alias = value
        elif number == 4 and isinstance(value, int):
            datatype = value
        elif number == 7:
            null = bool(value)
        elif _INT <= number <= _STRING:
            field, raw = number, value
    return Received(name, alias, datatype, None if null else field, raw)
