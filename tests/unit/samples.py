"""Readings for tests: a counter and its half, so that loss, repetition and order can be proven."""

from __future__ import annotations

import struct
from array import array

from gateway.contract import Channel, Sample, Schema

SCHEMA = Schema((Channel("count", "I"), Channel("half", "f", "A")))


def counted(stream: str, first: int, n: int, *, step_ns: int = 5_000_000) -> Sample:
    """`n` readings in one segment, numbered from `first`."""
    data = b"".join(struct.pack("<If", number, number / 2) for number in range(first, first + n))
    return Sample(stream, SCHEMA, array("q", [first * step_ns]), array("q", [step_ns]), array("H", [n]), data)
