"""The pictures of a model's report, by matplotlib (extra `train`); no display is needed."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import msgspec

from sdk.optimise.pareto import front

STAGES = ("base", "pruned", "int8")
COLOURS = {"base": "#7d8794", "pruned": "#2f6fb0", "int8": "#d9731a"}
MARKS = {"onnx": "o", "litert": "s", "openvino": "^"}
HATCHES = ("", "//", "xx", "..")  # by the number of threads, fewest first


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """One variant on one runtime and device.

    Attributes:
        stage: `base`, `pruned` or `int8`.
        where: runtime, and the device unless it is the CPU.
        size: bytes of its files; macs: multiplications with additions for one input, None when it cannot be counted.
        metrics: by name; empty when nobody has evaluated it.
        p50_us, pss: by number of threads: median of one input by way of a worker, and the worker's memory in bytes.
        chosen: the number of threads with which `auto` chose it; 0 when it chose another.
    """

    stage: str
    file: str
    backend: str
    where: str
    size: int
    macs: int | None = None
    metrics: dict[str, float] = {}
    p50_us: dict[int, float] = {}
    pss: dict[int, int] = {}
    chosen: int = 0

    @property
    def best_us(self) -> float:
        return min(self.p50_us.values(), default=float("nan"))

    @property
    def name(self) -> str:
        return f"{self.file} · {self.where}"


def best(ways: Sequence[Way], metric: str) -> list[Way]:
    """The Pareto front: none is as fast and better, or faster and as good."""
    return front(ways, lambda way: way.best_us, lambda way: way.metrics.get(metric, float("nan")))


def overview(title: str, ways: Sequence[Way], metric: str = "") -> bytes:
    """PNG: accuracy against latency with its Pareto front, size and work, latency and memory.

    A panel for which there is nothing is left out.

    Args:
        metric: that is drawn against latency, where two ways or more have it.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rated = [way for way in ways if metric in way.metrics and way.p50_us]
    rated = rated if len(rated) > 1 else []  # a single dot shows no trade: the table has it
    timed = [way for way in ways if way.p50_us]
    files = len({way.file for way in ways})
    high = 1.3 + 0.3 * max(files, 1)
    low = 1.5 + 0.22 * sum(len(way.p50_us) for way in timed)
    plan, heights = ([["trade", "size"]], [max(high, 3.8)]) if rated else ([], [])
    if not rated and (files > 1 or not timed):
        plan, heights = [["size", "size"]], [high]
    if timed:
        plan, heights = [*plan, ["time", "memory"]], [*heights, low]
    with pyplot.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure, axes = pyplot.subplot_mosaic(
            plan, figsize=(13, sum(heights) + 0.6), height_ratios=heights, layout="constrained"
        )
        figure.suptitle(title, fontsize=13, fontweight="bold", x=0.01, ha="left")
        if rated:
            _trade(axes["trade"], rated, metric)
        if "size" in axes:
            _sizes(axes["size"], ways)
        if timed:
            _bars(axes["time"], timed, "p50_us", 1e-3, "one input by way of a worker, median [ms]")
            _bars(axes["memory"], timed, "pss", 1e-6, "memory of the worker, PSS [MB]")
        out = io.BytesIO()
        figure.savefig(out, format="png", dpi=110, metadata={"Software": None})
        pyplot.close(figure)
    return out.getvalue()


def _trade(axes: Any, ways: Sequence[Way], metric: str) -> None:
    for way in ways:
        axes.plot(
            way.best_us / 1000, way.metrics[metric], MARKS.get(way.backend, "D"), color=COLOURS.get(way.stage, "k"),
            markersize=9, markeredgecolor="white", linestyle="none", zorder=3,
        )  # fmt: skip
        if way.chosen:
            axes.annotate(
                "auto", (way.best_us / 1000, way.metrics[metric]), xytext=(7, -13), textcoords="offset points",
                color="#b3261e", fontweight="bold",
            )  # fmt: skip
    line = best(ways, metric)
    axes.plot([way.best_us / 1000 for way in line], [way.metrics[metric] for way in line], "-", color="#333", zorder=2)
    for stage in [one for one in STAGES if one in {way.stage for way in ways}]:
        axes.plot([], [], "o", color=COLOURS[stage], label=stage)
    for backend in sorted({way.backend for way in ways}):
        axes.plot([], [], MARKS.get(backend, "D"), color="#333", fillstyle="none", label=backend)
    axes.plot([], [], "-", color="#333", label="Pareto front")
    axes.margins(0.12)
    axes.legend(fontsize=8, ncols=2, frameon=False, loc="best")
    axes.set(xscale="log", xlabel="one input by way of a worker, best number of threads [ms, log scale]", ylabel=metric)
    _plain_ticks(axes, [way.best_us / 1000 for way in ways])
    axes.set_title("accuracy and latency", loc="left")
    axes.grid(alpha=0.25)


def _plain_ticks(axes: Any, values: Sequence[float]) -> None:
    """Numbers instead of powers of ten: the times of one model are often within one decade."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    steps = (1.0, 2.0, 5.0) if max(values) < 30 * min(values) else (1.0,)
    axes.xaxis.set_major_locator(LogLocator(subs=steps))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _sizes(axes: Any, ways: Sequence[Way]) -> None:
    by_file = {way.file: way for way in ways}
    names = list(by_file)
    bars = axes.barh(
        names, [by_file[name].size / 1000 for name in names],
        color=[COLOURS.get(by_file[name].stage, "k") for name in names], height=0.65,
    )  # fmt: skip
    work = [f", {macs / 1e6:.3g} MMAC" if (macs := by_file[name].macs) else "" for name in names]
    axes.bar_label(
        bars,
        [f" {by_file[name].size / 1000:,.0f} kB{part}" for name, part in zip(names, work, strict=True)],
        fontsize=8,
    )
    axes.invert_yaxis()
    axes.margins(x=0.4)
    axes.set(xlabel="size of the files [kB]")
    axes.set_title("size and work", loc="left")


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def _bars(axes: Any, ways: Sequence[Way], what: str, scale: float, label: str) -> None:
    """A bar for each number of threads of each way."""
    found = [(way, threads, value * scale) for way in ways for threads, value in sorted(getattr(way, what).items())]
    order = sorted({threads for _, threads, _ in found})
    bars = axes.barh(
        range(len(found)), [value for *_, value in found], height=0.75, edgecolor="white", linewidth=0,
        color=[COLOURS.get(way.stage, "k") for way, *_ in found],
        hatch=[HATCHES[min(order.index(threads), len(HATCHES) - 1)] for _, threads, _ in found],
    )  # fmt: skip
    axes.bar_label(bars, [f" {value:.3g}" for *_, value in found], fontsize=8)
    names = [f"{'auto: ' if way.chosen == threads else ''}{way.name}, {_threads(threads)}" for way, threads, _ in found]
    axes.set_yticks(range(len(found)), names, fontsize=8)
    for text, (way, threads, _) in zip(axes.get_yticklabels(), found, strict=True):
        if way.chosen == threads:
            text.set(color="#b3261e", fontweight="bold")
    axes.set_title("latency" if what == "p50_us" else "memory", loc="left")
    axes.margins(y=0.02)
    values = [value for *_, value in found]
    if max(values) > 30 * min(values):  # the short bars could not be told from none
        label = label.replace("]", ", log scale]")
        axes.set(xscale="log", xlim=(min(values) / 2, max(values) * 1.6))
        _plain_ticks(axes, [*axes.get_xlim()])
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
