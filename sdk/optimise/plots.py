"""The pictures of a model's report, by matplotlib (extra `train`); no display is needed."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

from sdk.optimise.figures import Figure
from sdk.optimise.pareto import front

STAGES = ("base", "pruned", "int8")
COLOURS = {"base": "#8c8c8c", "pruned": "#2f6fb0", "int8": "#d9731a"}
MARKS = {"onnx": "o", "litert": "s", "openvino": "^"}


class Measured(NamedTuple):
    """One candidate as a gateway has it: by way of a worker process."""

    stage: str
    candidate: str  # "onnx int8 x1"
    file: str
    p50_us: float
    pss: int
    chosen: bool


def overview(title: str, figures: Sequence[Figure], measured: Sequence[Measured], metric: str) -> bytes:
    """PNG: accuracy against latency with its Pareto front, sizes and work, latency and memory of the candidates."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = 2 if measured else 1
    high = max(4.0, 0.24 * len(measured))
    figure, axes = pyplot.subplots(
        rows, 2, figsize=(13, 4.6 + (high if measured else 0)), squeeze=False, layout="constrained",
        height_ratios=[4.6, high] if measured else [4.6],
    )  # fmt: skip
    figure.suptitle(title)
    _trade(axes[0][0], figures, metric)
    _sizes(axes[0][1], figures)
    if measured:
        _bars(axes[1][0], measured, [one.p50_us / 1000 for one in measured], "p50 by way of a worker [ms], log scale")
        axes[1][0].set_xscale("log")
        _bars(axes[1][1], measured, [one.pss / 1e6 for one in measured], "memory of a worker, PSS [MB]")
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110, metadata={"Software": None})
    pyplot.close(figure)
    return out.getvalue()


def _trade(axes: Any, figures: Sequence[Figure], metric: str) -> None:
    known = [one for one in figures if metric in one.metrics and one.latency_us > 0]
    for one in known:
        axes.plot(
            one.latency_us, one.metrics[metric], MARKS.get(one.backend, "x"), color=COLOURS.get(one.stage, "k"),
            markersize=9, alpha=0.85, linestyle="none",
        )  # fmt: skip
    best = front(known, lambda one: one.latency_us, lambda one: one.metrics[metric])
    axes.plot([one.latency_us for one in best], [one.metrics[metric] for one in best], "-", color="#444", zorder=0)
    for stage in STAGES:
        axes.plot([], [], "o", color=COLOURS[stage], label=stage)
    for name, mark in MARKS.items():
        axes.plot([], [], mark, color="#444", fillstyle="none", label=name)
    axes.plot([], [], "-", color="#444", label="Pareto front")
    axes.legend(fontsize=8, ncols=2)
    axes.set(xscale="log", xlabel="one input through the runtime, 1 thread [us], log scale", ylabel=metric)
    axes.set_title("accuracy and latency")
    axes.grid(alpha=0.3)


def _sizes(axes: Any, figures: Sequence[Figure]) -> None:
    by_file = {one.file: one for one in figures}
    names = list(by_file)
    bars = axes.barh(
        names, [by_file[name].size / 1000 for name in names], color=[COLOURS.get(by_file[n].stage, "k") for n in names]
    )
    axes.bar_label(
        bars, [f" {by_file[n].size / 1000:.0f} kB, {by_file[n].macs / 1e6:.2f} MMAC" for n in names], fontsize=8
    )
    axes.invert_yaxis()
    axes.margins(x=0.35)
    axes.set(xlabel="size [kB]")
    axes.set_title("size and work")


def _bars(axes: Any, measured: Sequence[Measured], values: Sequence[float], label: str) -> None:
    names = [f"{one.file}: {one.candidate}{'  <- auto' if one.chosen else ''}" for one in measured]
    bars = axes.barh(range(len(names)), values, color=[COLOURS.get(one.stage, "k") for one in measured])
    axes.bar_label(bars, [f" {value:.3g}" for value in values], fontsize=7)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set(xlabel=label)


def curves(found: Sequence[tuple[str, str, Sequence[float], Sequence[float]]]) -> bytes:
    """PNG: AUROC against severity, a panel for each kind of fault, a line for each split: (kind, split, x, y)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    kinds = list(dict.fromkeys(name for name, *_ in found))
    figure, axes = pyplot.subplots(1, len(kinds), figsize=(4.5 * len(kinds), 3.2), squeeze=False, layout="constrained")
    for place, kind in zip(axes[0], kinds, strict=True):
        for name, split, x, y in found:
            if name == kind:
                place.plot(x, y, "o-", label=split)
        place.axhline(0.95, color="#888", linewidth=0.8, linestyle="--")
        place.set(title=kind, xlabel="severity", ylabel="AUROC", ylim=(0.3, 1.02))
        place.legend(fontsize=8)
        place.grid(alpha=0.3)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=90, metadata={"Software": None})
    pyplot.close(figure)
    return out.getvalue()
