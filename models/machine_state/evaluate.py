"""The figures of the card, from the test split and the packed bundle: `./inv models.evaluate machine_state`.

Nothing else reads the test split or the injected faults (tests/unit/test_model_splits.py). Every window goes the whole
way of the device: packed records, the bundle's steps, its runtimes. What the last build left in build/models (the base
before pruning, the pruned fp32 variants) is measured beside the bundle's own variants, to say what pruning and int8 cost.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gateway.errors import ModelError
from gateway.infer.manifest import Normalise
from models import kit
from models.machine_state import data, faults, package
from sdk.optimise import Built, cost, latency_us, plots, runner
from sdk.optimise.figures import Figure, Figures
from sdk.optimise.parity import ways
from sdk.recordings import Floats, load
from sdk.registry import write_atomic

SEED = 2
PLAYS = 2
PLAID_PLAYS = 8  # idle is rare in PLAID
CURVE_EVERY = 4  # of the running windows, for each point of a curve
CLEAR = 0.75  # a window of which one state fills so much is no change of state
WHOLE = 0.99  # a fault is put into windows of which running fills so much
COMMAND = "./inv models.evaluate machine_state"
IN, OUT = ("window",), ("logits", "strangeness")


@dataclass(frozen=True)
class Test:
    """What is measured: windows with their labels, and faults put into those that run all through."""

    windows: data.Labelled
    plaid: data.Labelled  # of kinds never trained on
    running: data.Windows
    faulty: dict[str, data.Windows]


@dataclass(frozen=True)
class Answers:
    """The state of each window by its best score, and its anomaly value."""

    said: data.Labels
    odd: Floats


def prepared() -> tuple[Test, data.Labelled]:
    """The test, and the train windows that the rule of two thresholds is fitted on."""
    recordings = load(say=print)
    tested = data.select(recordings, "test")
    windows = data.windows(tested, seed=SEED, plays=PLAYS)
    plaid = [one for one in tested if one.archive == "plaid" and one.kind in data.TEST_KINDS]
    running = running_all_through(windows)
    faulty = {name: kind.put(running, np.random.default_rng(SEED)) for name, kind in faults.KINDS.items()}
    test = Test(windows, data.windows(plaid, seed=SEED, plays=PLAID_PLAYS), running, faulty)
    return test, data.windows(data.select(recordings, "train"), seed=SEED)


def running_all_through(windows: data.Labelled) -> data.Windows:
    return np.asarray(windows.x[(windows.y == data.RUNNING) & (windows.share >= WHOLE)], np.float32)


def answers(model: kit.Loaded, windows: data.Windows) -> Answers:
    """What the gateway would say of each window [n, 2, LENGTH]."""
    said, odd = np.empty(len(windows), dtype=np.int64), np.empty(len(windows))
    for i, window in enumerate(windows):
        result = model.answer(np.ascontiguousarray(window.T, "<f4").tobytes(), package.MEDIA)
        said[i] = data.LABELS.index(max(result.scores, key=lambda label: result.scores[label]))
        odd[i] = result.values["anomaly"]
    return Answers(said, odd)


def measure(model: kit.Loaded, test: Test) -> dict[str, float]:
    """All figures of one variant on one runtime."""
    whole, held = answers(model, test.windows.x), answers(model, test.plaid.x)
    running = answers(model, test.running).odd
    found = {
        "f1": data.macro(test.windows.y, whole.said),
        "f1_held_out": data.macro(test.plaid.y, held.said),
        "false_alarms": float((whole.odd >= 1).mean()),
    }
    for name, windows in test.faulty.items():
        odd = answers(model, windows).odd
        found[f"auroc_{name}"] = data.auroc(whole.odd, odd)
        found[f"auroc_{name}_running"] = data.auroc(running, odd)
        found[f"found_{name}"] = float((odd >= 1).mean())
    return found


def variants(model: kit.Loaded, bundle: Path) -> Iterator[tuple[str, Built]]:
    """The bundle's own, before them those of the last build that are not in it."""
    packed = package.packed_files(bundle)
    built = kit.BUILD / package.NAME
    for stage, prefix in (("base", "base-"), ("pruned", "")):
        for suffix in ("onnx", "tflite", "xml"):
            name = f"{prefix}model.{suffix}"
            if name not in packed and (built / name).exists():
                yield stage, _of(name, (built / name).read_bytes(), built)
    for variant in model.manifest.variants:
        stage = "int8" if variant.precision == "int8" else "pruned"
        yield stage, Built(variant, {name: packed[name] for name in (variant.file, variant.weights) if name})


def _of(name: str, content: bytes, folder: Path) -> Built:
    if name.endswith(".onnx"):
        return Built.onnx(content, "fp32", file=name, inputs=IN, outputs=OUT)
    if name.endswith(".tflite"):
        return Built.tflite(content, "fp32", file=name)
    return Built.openvino(content, (folder / name.replace(".xml", ".bin")).read_bytes(), "fp32", file=name)


