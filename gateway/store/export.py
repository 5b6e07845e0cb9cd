"""`octogate export`: a stream, or a range of it, as CSV, JSON lines or Parquet; the gateway may be running.

Each reading has its sequence number, its time (UTC, empty while it is not known), the boot and monotonic time it was
taken at, and its channels. Times are those that are known now: what was taken before the clock was right is dated.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import msgspec

from gateway.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from gateway.store.query import Query
    from gateway.store.timeline import Timeline

PROGRESS_S = 2.0
CHUNK = 50_000  # rows a Parquet row group
FIXED = ("seq", "time", "boot", "mono_ns")
Row = tuple[Any, ...]  # FIXED, then the channels; or then the decoded JSON of a row
_decode = msgspec.json.Decoder(dict[str, Any]).decode


def parse_time(text: str) -> int:
    """ISO 8601 as UTC nanoseconds; without a zone it is UTC. ConfigError for anything else."""
    try:
        when = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(f"{text!r} is not a time", hint="such as 2026-11-23 or 2026-11-23T14:30:00Z") from error
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return round(when.timestamp() * 1e6) * 1000


class Export:
    """The rows of one stream between two times (UTC ns, None is open), in order.

    Attributes:
        columns: names of what a row holds.
        undated: rows left out of a range because their time is not known.
    """

    def __init__(self, query: Query, stream: str, from_ns: int | None, to_ns: int | None) -> None:
        from gateway.contract import BatchKind

        self._query = query
        self._id, kind = query.stream(stream)
        self._stream = stream
        self._samples = kind is BatchKind.SAMPLES
        self._from = -(1 << 62) if from_ns is None else from_ns
        self._to = 1 << 62 if to_ns is None else to_ns
        self._ranged = from_ns is not None or to_ns is not None
        self.columns: tuple[str, ...] = FIXED
        self.types: dict[str, str] = {}  # channel -> struct code
        self.undated = 0

    def rows(self) -> Iterator[Row]:
        """Every row of the range; StoreError when the stream's channels change within it."""
        timeline = self._query.timeline()
        for header, blob in self._query.blobs(self._id, self._start(timeline)):
            rows = self._readings(blob, timeline) if self._samples else self._texts(blob, timeline)
            for row in rows:
                wall_ns = row[1]
                if self._ranged and wall_ns is None:
                    self.undated += 1
                elif wall_ns is None or self._from <= wall_ns < self._to:
                    yield (row[0], None if wall_ns is None else iso(wall_ns), *row[2:])
            del header

    def _start(self, timeline: Timeline) -> int:
        """A sequence number at or before the first of the range."""
        from gateway.store.rollup import MINUTE_NS

        first = []
        for boot in timeline.boots:
            if boot.offset_ns is None or self._from < 0:
                return 0
            row = self._query.db.execute(
                "SELECT seq FROM rollup WHERE stream = ? AND boot = ? AND minute >= ? ORDER BY minute LIMIT 1",
                (self._id, boot.row, (self._from - boot.offset_ns) // MINUTE_NS - 1),
            ).fetchone()
            if row is not None:
                first.append(row[0])
        return min(first, default=0)

    def _readings(self, blob: bytes, timeline: Timeline) -> Iterator[Row]:
        from gateway.contract import BatchKind
        from gateway.store.columns import Codec, expand, read_header

        if read_header(blob)[0].kind is not BatchKind.SAMPLES:
            return  # a gap
        header, sample = Codec().decode_samples(blob)
        types = {c.name: c.type for c in sample.schema.channels}
        if not self.types:
            self.types, self.columns = types, (*FIXED, *types)
        elif types != self.types:
            raise StoreError(
                f"{self._stream!r}: other channels from reading {header.seq_first} on",
                hint="export the parts with --from and --to, each into a file of its own",
            )
        offset = timeline.offset_ns(header)
        for i, (mono_ns, values) in enumerate(expand(sample)):
            wall_ns = None if offset is None else mono_ns + offset
            yield (header.seq_first + i, wall_ns, header.boot, mono_ns, *values)

    def _texts(self, blob: bytes, timeline: Timeline) -> Iterator[Row]:
        from gateway.contract import BatchKind
        from gateway.store.columns import Codec, read_header

        self.columns = (*FIXED, "value")
        if read_header(blob)[0].kind is BatchKind.GAP:
            return
        header, texts = Codec().decode_rows(blob)
        for i, text in enumerate(texts):
            value = _decode(text)
            stamp = value.get("stamp") or {}
            mono_ns, wall_ns = stamp.get("mono_ns"), stamp.get("wall_ns")
            if (
                mono_ns is not None
                and stamp.get("boot") == header.boot
                and (offset := timeline.offset_ns(header)) is not None
            ):
                wall_ns = mono_ns + offset
            yield (header.seq_first + i, wall_ns, header.boot, mono_ns, value)


def iso(wall_ns: int) -> str:
    """UTC with microseconds."""
    return (
        datetime.fromtimestamp(wall_ns // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%S") + f".{wall_ns % 10**9 // 1000:06d}Z"
    )


def write_csv(export: Export, rows: Iterator[Row], file: IO[str]) -> int:
    writer, n = csv.writer(file, lineterminator="\n"), 0
    for row in rows:
        if n == 0:
            writer.writerow(export.columns)
        writer.writerow([json.dumps(cell) if isinstance(cell, dict) else cell for cell in row])
        n += 1
    return n


def write_jsonl(export: Export, rows: Iterator[Row], file: IO[str]) -> int:
    n = 0
    for row in rows:
        cells = dict(zip(export.columns, row, strict=True))
        if isinstance(value := cells.pop("value", None), dict) and export.columns[-1] == "value":
            cells |= value
        elif "value" in export.columns:
            cells["value"] = value
        file.write(msgspec.json.encode(cells).decode() + "\n")
        n += 1
    return n


def write_parquet(export: Export, rows: Iterator[Row], path: Path) -> int:
    """Raises StoreError where pyarrow is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise StoreError(
            "Parquet needs pyarrow, which is not installed here",
            hint="pip install 'octogate[export]', or use --format csv",
        ) from error
    n, writer = 0, None
    try:
        for chunk in _chunks(rows):
            if writer is None:
                schema = pyarrow.schema([(name, _arrow_type(pyarrow, export, name)) for name in export.columns])
                writer = pyarrow.parquet.ParquetWriter(path, schema, compression="zstd")
            columns = [
                [json.dumps(cell) if isinstance(cell, dict) else cell for cell in column]
                for column in zip(*chunk, strict=True)
            ]
            arrays = [pyarrow.array(column, type=field.type) for column, field in zip(columns, schema, strict=True)]
            writer.write_table(pyarrow.Table.from_arrays(arrays, schema=schema))
            n += len(chunk)
    finally:
        if writer is not None:
            writer.close()
    if writer is None:
        raise StoreError("there is nothing in that range", hint="widen it, or see octogate ledger for what there is")
    return n


_ARROW = {
    "b": "int8", "B": "uint8", "h": "int16", "H": "uint16", "i": "int32", "I": "uint32", "q": "int64", "Q": "uint64",
    "f": "float32", "d": "float64",
}  # fmt: skip


def _arrow_type(pyarrow: Any, export: Export, name: str) -> Any:
    if name in ("seq", "mono_ns"):
        return pyarrow.int64()
    code = export.types.get(name)
    return getattr(pyarrow, _ARROW[code])() if code else pyarrow.string()


def _chunks(rows: Iterator[Row]) -> Iterator[list[Row]]:
    chunk: list[Row] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) >= CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def with_progress(rows: Iterator[Row], say: Callable[[int], None], clock: Callable[[], float]) -> Iterator[Row]:
    """Pass on, and say how many there were so far, first after `PROGRESS_S`."""
    due = clock() + PROGRESS_S
    for n, row in enumerate(rows, 1):
        yield row
        if n % 1000 == 0 and clock() >= due:
            say(n)
            due = clock() + PROGRESS_S


@contextmanager
def _whole_file(path: Path) -> Iterator[Path]:
    """A name to write to; it becomes `path` when the block ends well, and is removed when not."""
    part = path.with_name(path.name + ".part")
    try:
        yield part
        os.replace(part, path)
    except OSError as error:
        raise StoreError(f"{path}: cannot write: {error.strerror}", hint="check the folder and its disk") from error
    finally:
        part.unlink(missing_ok=True)


def command(args: argparse.Namespace) -> int:
    """`octogate export`; its exit status."""
    from gateway.config import load
    from gateway.store.query import Query

    since = parse_time(args.since) if args.since else None
    until = parse_time(args.until) if args.until else None
    if args.format == "parquet" and args.output is None:
        raise ConfigError("Parquet cannot go to standard output", hint="name a file with -o")
    with Query(load(args.config).spool_path) as query:
        export = Export(query, args.stream, since, until)
        rows = with_progress(export.rows(), lambda n: _say(f"{n} rows so far"), time.monotonic)
        n = _write(export, rows, args.format, args.output)
    if export.undated:
        _say(f"{export.undated} rows left out: when they were taken is not known; without --from and --to they are in")
    _say(f"{n} rows of {args.stream}{f' in {args.output}' if args.output else ''}")
    return 0


def _write(export: Export, rows: Iterator[Row], format: str, output: Path | None) -> int:
    write = write_csv if format == "csv" else write_jsonl
    if output is None:
        try:
            n = write(export, rows, sys.stdout)
            sys.stdout.flush()
        except BrokenPipeError:  # `| head` has enough; what Python would still flush at its end goes nowhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        return n
    with _whole_file(output) as part:
        if format == "parquet":
            return write_parquet(export, rows, part)
        with part.open("w", newline="") as file:
            return write(export, rows, file)


def _say(text: str) -> None:
    sys.stderr.write(f"octogate export: {text}\n")
