"""The state tower of machine_state once more, in Keras: proof that a TensorFlow model comes all the way, too.

    ./inv models.twin    trains it in .venv-tensorflow, then quantises and compares it in .venv-train

It is not shipped. Reads the train and validation splits only.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import numpy as np

from gateway.errors import OctogateError
from gateway.infer.backend import Runner
from models import kit
from models.machine_state import data, package
from sdk.optimise import Steps, cache
from sdk.optimise.progress import shown
from sdk.optimise.quiet import quiet
from sdk.optimise.variants import Built
from sdk.recordings import Recording, load
from sdk.registry import write_atomic

FOLDER = kit.BUILD / "machine_state_keras"
WIDTHS = (16, 24, 32)
EPOCHS, PLAYS, SEED = 12, 4, 1
INPUTS, OUTPUTS = ("window",), ("logits",)


def build_network() -> Any:  # keras is an extra: no types without it
    """[batch, 2, 256] relative to the rating -> logits [batch, 3].

    The signal spans three decades: it enters as its logarithm, brought to about -1 .. 1 in float32 in every variant, so
    that eight bits serve what follows. With the signal itself beside it, int8 lost ten points of F1.
    """
    import keras
    from keras import layers, ops

    window = keras.Input((2, data.LENGTH))
    fine = layers.Lambda(lambda x: (ops.log(ops.maximum(x, 0.0) * 100.0 + 0.1) - 2.0) * 0.25)(window)
    x = layers.Permute((2, 1))(fine)
    for width, kernel in zip(WIDTHS, (7, 5, 5), strict=True):
        x = layers.Conv1D(width, kernel, strides=2, padding="same", activation="relu")(x)
    pooled = layers.Concatenate()([layers.GlobalAveragePooling1D()(x), layers.GlobalMaxPooling1D()(x)])
    return keras.Model(window, layers.Dense(len(data.LABELS))(pooled))


def train(recordings: list[Recording], epochs: int = EPOCHS, plays: int = PLAYS, seed: int = SEED) -> list[Built]:
    """Train and convert; in TensorFlow's environment."""
    with quiet("tensorflow", "absl"):  # before TensorFlow is loaded: its C++ part reads this once
        import keras

    from sdk.optimise.keras import from_keras

    keras.utils.set_random_seed(seed)
    labelled = data.windows(data.select(recordings, "train"), seed=seed, plays=plays)
    network = build_network()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    steps = epochs * -(-len(labelled) // 128)
    rate = keras.optimizers.schedules.CosineDecay(3e-3, steps)
    network.compile(optimizer=keras.optimizers.Adam(rate), loss=loss)
    network.fit(data.relative(labelled.x), labelled.y, batch_size=128, epochs=epochs, verbose=2)
    return from_keras(network, name="machine_state_keras", inputs=INPUTS, outputs=OUTPUTS)


def kept(seed: int, epochs: int) -> dict[str, bytes]:
    """What `train` gives, by file; from an earlier run where nothing has changed since."""
    from sdk.optimise import keras as convert

    recordings = load(say=print)
    depends = [
        cache.sources(sys.modules[__name__], data, convert),
        cache.digest(*(part for one in recordings for part in (one.id, one.current, one.power))),
    ]
    with shown("machine_state in Keras") as tell:
        return Steps(seed=seed, tell=tell).run(
            "train keras",
            lambda: {built.variant.file: built.data for built in train(recordings, epochs, seed=seed)},
            dict[str, bytes],
            inputs=depends,
            settings={"epochs": epochs, "plays": PLAYS},
            packages=("tensorflow-cpu", "keras", "tf2onnx", "onnx", "numpy"),
        )


def optimise(seed: int) -> None:
    """Quantise what `train` left, compare all of it, print the tables; in the environment of `train`."""
    from sdk.optimise import Quantised, Task, from_files, read_onnx, read_tflite

    recordings = load(say=print)
    seen = data.windows(data.select(recordings, "train"), seed=seed)
    known = data.windows(data.select(recordings, "validation"), seed=0)
    calibration = data.relative(seen.x[np.random.default_rng(seed).permutation(len(seen))[:300]])
    inputs = list(data.relative(known.x)[:, None])

    def f1(run: Runner) -> dict[str, float]:
        said = np.array([run((x,))[0].argmax() for x in inputs])
        return {"f1": float(data.f1(data.confusion(known.y, said)).mean())}

    task = Task(
        name="machine_state_keras", inputs=INPUTS, outputs=OUTPUTS, calibration=list(calibration[:, None]),
        check=inputs[:200], metric=f1, allowed={"f1": 0.01}, depends=cache.digest(known.x, known.y.astype(np.float32)),
        ops=Quantised(onnx=("Conv",), tflite=("CONV_2D",), openvino=("Convolution",)),
    )  # fmt: skip
    files = [
        Built.onnx(read_onnx(FOLDER / "model.onnx"), "fp32", inputs=INPUTS, outputs=OUTPUTS),
        Built.tflite(read_tflite(FOLDER / "model.tflite"), "fp32"),
    ]
    with shown("machine_state in Keras") as tell:
        outcome = from_files(files, task, Steps(seed=seed, tell=tell))
        tell("the PyTorch model beside it", False)
        shipped = kit.load(package.BUNDLE, kit.trusted())
        beside = shipped_f1(shipped, known)
    print("\n".join(outcome.terminal()))
    print(f"Macro F1 on {len(known)} windows of the validation split: Keras {outcome.base['f1']:.4f}, "
          f"the shipped PyTorch model {beside:.4f} ({shipped.runner.description}).")  # fmt: skip
    outcome.insist(task, "int8")


def shipped_f1(model: kit.Loaded, known: data.Labelled) -> float:
    """Macro F1 of the bundle that PyTorch made, on the same windows, by its own steps."""
    records = (np.ascontiguousarray(window.T, "<f4").tobytes() for window in known.x)
    scores = (model.answer(each, package.MEDIA).scores for each in records)
    said = np.array([np.argmax([each.get(label, 0.0) for label in data.LABELS]) for each in scores])
    return float(data.f1(data.confusion(known.y, said)).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description="Train machine_state's twin in Keras, or optimise what was trained.")
    parser.add_argument("step", choices=("train", "optimise"))
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    arguments = parser.parse_args()
    if arguments.step == "optimise":
        optimise(arguments.seed)
        return
    for file, made in kept(arguments.seed, arguments.epochs).items():
        write_atomic(FOLDER / file, made)
        print(f"{FOLDER.relative_to(kit.MODELS.parent) / file}: {len(made) / 1000:.1f} kB")


if __name__ == "__main__":
    try:
        main()
    except OctogateError as error:
        sys.exit(f"octogate: {error}")