def everything(model: kit.Loaded, test: Test, bundle: Path, digest: str) -> Figures:
    """Every variant on every runtime that is installed here."""
    found: list[Figure] = []
    runners = []
    work: dict[str, int] = {}
    for stage, built in sorted(variants(model, bundle), key=lambda each: ("base", "pruned", "int8").index(each[0])):
        for name in ways(built):
            try:
                run = runner(built, name)
            except ModelError as error:
                print(f"{built} on {name}: {error}")
                continue
            if built.variant.format == "onnx":
                work[stage] = cost.macs(built)  # the other formats compute the same
            metrics = measure(kit.Loaded(model.manifest, built.variant, model.recipe, run), test)
            print(f"{stage:7} {built} on {name}: " + ", ".join(f"{key} {value:.4f}" for key, value in metrics.items()))
            runners.append(run)
            found.append(Figure(
                stage=stage, file=built.variant.file, precision=built.variant.precision, backend=name,
                size=built.size, macs=work.get(stage, 0), metrics=metrics,
            ))  # fmt: skip
    times = latency_us(runners, [(data.relative(window[None]),) for window in test.running[:50]])
    return Figures(
        model=package.NAME, bundle=digest, bundle_bytes=bundle.stat().st_size, headline=("f1_held_out", "f1"),
        figures=tuple(figure.timed(us) for figure, us in zip(found, times, strict=True)),
    )  # fmt: skip


# --- what the card says -------------------------------------------------------------------------------------------


def thresholds(labelled: data.Labelled) -> tuple[float, float]:
    """The two thresholds on a window's mean current that do best: what the model must beat."""
    mean = labelled.x[:, 0].mean(axis=1)
    grid = [(low, high) for low in np.geomspace(0.03, 0.5, 20) for high in np.geomspace(1.0, 6.0, 20)]
    return max(grid, key=lambda pair: data.macro(labelled.y, by_threshold(mean, pair)))


def by_threshold(mean: Floats, pair: tuple[float, float]) -> data.Labels:
    return np.asarray((mean >= pair[0]).astype(np.int64) + (mean >= pair[1]).astype(np.int64))


def states(model: kit.Loaded, test: Test, train: data.Labelled) -> list[str]:
    """The tables of the states, of the bundle's first variant that runs here."""
    windows = test.windows
    said = answers(model, windows.x).said
    pair = thresholds(train)
    unseen = windows.of(data.TEST_KINDS)
    clear = windows.share >= CLEAR
    subsets = [
        ("all test windows", np.ones(len(windows), dtype=bool)),
        ("of kinds never trained on", unseen),
        ("of other recordings of known kinds", ~unseen),
        ("without a change of state", clear),
        ("with a change of state", ~clear),
    ]
    rows = [
        _row(name, windows.y[chosen], said[chosen], by_threshold(windows.x[chosen, 0].mean(axis=1), pair))
        for name, chosen in subsets
    ]
    plaid = test.plaid
    mean = plaid.x[:, 0].mean(axis=1)
    rows.append(_row("PLAID only, of kinds never trained on", plaid.y, answers(model, plaid.x).said,
                     by_threshold(mean, pair)))  # fmt: skip
    head = ["windows", "n", "macro F1", *(f"F1 {label}" for label in data.LABELS), "macro F1 of two thresholds"]
    matrix = [[label, *map(str, data.confusion(windows.y, said)[i])] for i, label in enumerate(data.LABELS)]
    return [*kit.table(head, rows), "", *kit.table(["true \\ said", *data.LABELS], matrix)]


def _row(name: str, truth: data.Labels, said: data.Labels, rule: data.Labels) -> list[str]:
    each = [f"{value:.3f}" for value in data.f1(data.confusion(truth, said))]
    return [name, str(len(truth)), f"{data.macro(truth, said):.3f}", *each, f"{data.macro(truth, rule):.3f}"]


def compared(figures: Iterable[Figure]) -> list[str]:
    """Every variant on every runtime; how much faster and smaller than the base on the same runtime."""
    rows: list[list[str]] = []
    base: dict[tuple[str, str], Figure] = {}
    head = ["variant", "stage", "runtime", "kB", "MMAC", "us", "faster", "smaller", "F1 held out", "F1", "AUROC arcing",
            "AUROC pulsation"]  # fmt: skip
    for one in figures:
        base.setdefault((one.backend, one.file.rpartition(".")[2]), one)
        first = base[one.backend, one.file.rpartition(".")[2]]
        rows.append([
            one.file, one.stage, one.backend, f"{one.size / 1000:.1f}", f"{one.macs / 1e6:.2f}", f"{one.latency_us:.0f}",
            f"{first.latency_us / one.latency_us:.1f}x", f"{first.size / one.size:.1f}x",
            *(f"{one.metrics[key]:.4f}" for key in ("f1_held_out", "f1", "auroc_arcing", "auroc_pulsation")),
        ])  # fmt: skip
    return kit.table(head, rows)


