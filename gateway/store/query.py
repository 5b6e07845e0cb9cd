"""Charts and ranges from a spool that a daemon may be writing: read-only, in any process.

A long range is drawn from the statistics per minute (`gateway.store.rollup`), a short one from the readings themselves.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from gateway.contract import BatchKind, Sample, Schema
from gateway.errors import StoreError
from gateway.store.columns import Codec, Header, expand, read_header
from gateway.store.rollup import MINUTE_NS, Cell, cells, unpack
from gateway.store.schema import connect_reader, explained
from gateway.store.timeline import Boot, Timeline

MAX_POINTS = 10_000
RAW_READINGS = 60_000  # up to so many are looked at one by one


class Point(msgspec.Struct, frozen=True, gc=False):
    """One bucket: its middle (UTC, ns), how many readings, and their extremes and mean."""

    wall_ns: int
    n: int
    low: float
    high: float
    mean: float


@dataclass(frozen=True, slots=True)
class Span:
    """Part of a stream: readings `first` to `end` (sequence numbers) taken within a boot between two moments."""

    boot: Boot
    from_ns: int
    to_ns: int


class Query:
    """A spool opened for reading. Calls block; one thread at a time.

    Raises:
        StoreError: there is no spool, or one of another version.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._db = connect_reader(path)
        self._codec = Codec()

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Query:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def db(self) -> sqlite3.Connection:
        return self._db

    def timeline(self) -> Timeline:
        return Timeline.of(self._db)

    def streams(self) -> dict[str, tuple[int, BatchKind]]:
        """Name -> (row, kind)."""
        rows = self._db.execute("SELECT name, id, kind FROM stream ORDER BY name").fetchall()
        return {name: (id, BatchKind(kind)) for name, id, kind in rows}

    def stream(self, name: str) -> tuple[int, BatchKind]:
        """The row and kind of a stream; StoreError with the names there are when there is none."""
        streams = self.streams()
        if name not in streams:
            raise StoreError(f"{self._path}: no stream {name!r}", hint=f"there are: {', '.join(streams) or 'none'}")
        return streams[name]

    def series(self, stream: str, channel: str, from_ns: int, to_ns: int, points: int) -> list[Point]:
        """Minimum, maximum and mean of a channel in up to `points` buckets of equal length between two times (UTC, ns).

        Buckets without a reading are left out. Where a bucket would be shorter than a minute and there are too many
        readings to look at each, the buckets are minutes.

        Raises:
            StoreError: no such stream or channel, or a range that is none.
        """
        if not (from_ns < to_ns and 0 < points <= MAX_POINTS):
            raise StoreError("not a range", hint=f"from before to, 1 to {MAX_POINTS} points")
        with explained(self._path):
            id, kind = self.stream(stream)
            if kind is not BatchKind.SAMPLES:
                raise StoreError(f"{stream!r} holds {kind}, which are no numbers", hint="export it instead")
            buckets: dict[int, Cell] = {}
            width = -(-(to_ns - from_ns) // points)
            for boot in self.timeline().boots:
                if boot.offset_ns is not None:
                    span = Span(boot, from_ns - boot.offset_ns, to_ns - boot.offset_ns)
                    self._fill(buckets, id, stream, channel, span, width)
        return [
            Point(from_ns + at * width + width // 2, cell.n, cell.low, cell.high, cell.total / cell.n)
            for at, cell in sorted(buckets.items())
            if cell.n
        ]

    def _fill(self, buckets: dict[int, Cell], id: int, stream: str, channel: str, span: Span, width: int) -> None:
        first, readings = self._extent(id, span)
        if width < MINUTE_NS and readings <= RAW_READINGS:
            after = first
        else:
            after = self._from_minutes(buckets, id, stream, channel, span, width)
        for header, sample in self._samples(id, after, span):
            self._from_readings(buckets, header, sample, channel, span, width)

    def _extent(self, id: int, span: Span) -> tuple[int, int]:
        """The first sequence number of the span's minutes, and how many readings they hold."""
        row = self._db.execute(
            "SELECT coalesce(min(seq), 0), coalesce(sum(n), 0) FROM rollup WHERE stream = ? AND boot = ? AND "
            "minute BETWEEN ? AND ?",
            (id, span.boot.row, span.from_ns // MINUTE_NS, span.to_ns // MINUTE_NS),
        ).fetchone()
        if row[1] == 0:  # nothing in the books: perhaps it is too new for them
            return self._booked(id), 0
        return row[0], row[1]

    def _booked(self, id: int) -> int:
        """The sequence number after what the books know of a stream."""
        row = self._db.execute(
            "SELECT coalesce(max(b.seq_first + b.n), 0) FROM batch b WHERE b.stream = ? AND b.seq_first = "
            "(SELECT max(seq_first) FROM batch WHERE stream = ? AND id <= (SELECT counted FROM spool))",
            (id, id),
        ).fetchone()
        return int(row[0])

    def _from_minutes(
        self, buckets: dict[int, Cell], id: int, stream: str, channel: str, span: Span, width: int
    ) -> int:
        """Fill from the statistics; the sequence number after what they know."""
        which: dict[int, int | None] = {}
        for spec, text in self._db.execute("SELECT id, spec FROM spec").fetchall():
            names = [c.name for c in Schema.parse(text).channels] if text else []
            which[spec] = names.index(channel) if channel in names else None
        rows = self._db.execute(
            "SELECT minute, spec, seq, n, data FROM rollup WHERE stream = ? AND boot = ? AND minute BETWEEN ? AND ? "
            "ORDER BY minute",
            (id, span.boot.row, span.from_ns // MINUTE_NS, (span.to_ns - 1) // MINUTE_NS),
        )
        for minute, spec, seq, n, data in rows:
            at = which.get(spec)
            if at is None:
                raise StoreError(f"{stream!r} has no channel {channel!r}", hint="see octogate status")
            middle = minute * MINUTE_NS + MINUTE_NS // 2 - span.from_ns
            bucket = min(max(middle, 0), span.to_ns - span.from_ns - 1) // width
            buckets.setdefault(bucket, Cell()).merge(unpack(seq, n, data).cells[at])
        return self._booked(id)

    def _samples(self, id: int, seq: int, span: Span) -> Iterator[tuple[Header, Sample]]:
        """The readings of a span from a sequence number on, batch by batch."""
        for header, blob in self.blobs(id, seq):
            if header.boot != span.boot.boot or header.kind is not BatchKind.SAMPLES:
                continue
            with contextlib.suppress(StoreError):  # a damaged batch is a hole in a chart, and an event
                _, sample = self._codec.decode_samples(blob)
                if sample.firsts[0] >= span.to_ns:
                    return
                yield header, sample

    def blobs(self, id: int, seq: int) -> Iterator[tuple[Header, bytes]]:
        """The batches of a stream that hold sequence numbers from `seq` on, in order; unreadable ones are left out."""
        at = self._db.execute(
            "SELECT max(seq_first) FROM batch WHERE stream = ? AND seq_first <= ?", (id, seq)
        ).fetchone()[0]
        query = "SELECT blob FROM batch WHERE stream = ? AND seq_first >= ? AND seq_first + n > ? ORDER BY seq_first"
        for (blob,) in self._db.execute(query, (id, seq if at is None else at, seq)):
            with contextlib.suppress(StoreError):
                yield read_header(blob)[0], blob

    def _from_readings(
        self, buckets: dict[int, Cell], header: Header, sample: Sample, channel: str, span: Span, width: int
    ) -> None:
        names = [c.name for c in sample.schema.channels]
        if channel not in names:
            raise StoreError(f"{header.stream!r} has no channel {channel!r}", hint=f"there are: {', '.join(names)}")
        at = names.index(channel)
        first, last = sample.firsts[0], sample.firsts[-1] + sample.steps[-1] * (sample.counts[-1] - 1)
        bucket = (first - span.from_ns) // width
        if span.from_ns <= first and last < min(span.to_ns, span.from_ns + (bucket + 1) * width):
            buckets.setdefault(bucket, Cell()).merge(cells(sample.schema, sample.data)[at])
            return
        for mono_ns, values in expand(sample):
            if span.from_ns <= mono_ns < span.to_ns and values[at] == values[at]:
                value = float(values[at])
                cell = buckets.setdefault((mono_ns - span.from_ns) // width, Cell())
                cell.n += 1
                cell.total += value
                cell.low = min(cell.low, value)
                cell.high = max(cell.high, value)
