"""`octogate status --wear`: what the disk had to take, by day and by stream, from the spool's own books.

A day is a day of the spool's life, that is of time that the machine was switched on (`gateway.store.wear`): day 1 is the
first. What was written is everything this process caused to be written, pictures included; of a stream what is known is
what its batches took when they were committed. The quotient of the two is what log, index and packing cost.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from gateway.store.schema import connect_reader, explained
from gateway.store.wear import Wear, pace

DAYS_SHOWN = 7


class StreamDay(msgspec.Struct, frozen=True):
    """What one stream brought on a day: bytes of its batches, and readings or rows in them."""

    stream: str
    bytes: int
    n: int


class Day(msgspec.Struct, frozen=True):
    """One day.

    Attributes:
        seconds: for which the gateway ran.
        written: bytes written to disks by the gateway's process.
        log: of these, to the spool's write-ahead log, as far as it was counted.
        commits: each with at least one flush of the disk.
    """

    day: int
    seconds: int
    written: int
    log: int
    commits: int
    streams: tuple[StreamDay, ...]


class Worn(msgspec.Struct, frozen=True):
    """All days, oldest first.

    Attributes:
        written: bytes in all.
        per_day: bytes a day over the last days; 0 before a minute was measured.
        card_tbw: as declared, 0 when it was not.
        card_years: what the card is still good for at that pace; None when either is not known.
        budget: store.wear_gb_day, in bytes.
    """

    days: tuple[Day, ...]
    written: int
    per_day: float
    card_tbw: float
    card_years: float | None
    budget: float


def read_worn(path: Path, card_tbw: float, wear_gb_day: float) -> Worn:
    """The books of a spool; a daemon may be writing it, and is up to ten minutes ahead of them.

    Raises:
        StoreError: there is no spool, or it cannot be read.
    """
    with contextlib.closing(connect_reader(path)) as db, explained(path):
        db.execute("BEGIN")
        streams: dict[int, list[StreamDay]] = {}
        for day, name, size, n in db.execute(
            "SELECT w.day, s.name, w.bytes, w.n FROM wear_stream w JOIN stream s ON s.id = w.stream ORDER BY 1, 2"
        ):
            streams.setdefault(day, []).append(StreamDay(name, size, n))
        days = tuple(
            Day(day + 1, seconds, written, log, commits, tuple(streams.get(day, ())))
            for day, seconds, written, log, commits in db.execute(
                "SELECT day, seconds, written, wal, commits FROM wear ORDER BY day"
            )
        )
    late = days[-DAYS_SHOWN:]
    written = sum(day.written for day in days)
    per_day = pace(sum(day.written for day in late), sum(day.seconds for day in late))
    years = Wear(written, per_day).years_left(card_tbw)
    return Worn(days, written, per_day, card_tbw, years, wear_gb_day * 1e9)


def worn_text(worn: Worn) -> str:
    """For a terminal: the last days."""
    days = worn.days[-DAYS_SHOWN:]
    if not days:
        return "nothing is in the books yet: they are written after 512 commits or ten minutes"
    rows = [
        (
            str(day.day),
            f"{day.seconds / 3600:.1f}",
            f"{day.written / 1e6:,.1f}",
            f"{day.log / 1e6:,.1f}",
            f"{day.commits:,}",
            f"{pace(day.written, day.seconds) / 1e6:,.0f}" if day.seconds >= 60 else "",
        )
        for day in days
    ]
    lines = _table(("day", "hours", "MB written", "of it log", "commits", "MB/day"), rows)
    brought = [
        (
            str(day.day),
            stream.stream,
            f"{stream.bytes / 1e6:,.2f}",
            f"{stream.n:,}",
            f"{stream.bytes / max(1, stream.n):.1f}",
        )
        for day in days
        for stream in day.streams
    ]
    lines += ["", *_table(("day", "stream", "MB stored", "readings or rows", "bytes each"), brought)]
    stored = sum(stream.bytes for day in days for stream in day.streams)
    if stored:
        factor = sum(day.written for day in days) / stored
        lines += ["", f"a byte stored costs {factor:.1f} bytes written: log, index, packing, pictures"]
    card = (
        "declare it (store.card_tbw) to see how long it lasts"
        if not worn.card_tbw
        else "its years are told when a minute was measured"
        if worn.card_years is None
        else f"good for {worn.card_tbw:g} TB: {worn.card_years:.1f} years more"
    )
    limit = f"budget {worn.budget / 1e6:,.0f} MB/day" if worn.budget else "no budget (store.wear_gb_day)"
    lines.append(
        f"disk    {worn.per_day / 1e6:,.0f} MB/day, {limit}; {worn.written / 1e6:,.0f} MB so far; card: {card}"
    )
    return "\n".join(lines)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(line[i]) for line in (head, *rows)) for i in range(len(head))]
    return ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in (head, *rows)]
