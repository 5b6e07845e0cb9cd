"""A batch cut into smaller ones, for an uplink whose broker does not take it whole.

The parts are batches like any other, with keys of their own: a consumer that has some of them, or the whole, takes what
it lacks. Cut the same way each time, so the bytes under a key never change. What is stored stays as it is.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec

from gateway.clock import Clock
from gateway.contract import Batch, BatchKind, Sample
from gateway.errors import StoreError
from gateway.store.columns import Codec, Gap, Header, read_header

MARGIN = 1.2  # parts compress a little less well than the whole


@dataclass(frozen=True, slots=True)
class Part:
    """A batch that is small enough; or, where even one reading is too large (`size` bytes), the gap in its place."""

    batch: Batch
    size: int = 0


def split(codec: Codec, batch: Batch, largest: int, clock: Clock) -> list[Part]:
    """Cut a batch into parts of at most `largest` bytes.

    Only the last part has the batch's id; the others have one less, for whoever is interrupted between them has to
    begin with this batch again.
    """
    header, _ = read_header(batch.blob)
    try:
        make = _maker(codec, header, batch.blob)
    except StoreError:  # whole by its checksum and still not to be read: nobody could use it
        make = None
    pieces = [(0, batch.n, batch.blob)] if make is None else list(_cut(make, 0, batch.n, largest))
    parts = []
    for at, n, blob in pieces:
        seq, size, id = batch.seq_first + at, 0, batch.id if at + n == batch.n else batch.id - 1
        if len(blob) > largest:
            size = len(blob)
            offset = clock.wall_offset_ns()
            gap = Header(header.epoch, batch.stream, seq, n, BatchKind.GAP, "", clock.boot, offset, clock.wall_error_ns)
            blob = codec.encode_gap(gap, Gap("packet", header.kind, clock.boot, clock.mono_ns()))
        parts.append(Part(Batch(id, batch.stream, seq, n, blob), size))
    return parts


Make = Callable[[int, int], bytes]  # first reading and how many -> their batch


def _maker(codec: Codec, header: Header, blob: bytes) -> Make:
    if header.kind is BatchKind.SAMPLES:
        _, sample = codec.decode_samples(blob)
        return lambda at, n: codec.encode_samples(_header(header, at, n), [_slice(sample, at, n)])
    _, rows = codec.decode_rows(blob)
    return lambda at, n: codec.encode_rows(_header(header, at, n), rows[at : at + n])


def _header(whole: Header, at: int, n: int) -> Header:
    was = tuple((epoch, first + at) for epoch, first in whole.was)
    return msgspec.structs.replace(whole, seq_first=whole.seq_first + at, n=n, was=was)


def _cut(make: Make, at: int, n: int, largest: int) -> Iterator[tuple[int, int, bytes]]:
    """Runs that fit, and single readings that do not, as (first, how many, blob)."""
    blob = make(at, n)
    if len(blob) <= largest or n == 1:
        yield at, n, blob
        return
    pieces = min(n, max(2, int(MARGIN * len(blob) / largest) + 1))
    step = -(-n // pieces)
    for first in range(at, at + n, step):
        yield from _cut(make, first, min(step, at + n - first), largest)


def _slice(sample: Sample, at: int, n: int) -> Sample:
    """`n` readings from `at` on."""
    firsts, steps, counts = array("q"), array("q"), array("H")
    begin = 0
    for first, step, count in zip(sample.firsts, sample.steps, sample.counts, strict=True):
        skip, end = max(0, at - begin), min(count, at + n - begin)
        if end > skip:
            firsts.append(first + skip * step)
            steps.append(step)
            counts.append(end - skip)
        begin += count
    size = sample.schema.record_size
    return Sample(sample.stream, sample.schema, firsts, steps, counts, sample.data[at * size : (at + n) * size])
