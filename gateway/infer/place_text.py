"""What `octogate bench` prints: tables and progress; in colour where rich is installed and a terminal looks on."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import msgspec

from gateway.infer.candidate import Candidate, Report
from gateway.infer.order import Order
from gateway.infer.place import Tell
from gateway.infer.ranking import MARGIN, Measured, Placement, cost

PROGRESS_AFTER_S = 2.0
_HEAD = ("", "candidate", "file", "p50 ms", "p99 ms", "CPU ms", "per s", "PSS MB", "")
_NUMBERS = (3, 4, 5, 6, 7)  # columns that stand at the right
_EXPLAIN_HEAD = ("candidate", "file", "device", "precision", "threads", "partition", "")


class Explained(msgspec.Struct, frozen=True):
    """What a runtime did with a candidate, or why it did nothing."""

    candidate: Candidate
    report: Report | None
    fault: str


def show(order: Order, placement: Placement) -> None:
    """Every candidate, the choice marked, rejected ones with the reason."""
    chosen = placement.ranking[0] if placement.ranking else None
    objective = placement.key.objective
    # the choice first, then as good as they are, the rejected last
    lines = sorted(
        placement.measured,
        key=lambda m: (m.candidate != chosen, m.figures is None, cost(m.figures, objective) if m.figures else 0.0),
    )
    print(f"{order.name}, by {objective}, {order.cpus} CPUs, {placement.key.cpu}; {', '.join(placement.key.versions)}")
    _table(_HEAD, [_row(m, placement) for m in lines])
    print(f"{order.name}: {verdict(placement)}")


def verdict(placement: Placement) -> str:
    """The choice in a sentence."""
    if not placement.ranking:
        return "no candidate runs here; the reasons are above"
    choice, objective = placement.ranking[0], placement.key.objective
    if placement.before is None or placement.gain is None:
        return f"{choice}"
    if placement.before == choice:
        return f"stays {choice}: nothing is better by more than {MARGIN:.0%} of its {objective}"
    return f"{choice} instead of {placement.before}: {placement.gain:.2f} times better by {objective}"


def _row(line: Measured, placement: Placement) -> tuple[str, ...]:
    candidate, figures = line.candidate, line.figures
    mark = "*" if placement.ranking and candidate == placement.ranking[0] else ""
    if figures is None:
        return (mark or "-", str(candidate), candidate.file, "", "", "", "", "", line.rejected)
    note = "chosen" if mark else ""
    if candidate == placement.before:
        note = "chosen, as now" if mark else "the choice until now"
    if not line.final:
        note = "tried briefly"
    times = [f"{us / 1000:.3g}" for us in (figures.p50_us, figures.p99_us, figures.cpu_us)]
    return (
        mark,
        str(candidate),
        candidate.file,
        *times,
        f"{figures.per_s:.1f}",
        f"{figures.pss / 1e6:.0f}",
        "; ".join(filter(None, (note, line.rejected))),
    )


def show_explained(order: Order, lines: Sequence[Explained]) -> None:
    print(f"{order.name}: what each runtime does with it")
    _table(_EXPLAIN_HEAD, [_explained_row(line) for line in lines])
    print()


def _explained_row(line: Explained) -> tuple[str, ...]:
    report, candidate = line.report, line.candidate
    if report is None:
        return (str(candidate), candidate.file, "-", "", "", "", line.fault)
    partition = ", ".join(f"{n} on {where}" for where, n in report.partition.items()) or "not told"
    return (
        str(candidate),
        candidate.file,
        report.device,
        report.precision,
        str(report.threads),
        partition,
        report.detail,
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if sys.stdout.isatty() and importlib.util.find_spec("rich"):
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD)
        for i, name in enumerate(head):
            side: Literal["left", "right"] = "right" if head is _HEAD and i in _NUMBERS else "left"
            table.add_column(name, justify=side, no_wrap=i < len(head) - 1)
        for row in rows:
            table.add_row(*map(Text, row), style={"*": "bold green", "-": "dim"}.get(row[0], ""))
        Console().print(table)
        return
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    for row in (head, *rows):
        cells = [
            cell.rjust(width) if head is _HEAD and i in _NUMBERS else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


@contextmanager
def progress(name: str) -> Iterator[Tell]:
    """Shows on a terminal how far it is, once it has taken two seconds; else says nothing."""
    if not sys.stderr.isatty():
        yield lambda done, total, what: None
    elif importlib.util.find_spec("rich"):
        with _rich_progress(name) as tell:
            yield tell
    else:
        with _plain_progress(name) as tell:
            yield tell


@contextmanager
def _rich_progress(name: str) -> Iterator[Tell]:
    from rich.console import Console
    from rich.progress import Progress

    bar = Progress(console=Console(stderr=True), transient=True)
    task = bar.add_task(name, total=None)
    started = time.monotonic()

    def tell(done: int, total: int, what: str) -> None:
        bar.update(task, completed=done, total=total or None, description=f"{name}: {what}")
        if time.monotonic() - started > PROGRESS_AFTER_S:
            bar.start()

    try:
        yield tell
    finally:
        bar.stop()


@contextmanager
def _plain_progress(name: str) -> Iterator[Tell]:
    started = time.monotonic()
    shown = ""

    def tell(done: int, total: int, what: str) -> None:
        nonlocal shown
        if time.monotonic() - started > PROGRESS_AFTER_S:
            line = f"{name}: {done} of {total}, {what}"[:78]
            print("\r" + line.ljust(len(shown)), end="", file=sys.stderr, flush=True)
            shown = line

    try:
        yield tell
    finally:
        if shown:
            print("\r" + " " * len(shown) + "\r", end="", file=sys.stderr, flush=True)
