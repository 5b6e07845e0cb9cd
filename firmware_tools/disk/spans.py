"""Sets of bytes on a disk: sorted spans `(start, end)`, `end` not included, which do not touch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

Span = tuple[int, int]


def union(spans: Iterable[Span]) -> list[Span]:
    """The same bytes, sorted and joined."""
    joined: list[Span] = []
    for start, end in sorted(span for span in spans if span[0] < span[1]):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


def without(spans: Iterable[Span], holes: list[Span]) -> Iterator[Span]:
    """What of the spans is in none of the holes, which are sorted and do not touch."""
    for start, end in spans:
        for hole_start, hole_end in holes:
            if hole_end <= start or end <= hole_start:
                continue
            if start < hole_start:
                yield start, hole_start
            start = hole_end
        if start < end:
            yield start, end


def within(spans: list[Span], start: int, end: int) -> Iterator[Span]:
    """What of the spans lies between `start` and `end`."""
    for one, two in spans:
        if one < end and start < two:
            yield max(one, start), min(two, end)
