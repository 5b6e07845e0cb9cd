"""The figures of the card, from the test split and the packed bundle: `python -m models.machine_state.evaluate`.

Nothing else reads the test split. Every window goes the whole way of the device: packed records, the bundle's steps,
its runtime.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from gateway.infer.manifest import Normalise
from models import kit
from models.machine_state import data, package
from sdk.recordings import Floats, load

SEED = 2
PLAYS = 2
CLEAR = 0.75  # a window of which one state fills so much is no change of state
COMMAND = "./inv models.evaluate machine_state"


def answers(model: kit.Loaded, windows: data.Windows) -> tuple[data.Labels, Floats]:
    """The label of each window [n, 2, LENGTH], and how long it took in microseconds."""
    said = np.empty(len(windows), dtype=np.int64)
    took = np.empty(len(windows))
    for i, window in enumerate(windows):
        records = np.ascontiguousarray(window.T, "<f4").tobytes()
        began = time.perf_counter_ns()
        said[i] = data.LABELS.index(model.answer(records, package.MEDIA).label)
        took[i] = (time.perf_counter_ns() - began) / 1000
    return said, took


def thresholds(labelled: data.Labelled) -> tuple[float, float]:
    """The two thresholds on a window's mean current that do best: what the model must beat."""
    mean = labelled.x[:, 0].mean(axis=1)
    grid = [(low, high) for low in np.geomspace(0.03, 0.5, 20) for high in np.geomspace(1.0, 6.0, 20)]
    return max(grid, key=lambda pair: data.f1(data.confusion(labelled.y, by_threshold(mean, pair))).mean())


def by_threshold(mean: Floats, pair: tuple[float, float]) -> data.Labels:
    return np.asarray((mean >= pair[0]).astype(np.int64) + (mean >= pair[1]).astype(np.int64))


def measure(model: kit.Loaded, bundle: Path) -> list[str]:
    """The lines of the card's figures."""
    recordings = load(say=print)
    test = data.windows(data.select(recordings, "test"), seed=SEED, plays=PLAYS)
    train = data.windows(data.select(recordings, "train"), seed=SEED)
    said, took = answers(model, test.x)
    simple = by_threshold(test.x[:, 0].mean(axis=1), thresholds(train))
    kinds = {recording.kind for recording in recordings}
    unseen = np.isin(test.kind, [test.kinds.index(kind) for kind in data.held_out(kinds)])
    clear = test.share >= CLEAR
    subsets = [
        ("all test windows", np.ones(len(test), dtype=bool)),
        ("of kinds never trained on", unseen),
        ("of other recordings of known kinds", ~unseen),
        ("without a change of state", clear),
        ("with a change of state", ~clear),
    ]
    rows = []
    for name, chosen in subsets:
        score = data.f1(data.confusion(test.y[chosen], said[chosen]))
        rule = data.f1(data.confusion(test.y[chosen], simple[chosen]))
        each = [f"{value:.3f}" for value in score]
        rows.append([name, str(int(chosen.sum())), f"{score.mean():.3f}", *each, f"{rule.mean():.3f}"])
    head = ["windows", "n", "macro F1", *(f"F1 {label}" for label in data.LABELS), "macro F1 of two thresholds"]
    confused = data.confusion(test.y, said)
    matrix = [[label, *map(str, confused[i])] for i, label in enumerate(data.LABELS)]
    return [
        f"Bundle digest: `{model.digest}` ({bundle.stat().st_size / 1000:.1f} kB). Command: `{COMMAND}`, backend "
        f"{model.runner.description}.",
        f"Kinds never trained on: {', '.join(sorted(data.held_out(kinds)))}.",
        "",
        *kit.table(head, rows),
        "",
        *kit.table(["true \\ said", *data.LABELS], matrix),
        "",
        f"One window, steps and post steps included, in this process: median {np.median(took):.0f} us, "
        f"p99 {np.percentile(took, 99):.0f} us (x86_64, shared machine: an order of magnitude, not a benchmark).",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Measure machine_state on its test split and write the card's figures."
    )
    parser.add_argument("--bundle", type=Path, default=package.BUNDLE)
    parser.add_argument("--backend", default="", help="onnx or litert (default: the bundle's first that runs here)")
    parser.add_argument("--dry", action="store_true", help="print the figures, leave the card as it is")
    arguments = parser.parse_args()
    model = kit.load(arguments.bundle, [kit.PROJECT_KEY, *kit.own_public_key()], backend=arguments.backend)
    normalise = model.manifest.pre[0]
    if not isinstance(normalise, Normalise) or normalise.std != (data.RATED_A, data.RATED_W):
        raise SystemExit(f"octogate: {arguments.bundle} is for another rating than the evaluation's {data.RATED_A} A")
    lines = measure(model, arguments.bundle)
    print("\n".join(lines))
    if not arguments.dry:
        kit.write_figures(package.FOLDER / "README.md", lines)


if __name__ == "__main__":
    main()
