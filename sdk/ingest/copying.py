"""Readings as PostgreSQL takes them fastest: the binary form of COPY, made a column at a time.

The form is that of PostgreSQL's manual, "COPY", "Binary Format": per row a field count (i16), per field a length
(i32, -1 for null) and the value, all big-endian; numeric as its receive function reads it (digits of base 10000).
All rows of a batch have the same length, so each byte of each column is written with one strided slice: a batch costs
a few slices a column and nothing per reading.
"""

from __future__ import annotations

import struct
import sys
from array import array

from gateway.contract import Sample, Schema

SIGNATURE = b"PGCOPY\n\xff\r\n\0" + struct.pack(">ii", 0, 0)
TRAILER = struct.pack(">h", -1)
_POSTGRES_EPOCH_US = 946_684_800_000_000  # 2000-01-01 in microseconds of UNIX time
_NUMERIC_DIGITS = 5  # of base 10000: enough for 64 bits
# struct code -> (SQL type, array code of its bytes)
TYPES: dict[str, tuple[str, str]] = {
    "b": ("smallint", "h"),
    "B": ("smallint", "h"),
    "h": ("smallint", "h"),
    "H": ("integer", "i"),
    "i": ("integer", "i"),
    "I": ("bigint", "q"),
    "q": ("bigint", "q"),
    "Q": ("numeric(20)", "H"),
    "f": ("real", "f"),
    "d": ("double precision", "d"),
}
assert sys.byteorder == "little", "channels are read as this machine's own numbers"


def copy_rows(stream: int, seq_first: int, sample: Sample, wall_offset_ns: int | None, skip: int = 0) -> bytes:
    """The rows (stream, seq, mono_ns, at, channels...) of a batch, without its first `skip` readings.

    Raises:
        OverflowError: times that no timestamp can hold.
    """
    n = sample.n
    times = array("q")
    for first, step, count in zip(sample.firsts, sample.steps, sample.counts, strict=True):
        times.extend(range(first, first + step * count, step) if step else [first] * count)
    columns = [
        (8, _planes(array("q", [stream]) * n)),
        (8, _planes(array("q", range(seq_first, seq_first + n)))),
        (8, _planes(times)),
        (8, None if wall_offset_ns is None else _planes(_timestamps(times, wall_offset_ns))),
        *_channels(sample.schema, sample.data, n),
    ]
    template = struct.pack(">h", len(columns))
    places = []
    for size, planes in columns:
        template += struct.pack(">i", -1 if planes is None else size)
        places.append(len(template))
        template += b"" if planes is None else bytes(size)
    rows = bytearray(template * n)
    for at, (size, planes) in zip(places, columns, strict=True):
        if planes is not None:
            for k in range(size):
                rows[at + k :: len(template)] = planes[k]
    return bytes(memoryview(rows)[skip * len(template) :])


def _timestamps(times: array[int], offset_ns: int) -> array[int]:
    return array("q", [(time + offset_ns) // 1000 - _POSTGRES_EPOCH_US for time in times])


def _planes(values: array[int] | array[float]) -> list[bytes]:
    """All first (most significant) bytes of the values, all second bytes, ..."""
    data = values.tobytes()
    size = values.itemsize
    return [data[k::size] for k in range(size - 1, -1, -1)]


def _channels(schema: Schema, data: bytes, n: int) -> list[tuple[int, list[bytes]]]:
    columns = []
    at, width = 0, schema.record_size
    for channel in schema.channels:
        size = struct.calcsize("<" + channel.type)
        packed = bytearray(size * n)
        for k in range(size):
            packed[k::size] = data[at + k :: width]
        at += size
        values = array(channel.type, bytes(packed))
        _, wide = TYPES[channel.type]
        if channel.type == "Q":
            columns.append((8 + 2 * _NUMERIC_DIGITS, _numeric(values)))
        else:
            columns.append((array(wide).itemsize, _planes(values if wide == channel.type else array(wide, values))))
    return columns


def _numeric(values: array[int] | array[float]) -> list[bytes]:
    n = len(values)
    head = [array("H", [field]) * n for field in (_NUMERIC_DIGITS, _NUMERIC_DIGITS - 1, 0, 0)]  # weight, sign, scale
    digits = [
        array("H", [int(value) // 10000**power % 10000 for value in values])
        for power in range(_NUMERIC_DIGITS - 1, -1, -1)
    ]
    return [plane for field in (*head, *digits) for plane in _planes(field)]