def anomalies(first: Figure, test: Test) -> list[str]:
    """What the one-class head makes of the injected faults."""
    rows = []
    for name, kind in faults.KINDS.items():
        keys = (f"auroc_{name}", f"auroc_{name}_running", f"found_{name}")
        severity = f"{kind.bar[0]:g} to {kind.bar[1]:g} {kind.severity}"
        rows.append(
            [f"{name}: {severity}", str(len(test.faulty[name])), *(f"{first.metrics[key]:.3f}" for key in keys)]
        )
    head = ["injected fault (simulated)", "n", "AUROC, all normal windows", "AUROC, normal running windows", "found"]
    return [
        *kit.table(head, rows),
        "",
        f"Of the {len(test.windows)} normal test windows {first.metrics['false_alarms']:.2%} are called fault-like.",
    ]


Curve = tuple[str, str, tuple[float, ...], list[float]]  # fault, split, severities, AUROC


def curves(model: kit.Loaded, test: Test) -> Iterator[Curve]:
    """AUROC against severity, all normal windows the other side, on both splits."""
    known = data.windows(data.select(load(), "validation"), seed=0)
    for split, windows in (("validation", known), ("test", test.windows)):
        normal = answers(model, windows.x).odd
        running = running_all_through(windows)[::CURVE_EVERY]
        for name, kind in faults.KINDS.items():
            odd = [
                answers(model, kind.inject(running, np.random.default_rng(SEED), severity)).odd
                for severity in kind.curve
            ]
            yield name, split, kind.curve, [data.auroc(normal, each) for each in odd]


def severities(found: Iterable[Curve]) -> list[str]:
    """A table of each fault."""
    lines: list[str] = []
    rows = list(found)
    for name, kind in faults.KINDS.items():
        head = [f"AUROC by {kind.severity}", *(f"{severity:g}" for severity in kind.curve)]
        lines += [
            *kit.table(head, [[f"{name}, {s}", *(f"{v:.3f}" for v in each)] for n, s, _, each in rows if n == name]), "",
        ]  # fmt: skip
    return lines


def card(model: kit.Loaded, test: Test, train: data.Labelled, figures: Figures, found: Sequence[Curve]) -> list[str]:
    """The lines between the card's marks."""
    shipped = {variant.file for variant in model.manifest.variants}
    wanted = (model.variant.file, model.runner.description.split()[0])
    first = next(one for one in figures.figures if (one.file, one.backend) == wanted)
    return [
        f"Bundle digest: `{figures.bundle}` ({figures.bundle_bytes / 1000:.1f} kB). Command: `{COMMAND}`, backend "
        f"{model.runner.description} unless a row says another.",
        f"Kinds never trained on: {', '.join(sorted(data.TEST_KINDS))}.",
        "",
        *states(model, test, train),
        "",
        *anomalies(first, test),
        "",
        *severities(found),
        "![AUROC against severity](severity.png)",
        "",
        *compared(figures.figures),
        "",
        f"In the bundle: {', '.join(sorted(shipped))}. Times: one window through the runtime alone, one thread, best "
        "median of nine turns (x86_64, a shared machine: read ratios). Faster and smaller: than the base in that format "
        "on that runtime.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Measure machine_state on its test split and write the card's figures."
    )
    parser.add_argument("--bundle", type=Path, default=package.BUNDLE)
    parser.add_argument("--backend", default="", help="onnx, litert or openvino (default: the first that runs here)")
    parser.add_argument("--dry", action="store_true", help="print the figures, leave card and figures.json as they are")
    parser.add_argument("--trust", type=Path, action="append", default=[], help="another public key to believe")
    arguments = parser.parse_args()
    keys = [kit.PROJECT_KEY, *kit.own_public_key(), *arguments.trust]
    model = kit.load(arguments.bundle, keys, backend=arguments.backend)
    normalise = model.manifest.pre[0]
    if not isinstance(normalise, Normalise) or normalise.std != (data.RATED_A, data.RATED_W):
        raise SystemExit(f"octogate: {arguments.bundle} is for another rating than the evaluation's {data.RATED_A} A")
    test, train = prepared()
    figures = everything(model, test, arguments.bundle, model.digest)
    found = list(curves(model, test))
    lines = card(model, test, train, figures, found)
    print("\n".join(lines))
    if not arguments.dry:
        write_atomic(package.FOLDER / "severity.png", plots.curves(found))
        kit.write_figures(package.FOLDER / "README.md", lines)
        figures.write(kit.BUILD / package.NAME)


if __name__ == "__main__":
    main()
