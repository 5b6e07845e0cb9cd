"""Sliding windows over the packed records of a stream: bytes in, bytes out, nothing is unpacked here."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.contract import Sample, Schema


@dataclass(frozen=True, slots=True)
class Window:
    """`length` consecutive records.

    Attributes:
        first: how many readings of this run of the stream came before it.
        end_ns: monotonic time of its last reading.
    """

    first: int
    end_ns: int
    data: bytes


class Windows:
    """Cuts a stream into windows of `length` readings, a new one every `hop` readings.

    A change of the schema starts a new window: records of two layouts never mix.

    Raises:
        ValueError: unless 0 < hop <= length.
    """

    def __init__(self, length: int, hop: int) -> None:
        if not 0 < hop <= length:
            raise ValueError(f"hop {hop} must be between 1 and the window's length {length}")
        self._length = length
        self._hop = hop
        self._schema: Schema | None = None
        self._records = bytearray()
        self._first = 0  # index of the first record that is held

    @property
    def schema(self) -> Schema | None:
        return self._schema

    def feed(self, sample: Sample) -> list[Window]:
        """The windows that these readings complete, oldest first."""
        if sample.schema != self._schema:
            self._first += len(self._records) // (self._schema.record_size if self._schema else 1)
            self._records.clear()
            self._schema = sample.schema
        size = sample.schema.record_size
        self._records += sample.data
        held_end = self._first + len(self._records) // size
        windows = []
        while len(self._records) >= self._length * size:
            last = self._first + self._length - 1
            end_ns = time_of(sample, sample.n - (held_end - last))
            windows.append(Window(self._first, end_ns, bytes(self._records[: self._length * size])))
            del self._records[: self._hop * size]
            self._first += self._hop
        return windows


def time_of(sample: Sample, index: int) -> int:
    """Monotonic ns of the reading at `index`; an index before the sample gives its first time."""
    if index <= 0:
        return sample.firsts[0]
    for first, step, count in zip(sample.firsts, sample.steps, sample.counts, strict=True):
        if index < count:
            return first + index * step
        index -= count
    return sample.firsts[-1] + sample.steps[-1] * (sample.counts[-1] - 1)
