"""Which variants may go into the bundle: what each runtime makes of each, against what may be lost."""

from __future__ import annotations

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
