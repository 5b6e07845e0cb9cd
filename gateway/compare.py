"""`octogate diff`: what two spools say differently about the same time: inferences by pipeline, and events.

Made for two replays of one recording, with an old and a new bundle or config. What is stored at the same monotonic time
is compared; which model, bundle and backend said it, and how long that took, is not a difference.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from gateway.contract import EVENTS_STREAM, BatchKind, Event, Inference, Result
from gateway.errors import StoreError
from gateway.store.columns import Codec
from gateway.store.query import Query

FIRST = 10  # differences that are listed, of each pipeline and of the events
SAME_NS = 1_000_000  # so near to each other, two rows are about the same moment


class Difference(msgspec.Struct, frozen=True):
    """One moment: what each side says, empty for nothing."""

    mono_ns: int
    wall_ns: int | None
    a: str
    b: str


class PipelineDiff(msgspec.Struct, frozen=True):
    """One pipeline: rows by label on each side, how many moments differ, and the first of these."""

    pipeline: str
    labels_a: dict[str, int]
    labels_b: dict[str, int]
    compared: int
    different: int
    largest: float  # difference of a score or value among the compared
    first: tuple[Difference, ...]


class Diff(msgspec.Struct, frozen=True):
    """All of it.

    Attributes:
        events_a, events_b: by name and state.
        events: moments with other events, `first_events` the first of them.
    """

    a: str
    b: str
    pipelines: tuple[PipelineDiff, ...]
    events_a: dict[str, int]
    events_b: dict[str, int]
    events: int
    first_events: tuple[Difference, ...]

    @property
    def different(self) -> bool:
        return bool(self.events or any(pipeline.different for pipeline in self.pipelines))


T = TypeVar("T", Inference, Event)


def compare(a: Path, b: Path, tolerance: float) -> Diff:
    """Compare two spools, or folders with one.

    Args:
        tolerance: scores and values may differ by so much.

    Raises:
        StoreError: one of them is not there or cannot be read.
    """
    with Query(_spool(a)) as left, Query(_spool(b)) as right:
        names = {
            name
            for query in (left, right)
            for name, (_, kind) in query.streams().items()
            if kind is BatchKind.INFERENCES
        }
        pipelines = tuple(_pipeline(name, left, right, tolerance) for name in sorted(names))
        tally = Counter[str](), Counter[str]()
        count, first = 0, list[Difference]()
        for one, other in _paired(_rows(left, EVENTS_STREAM, Event), _rows(right, EVENTS_STREAM, Event), _event_key):
            for event, counter in ((one, tally[0]), (other, tally[1])):
                if event is not None:
                    counter[f"{event.name} {event.state}"] += 1
            if one is None or other is None or one.message != other.message:
                count += 1
                if len(first) < FIRST:
                    first.append(_difference(one, other, _event_text))
        return Diff(str(a), str(b), pipelines, dict(tally[0]), dict(tally[1]), count, tuple(first))


def _spool(path: Path) -> Path:
    return path / "spool.db" if path.is_dir() else path


def _rows(query: Query, stream: str, kind: type[T]) -> Iterator[T]:
    streams = query.streams()
    if stream not in streams:
        return
    codec, decode = Codec(), msgspec.json.Decoder(kind).decode
    for header, blob in query.blobs(streams[stream][0], 0):
        if header.kind is BatchKind.GAP:
            continue
        for row in codec.decode_rows(blob)[1]:
            try:
                yield decode(row)
            except msgspec.DecodeError as error:
                raise StoreError(f"{stream}: a row that is none of {kind.__name__}: {error}") from error


def _event_key(event: Event) -> tuple[str, str, str]:
    return event.name, event.origin, event.state


def _paired(a: Iterator[T], b: Iterator[T], key: Callable[[T], object]) -> Iterator[tuple[T | None, T | None]]:
    """Rows of both sides by their moment; rows of one moment go together when they have one key."""
    left, right = _Moments(a), _Moments(b)
    while left.rows or right.rows:
        if not right.rows or (left.rows and right.at - left.at > SAME_NS):
            yield from ((row, None) for row in left.take())
        elif not left.rows or left.at - right.at > SAME_NS:
            yield from ((None, row) for row in right.take())
        else:
            others = right.take()
            for row in left.take():
                match = next((other for other in others if key(other) == key(row)), None)
                if match is not None:
                    others.remove(match)
                yield row, match
            yield from ((None, other) for other in others)


class _Moments(Generic[T]):
    """Rows in their order, those of one moment together; rows far from their neighbours stay alone."""

    def __init__(self, rows: Iterator[T]) -> None:
        self._rows: Iterator[T] = rows
        self._next: T | None = next(self._rows, None)
        self.rows: list[T] = []
        self.at = 0
        self._fill()

    def take(self) -> list[T]:
        rows = self.rows
        self._fill()
        return rows

    def _fill(self) -> None:
        self.rows = []
        if self._next is None:
            return
        self.at = self._next.stamp.mono_ns
        while self._next is not None and abs(self._next.stamp.mono_ns - self.at) <= SAME_NS:
            self.rows.append(self._next)
            self._next = next(self._rows, None)


def _pipeline(name: str, left: Query, right: Query, tolerance: float) -> PipelineDiff:
    tally = Counter[str](), Counter[str]()
    compared = different = 0
    largest = 0.0
    first: list[Difference] = []
    rows = _rows(left, name, Inference), _rows(right, name, Inference)
    for one, other in _paired(*rows, key=lambda row: row.pipeline):
        for row, counter in ((one, tally[0]), (other, tally[1])):
            if row is not None:
                counter[_label(row.result)] += 1
        if one is not None and other is not None:
            compared += 1
            apart = _apart(one.result, other.result)
            largest = max(largest, apart)
            if _label(one.result) == _label(other.result) and apart <= tolerance:
                continue
        different += 1
        if len(first) < FIRST:
            first.append(_difference(one, other, lambda row: _result_text(row.result)))
    return PipelineDiff(name, dict(tally[0]), dict(tally[1]), compared, different, largest, tuple(first))


def _label(result: Result) -> str:
    """What it says, without how sure it is: the class, or which objects and how many of each."""
    if result.detections:
        found = Counter(detection.label for detection in result.detections)
        return ", ".join(f"{n} x {label}" for label, n in sorted(found.items()))
    return result.label or "nothing"


def _apart(a: Result, b: Result) -> float:
    """The largest difference of a score or value; what only one side has counts against 0."""
    pairs = [(a.score, b.score)]
    for left, right in ((a.scores, b.scores), (a.values, b.values)):
        pairs += [(left.get(name, 0.0), right.get(name, 0.0)) for name in left.keys() | right.keys()]
    if len(a.detections) == len(b.detections):
        pairs += [(d.score, e.score) for d, e in zip(a.detections, b.detections, strict=True)]
    return max(abs(left - right) for left, right in pairs)


def _result_text(result: Result) -> str:
    values = "".join(f", {name} {value:.4g}" for name, value in sorted(result.values.items()))
    score = max((d.score for d in result.detections), default=result.score)
    return f"{_label(result)} ({score:.2f}){values}"


def _event_text(event: Event) -> str:
    return f"{event.name} {event.state}: {event.message}"


def _difference(one: T | None, other: T | None, text: Callable[[T], str]) -> Difference:
    stamp = (one or other).stamp  # type: ignore[union-attr]  # one of them is there
    return Difference(stamp.mono_ns, stamp.wall_ns, text(one) if one else "", text(other) if other else "")


def diff_text(diff: Diff) -> str:
    """For a terminal."""
    lines = [f"A  {diff.a}", f"B  {diff.b}"]
    for pipeline in diff.pipelines:
        lines += [
            "",
            f"{pipeline.pipeline}: {pipeline.different} of {pipeline.compared} compared differ or are on one side only; "
            f"scores and values by up to {pipeline.largest:.3g}",
            *_tally(pipeline.labels_a, pipeline.labels_b),
            *_listed(pipeline.first, pipeline.different),
        ]
    lines += ["", f"events: {diff.events} differ", *_tally(diff.events_a, diff.events_b)]
    lines += _listed(diff.first_events, diff.events)
    return "\n".join([*lines, "", "different" if diff.different else "the same"])


def _tally(a: dict[str, int], b: dict[str, int]) -> list[str]:
    return [f"  {a.get(name, 0):>8} {b.get(name, 0):>8}  {name}" for name in sorted(a.keys() | b.keys())]


def _listed(first: Iterable[Difference], count: int) -> list[str]:
    from gateway.store.export import iso

    lines = []
    for found in first:
        when = iso(found.wall_ns) if found.wall_ns is not None else f"{found.mono_ns / 1e9:.3f} s after boot"
        lines += [f"  {when}", f"    A  {found.a or '-'}", f"    B  {found.b or '-'}"]
    more = count - len(lines) // 3
    return [*lines, f"  and {more} more"] if more > 0 else lines
