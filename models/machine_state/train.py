"""Train, prune, quantise, compare and pack: `./inv models.build machine_state` (makes the environment of `train`).

The same seed, data and versions give the same bytes on one machine. Each step's result is kept under build/optimise;
a second build takes what still fits. The test split is not read here.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import torch

from gateway.infer.backend import Runner
from gateway.infer.steps import Array
from models.machine_state import data, net, package, strange
from sdk.optimise import Budget, Outcome, Quantised, Steps, Task, Training, cache, from_torch
from sdk.optimise import weights as plain
from sdk.optimise.progress import shown
from sdk.optimise.weights import Weights
from sdk.recordings import load

EPOCHS = net.Epochs(states=4, strange=4, rate=2e-3)
TUNE = net.Epochs(states=2, strange=4, rate=2e-3)
BUDGET = Budget(1_300_000, "macs")  # of 5.1 million
CALIBRATION, CHECKED, MEASURED = 300, 100, 1000  # windows
ALLOWED = {"f1": 0.01, "auroc": 0.02}
# the two heads stay float32: they are a hundredth of the work, and each answer is one number of them
OPS = Quantised(onnx=("Conv",), openvino=("Convolution",), tflite=("CONV_2D",))

# they are made and judged, but the bundle does without: see model.toml
OPTIONAL = ("model-int8.xml",)


def some(windows: data.Windows, count: int, seed: int) -> list[tuple[Array, ...]]:
    """So many of them, as the model's inputs."""
    chosen = np.random.default_rng(seed).permutation(len(windows))[:count]
    return [(data.relative(windows[i : i + 1]),) for i in chosen]


def mixed(windows: data.Labelled, count: int, seed: int) -> list[tuple[Array, ...]]:
    """Windows of four quarters: off, idle, running, and one of the highest peaks.

    NNCF averages the ranges that the calls of the calibration show; so each call shows all of it.
    """
    random = np.random.default_rng(seed)
    x = data.relative(windows.x)
    clear = [np.flatnonzero((windows.y == state) & (windows.share > 0.9)) for state in range(len(data.LABELS))]
    peaks = np.argsort(x[:, 0].max(axis=1), kind="stable")[-200:]
    quarter = data.LENGTH // 4
    made: list[tuple[Array, ...]] = []
    for _ in range(count):
        pieces = [x[random.choice(rows), :, :quarter] for rows in clear]
        high = x[random.choice(peaks)]
        start = min(max(int(high[0].argmax()) - quarter // 2, 0), data.LENGTH - quarter)
        made.append((np.concatenate([*pieces, high[:, start : start + quarter]], axis=1)[None],))
    return made


def metric(validation: data.Labelled) -> dict[str, list[Array]]:
    """Whole windows, and damaged ones, of the validation split."""
    chosen = np.random.default_rng(5).permutation(len(validation))[:MEASURED]
    whole = data.relative(validation.x[chosen])
    damaged = strange.damage(whole, np.random.default_rng(77))
    return {"whole": list(whole[:, None]), "damaged": list(damaged[:, None]), "truth": [validation.y[chosen]]}


def measured(run: Runner, windows: dict[str, list[Array]]) -> dict[str, float]:
    """Macro F1, and the AUROC of damaged windows against whole ones."""
    said, odd = answered(run, windows["whole"])
    _, odder = answered(run, windows["damaged"])
    return {"f1": data.macro(windows["truth"][0], said), "auroc": data.auroc(odd, odder)}


def answered(run: Runner, windows: Sequence[Array]) -> tuple[data.Labels, Array]:
    """The state's number and the strangeness of each window [1, 2, LENGTH]."""
    said, odd = np.empty(len(windows), np.int64), np.empty(len(windows))
    for i, window in enumerate(windows):
        logits, strangeness = run((window,))
        said[i], odd[i] = logits.argmax(), strangeness.item()
    return said, odd


def optimised(seed: int, steps: Steps) -> Outcome:
    """Everything up to the bundle."""
    recordings = load(say=print)
    seen = net.splits(recordings)
    depends = cache.digest(
        cache.sources(net, data, strange), *(part for one in recordings for part in (one.id, one.current, one.power))
    )
    net.repeatable(seed)

    def train() -> Weights:
        module = net.StateNet()
        net.fit(module, seen, seed, EPOCHS)
        return plain.of(module)

    settings = {"epochs": EPOCHS}
    trained = steps.run("train", train, Weights, inputs=[depends], settings=settings, packages=("torch", "numpy"))
    teacher = plain.put(net.StateNet(), trained).eval()
    windows = metric(seen.validation)
    task = Task(
        name=package.NAME,
        inputs=("window",),
        outputs=("logits", "strangeness"),
        calibration=mixed(data.windows(seen.train, seed=seed), CALIBRATION, seed),
        check=some(seen.validation.x, CHECKED, seed),
        metric=lambda run: measured(run, windows),
        allowed=ALLOWED,
        ops=OPS,
        optional=OPTIONAL,
    )
    training = Training(
        example=torch.zeros(1, 2, data.LENGTH),
        budget=BUDGET,
        keep=("state", "strange"),
        fine_tune=lambda module: net.fit(module, seen, seed + 1, TUNE, teacher=teacher),
        depends=cache.digest(depends, str(TUNE)),
    )
    outcome = from_torch(plain.put(net.StateNet(), trained), task, training, steps)
    print("\n".join(outcome.table()))
    outcome.insist(task, "int8")
    return outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--fresh", action="store_true", help="use nothing of an earlier build")
    package.add_arguments(parser)
    arguments = parser.parse_args()
    with shown(f"machine_state, seed {arguments.seed}") as tell:
        steps = Steps(seed=arguments.seed, tell=tell, fresh=arguments.fresh)
        outcome = optimised(arguments.seed, steps)
    package.build_from(arguments, package.keep(outcome))


if __name__ == "__main__":
    main()
