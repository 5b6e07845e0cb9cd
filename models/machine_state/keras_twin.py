"""The state tower of machine_state once more, in Keras: proof that a TensorFlow model comes all the way, too.

    ./inv models.twin    trains it in .venv-tensorflow, then quantises and compares it in .venv-train

It is not shipped. Reads the train and validation splits only.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from gateway.infer.backend import Runner
from models import kit
from models.machine_state import data
from sdk.optimise.variants import Built
from sdk.recordings import Recording, load
from sdk.registry import write_atomic

FOLDER = kit.BUILD / "machine_state_keras"
WIDTHS = (16, 24, 32)
EPOCHS, PLAYS, SEED = 4, 3, 1
INPUTS, OUTPUTS = ("window",), ("logits",)


def build_network() -> Any:  # keras is an extra: no types without it
    """[batch, 2, 256] relative to the rating -> logits [batch, 3]."""
    import keras
    from keras import layers, ops

    window = keras.Input((2, data.LENGTH))
    fine = layers.Lambda(lambda x: ops.log(ops.maximum(x, 0.0) * 100.0 + 0.1) * 0.25)(window)
    x = layers.Permute((2, 1))(layers.Concatenate(axis=1)([window, fine]))
    for width, kernel in zip(WIDTHS, (7, 5, 5), strict=True):
        x = layers.Conv1D(width, kernel, strides=2, padding="same", activation="relu")(x)
    pooled = layers.Concatenate()([layers.GlobalAveragePooling1D()(x), layers.GlobalMaxPooling1D()(x)])
    return keras.Model(window, layers.Dense(len(data.LABELS))(pooled))


def train(recordings: list[Recording], epochs: int = EPOCHS, plays: int = PLAYS) -> list[Built]:
    """Train and convert; in TensorFlow's environment."""
    import keras

    from sdk.optimise.keras import from_keras

    keras.utils.set_random_seed(SEED)
    labelled = data.windows(data.select(recordings, "train"), seed=SEED, plays=plays)
    network = build_network()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(optimizer=keras.optimizers.Adam(2e-3), loss=loss)
    network.fit(data.relative(labelled.x), labelled.y, batch_size=128, epochs=epochs, verbose=2)
    return from_keras(network, name="machine_state_keras", inputs=INPUTS, outputs=OUTPUTS)


def optimise() -> None:
    """Quantise what `train` left, compare all of it, print the table; in the environment of `train`."""
    from sdk.optimise import Quantised, Steps, Task, from_files
    from sdk.optimise.progress import shown

    recordings = load(say=print)
    seen = data.windows(data.select(recordings, "train"), seed=SEED)
    known = data.windows(data.select(recordings, "validation"), seed=0)
    calibration = data.relative(seen.x[np.random.default_rng(SEED).permutation(len(seen))[:300]])
    inputs = list(data.relative(known.x)[:, None])

    def f1(run: Runner) -> dict[str, float]:
        said = np.array([run((x,))[0].argmax() for x in inputs])
        return {"f1": float(data.f1(data.confusion(known.y, said)).mean())}

    task = Task(
        name="machine_state_keras", inputs=INPUTS, outputs=OUTPUTS, calibration=list(calibration[:, None]),
        check=inputs[:200], metric=f1, allowed={"f1": 0.01},
        ops=Quantised(onnx=("Conv",), tflite=("CONV_2D",), openvino=("Convolution",)),
    )  # fmt: skip
    files = [
        Built.onnx((FOLDER / "model.onnx").read_bytes(), "fp32", inputs=INPUTS, outputs=OUTPUTS),
        Built.tflite((FOLDER / "model.tflite").read_bytes(), "fp32"),
    ]
    with shown("machine_state in Keras") as tell:
        outcome = from_files(files, task, Steps(seed=SEED, tell=tell))
    print("\n".join(outcome.table()))
    outcome.insist(task, "int8")


def main() -> None:
    if sys.argv[1:] == ["optimise"]:
        optimise()
        return
    for built in train(load(say=print)):
        write_atomic(FOLDER / built.variant.file, built.data)
        print(f"{FOLDER / built.variant.file}: {built.size / 1000:.1f} kB")


if __name__ == "__main__":
    main()
