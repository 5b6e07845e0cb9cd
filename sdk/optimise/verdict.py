"""Which variants may go into the bundle: what each runtime makes of each, against what may be lost."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence

import msgspec

from gateway.errors import ModelError
from gateway.infer.backend import Runner

Metric = Callable[[Runner], Mapping[str, float]]  # task metrics by name, 0 .. 1, more is better


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One variant on one runtime.

    Attributes:
        stage: `base`, `pruned` or `int8`.
        worst: largest difference to the pruned fp32 outputs, relative; None when it did not run.
        metrics: by name, on the validation split.
    """

    stage: str
    file: str
    precision: str
    backend: str
    size: int
    worst: float | None = None
    metrics: dict[str, float] = {}
    latency_us: float = 0.0
    fault: str = ""


class Lost(ModelError):
    """A variant loses more of the metric than it may, and it was required."""


def losses(row: Row, base: Mapping[str, float]) -> dict[str, float]:
    """How much less than the base it reaches, of each metric; negative is better than the base."""
    return {name: value - row.metrics.get(name, 0.0) for name, value in base.items()}


def refused(rows: Sequence[Row], base: Mapping[str, float], allowed: Mapping[str, float]) -> dict[str, str]:
    """Files that may not be shipped, with the reason: on some runtime they lose too much, or fail.

    A file is refused as a whole: the gateway that gets it may have just that runtime. One that no runtime here could
    run is refused too: nobody has seen it work. A runtime that is not installed says nothing.

    Args:
        base: the metrics that count as whole.
        allowed: by metric, how much may be lost.
    """
    found: dict[str, str] = {}
    ran = {row.file for row in rows if row.metrics}
    for row in rows:
        if row.file not in ran:
            found.setdefault(row.file, f"it ran on no runtime here: {row.fault}")
            continue
        if not row.metrics:
            continue
        for name, lost in losses(row, base).items():
            # not (lost <= allowed), so that NaN is refused
            if not lost <= allowed.get(name, 0.0) + 1e-9:
                found.setdefault(
                    row.file,
                    f"{row.backend}: loses {lost * 100:.2f} points of {name}, {allowed.get(name, 0) * 100:g} are allowed",
                )
    return found


def table(rows: Sequence[Row], base: Mapping[str, float], why_not: Mapping[str, str]) -> list[str]:
    """Lines for a terminal or a card (Markdown)."""
    names = list(base)
    head = ["variant", "stage", "runtime", "kB", *names, *(f"lost {name}" for name in names), "off by", "us", "verdict"]
    lines = [
        "| " + " | ".join(head) + " |",
        "| " + " | ".join(["---"] * 3 + ["---:"] * (len(head) - 4) + ["---"]) + " |",
    ]
    for row in rows:
        lost = losses(row, base)
        values = [f"{row.metrics[name]:.4f}" if name in row.metrics else "-" for name in names]
        gone = [f"{lost[name] * 100:+.2f}" if row.metrics else "-" for name in names]
        off = "-" if row.worst is None else f"{row.worst:.2g}"
        took = f"{row.latency_us:.0f}" if row.latency_us else "-"
        verdict = f"REFUSED: {why_not[row.file]}" if row.file in why_not else row.fault or "ok"
        cells = [row.file, row.stage, row.backend, f"{row.size / 1000:.1f}", *values, *gone, off, took, verdict]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


WIDTH = 100  # columns of a terminal
LONGEST = 20  # of a file's name in it


def terminal(rows: Sequence[Row], base: Mapping[str, float], why_not: Mapping[str, str]) -> list[str]:
    """The table for people: columns under each other within WIDTH, what was refused and what did not run below it."""
    names = list(base)
    head = ["variant", "stage", "runtime", "kB", *(part for name in names for part in (name, "lost")), "us", "verdict"]
    cells = [head]
    for row in rows:
        lost = losses(row, base)
        each = [
            part
            for name in names
            for part in ((f"{row.metrics[name]:.4f}", f"{lost[name] * 100:+.2f}") if row.metrics else ("-", "-"))
        ]
        said = "REFUSED" if row.file in why_not else "ok" if row.metrics else "not run"
        took = f"{row.latency_us:.0f}" if row.latency_us else "-"
        cells.append([_short(row.file), row.stage, row.backend, f"{row.size / 1000:.1f}", *each, took, said])
    wide = [max(len(line[at]) for line in cells) for at in range(len(head))]
    text = {0, 1, 2, len(head) - 1}
    lines = [
        "  ".join(cell.ljust(wide[at]) if at in text else cell.rjust(wide[at]) for at, cell in enumerate(line)).rstrip()
        for line in cells
    ]
    lines.insert(1, "  ".join("-" * each for each in wide))
    notes = [f"REFUSED {file}: {why}" for file, why in why_not.items()]
    notes += [f"not run: {row.file} on {row.backend}: {row.fault}" for row in rows if not row.metrics]
    if names:
        lines.append("lost: points below the base; us: one input, one thread")
    return lines + [
        part for note in notes for part in textwrap.wrap(note, WIDTH, subsequent_indent="    ", break_on_hyphens=False)
    ]


def _short(file: str) -> str:
    return file if len(file) <= LONGEST else f"{file[: LONGEST // 2 - 1]}~{file[-(LONGEST // 2) :]}"
