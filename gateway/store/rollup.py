"""Minimum, maximum and sum per channel and minute: what a chart of days is drawn from.

A minute is `mono_ns // MINUTE_NS` of its boot: monotonic, so that no clock step moves a reading into another. Each row
also says the first sequence number of its minute, which makes it the index from time to sequence.
"""

from __future__ import annotations

import math
import struct
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from gateway.contract import Sample, Schema

MINUTE_NS = 60 * 10**9
_CELL = struct.Struct("<Iddd")


@dataclass(slots=True)
class Cell:
    """One channel of one minute; `n` counts the finite values."""

    n: int = 0
    low: float = math.inf
    high: float = -math.inf
    total: float = 0.0

    def merge(self, other: Cell) -> None:
        self.n += other.n
        self.low = min(self.low, other.low)
        self.high = max(self.high, other.high)
        self.total += other.total


@dataclass(slots=True)
class Minute:
    """What one stream did in one minute; `cells` in the order of the schema's channels, none for rows."""

    seq: int
    n: int = 0
    cells: list[Cell] = field(default_factory=list)

    def merge(self, other: Minute) -> None:
        self.seq = min(self.seq, other.seq)
        self.n += other.n
        if not self.cells:
            self.cells = [Cell() for _ in other.cells]
        for mine, theirs in zip(self.cells, other.cells, strict=True):
            mine.merge(theirs)

    def pack(self) -> bytes:
        return b"".join([_CELL.pack(c.n, c.low, c.high, c.total) for c in self.cells])


def unpack(seq: int, n: int, data: bytes) -> Minute:
    """The inverse of `Minute.pack`; struct.error for bytes of another length."""
    return Minute(seq, n, [Cell(*cell) for cell in _CELL.iter_unpack(data)])


def minutes(seq: int, sample: Sample) -> Iterator[tuple[int, Minute]]:
    """A run, the first reading of which has the number `seq`, as (minute, what happened in it).

    A segment counts as a whole to the minute of its first reading.
    """
    size = sample.schema.record_size
    at = 0
    for minute, count in _stretches(sample):
        data = sample.data[at * size : (at + count) * size] if count * size != len(sample.data) else sample.data
        yield minute, Minute(seq + at, count, cells(sample.schema, data))
        at += count


def _stretches(sample: Sample) -> Iterator[tuple[int, int]]:
    """Consecutive segments of one minute as (minute, readings)."""
    firsts = sample.firsts
    if not firsts:
        return
    current, n = firsts[0] // MINUTE_NS, 0
    if firsts[-1] // MINUTE_NS == current and min(firsts) // MINUTE_NS == max(firsts) // MINUTE_NS:
        yield current, sum(sample.counts)
        return
    for first, count in zip(firsts, sample.counts, strict=True):
        if first // MINUTE_NS != current:
            yield current, n
            current, n = first // MINUTE_NS, 0
        n += count
    yield current, n


def cells(schema: Schema, data: bytes) -> list[Cell]:
    """The statistics of packed records, by channel."""
    size = schema.record_size
    found = []
    at = 0
    for channel in schema.channels:
        found.append(_cell(column(data, size, at, channel.type)))
        at += struct.calcsize("<" + channel.type)
    return found


def column(data: bytes, size: int, at: int, code: str) -> array[float]:
    """One channel of packed records of `size` bytes, that starts `at` bytes in: a few slices, no loop over readings."""
    values: array[float] = array(code)
    width = values.itemsize
    if width == size:
        values.frombytes(data)
        return values
    plane = bytearray(len(data) // size * width)
    for k in range(width):
        plane[k::width] = data[at + k :: size]
    values.frombytes(bytes(plane))
    return values


def _cell(values: Sequence[float]) -> Cell:
    total = float(sum(values))
    if not math.isfinite(total):
        values = [value for value in values if math.isfinite(value)]
        total = math.fsum(values)
    if not values:
        return Cell()
    return Cell(len(values), float(min(values)), float(max(values)), total)
