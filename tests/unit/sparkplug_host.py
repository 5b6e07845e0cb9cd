"""What a Sparkplug host makes of the messages of an edge node, for tests: payloads read field by field."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from gateway.sync import sparkplug
from gateway.sync.protobuf import fields
from gateway.sync.sparkplug import Value


@dataclass
class Seen:
    """One metric as it stands in a payload."""

    name: str = ""
    alias: int | None = None
    timestamp: int | None = None
    datatype: int | None = None
    historical: bool = False
    null: bool = False
    value: Value | None = None
    properties: dict[str, tuple[int, Value]] = field(default_factory=dict)  # key -> datatype, value


@dataclass
class Told:
    """One message."""

    kind: str
    device: str
    topic: str
    qos: int
    retain: bool
    timestamp: int | None
    seq: int | None
    metrics: list[Seen]

    def values(self) -> dict[str, Value | None]:
        return {metric.name: metric.value for metric in self.metrics}

    def metric(self, name: str) -> Seen:
        return next(metric for metric in self.metrics if metric.name == name)


def told(topic: str, payload: bytes, qos: int = 0, retain: bool = False) -> Told:
    parts = topic.split("/")
    assert parts[0] == "spBv1.0" and len(parts) in (4, 5), topic
    timestamp: int | None = None
    seq: int | None = None
    metrics = []
    for number, body in fields(payload):
        if number == 1 and isinstance(body, int):
            timestamp = body
        elif number == 3 and isinstance(body, int):
            seq = body
        elif number == 2 and isinstance(body, bytes):
            metrics.append(seen(body))
        else:
            raise AssertionError(f"field {number} in a payload")
    return Told(parts[2], parts[4] if len(parts) == 5 else "", topic, qos, retain, timestamp, seq, metrics)


def seen(body: bytes) -> Seen:
    metric = Seen()
    for number, raw in fields(body):
        if isinstance(raw, bytes):
            text = raw.decode(errors="replace")
            if number == 1:
                metric.name = text
            elif number == 9:
                metric.properties = _properties(raw)
            elif number == 15:
                metric.value = text
            else:
                raise AssertionError(f"field {number} in a metric")
        elif number == 2:
            metric.alias = raw
        elif number == 3:
            metric.timestamp = raw
        elif number == 4:
            metric.datatype = raw
        elif number == 5:
            metric.historical = bool(raw)
        elif number == 7:
            metric.null = bool(raw)
        else:
            metric.value = _number(number, raw, metric.datatype)
    return metric


def _number(number: int, raw: int, datatype: int | None) -> Value:
    if number == 10:
        assert raw < 1 << 32, "an int_value is 32 bits wide"
        signed = datatype in (sparkplug.INT8, sparkplug.INT16, sparkplug.INT32)
        return raw - (1 << 32) if signed and raw >> 31 else raw
    if number == 11:
        return raw - (1 << 64) if datatype == sparkplug.INT64 and raw >> 63 else raw
    if number == 12:
        return float(struct.unpack("<f", raw.to_bytes(4, "little"))[0])
    if number == 13:
        return float(struct.unpack("<d", raw.to_bytes(8, "little"))[0])
    assert number == 14, f"field {number} in a metric"
    return bool(raw)


def _properties(raw: bytes) -> dict[str, tuple[int, Value]]:
    keys, values = [], []
    for number, body in fields(raw):
        assert isinstance(body, bytes)
        if number == 1:
            keys.append(body.decode())
        else:
            assert number == 2
            parts = dict(fields(body))
            datatype = parts.pop(1)
            assert isinstance(datatype, int)
            ((at, value),) = parts.items()
            assert (at, datatype) in ((3, sparkplug.INT32), (8, sparkplug.STRING))
            values.append((datatype, value.decode() if isinstance(value, bytes) else value))
    return dict(zip(keys, values, strict=True))
