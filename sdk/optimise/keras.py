"""From a Keras model to ONNX and TFLite, in TensorFlow's own environment (extra `tensorflow`).

What comes out goes on with `from_files` in the environment of `train`: the converters of the two do not live together.
A saved file is converted by `python -m sdk.optimise.keras FILE --output FOLDER`, which is what `./inv models.keras` does.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gateway.errors import ModelError
from sdk.optimise.export import clean_onnx
from sdk.optimise.quiet import last_line, quiet
from sdk.optimise.variants import Built
from sdk.registry import write_atomic

OPSET = 18
_FAULTS = (RuntimeError, ValueError, TypeError, KeyError, AttributeError)


def from_keras(
    model: Any, *, name: str = "model", inputs: Sequence[str] = ("input",), outputs: Sequence[str] = ("output",)
) -> list[Built]:
    """A Keras model as ONNX and TFLite, fp32, for one input at a time.

    By way of a traced function: tf2onnx's `from_keras` fails on Keras 3.

    Args:
        inputs, outputs: names of the ONNX tensors, in the order of the model's.

    Raises:
        ModelError: TensorFlow or tf2onnx cannot convert it.
    """
    with quiet("tensorflow", "tf2onnx"):
        import tensorflow
        import tf2onnx

        specs = [
            tensorflow.TensorSpec((1, *tensor.shape[1:]), tensor.dtype, name=given)
            for tensor, given in zip(model.inputs, inputs, strict=True)
        ]

        @tensorflow.function(input_signature=specs)  # type: ignore[untyped-decorator, unused-ignore]
        def call(*given: Any) -> dict[str, Any]:
            made = model(given[0] if len(given) == 1 else list(given), training=False)
            made = made if isinstance(made, list | tuple) else [made]
            return dict(zip(outputs, made, strict=True))

        try:
            onnx, _ = tf2onnx.convert.from_function(call, input_signature=specs, opset=OPSET)
            with tempfile.TemporaryDirectory(prefix="octogate-keras-") as scratch:
                # The converter takes as constants the variables that the saved object holds. It does not find those
                # of a Keras 3 model by itself: it would leave them out, and the file would answer NaN.
                holder = tensorflow.Module()
                holder.held = [variable.value for variable in model.variables]
                holder.call = call
                path = str(Path(scratch, "saved"))
                tensorflow.saved_model.save(holder, path, signatures={"serving_default": call})
                tflite = tensorflow.lite.TFLiteConverter.from_saved_model(path).convert()
        except _FAULTS as error:
            raise ModelError(f"this Keras model cannot be converted: {last_line(error)}") from error
    return [
        Built.onnx(clean_onnx(_renamed(onnx), name), "fp32", inputs=inputs, outputs=outputs),
        Built.tflite(bytes(tflite), "fp32"),
    ]


def read_keras(path: Path) -> Any:
    """A model as Keras saved it: `.keras`, or `.h5` of before.

    Raises:
        ModelError: unreadable, no such file, or one with Python code in it (a Lambda layer), which is not run.
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such file", hint="name what model.save() wrote, FILE.keras")
    with quiet("tensorflow", "absl"):
        import keras

        try:
            return keras.saving.load_model(path, compile=False, safe_mode=True)
        except (*_FAULTS, OSError) as error:
            raise ModelError(
                f"{path}: Keras cannot read it: {last_line(error)}",
                hint="layers of your own must be registered, and Lambda layers written as such: call from_keras in Python",
            ) from error


def _renamed(model: Any) -> Any:
    """Names by the order in which nodes use them: TensorFlow's count through the life of a process."""
    graph = model.graph
    names = {each.name: each.name for each in (*graph.input, *graph.output)}
    for at, node in enumerate(graph.node):
        node.name = f"{node.op_type}_{at}"
        for side in (node.input, node.output):
            for i, old in enumerate(side):
                if old:
                    side[i] = names.setdefault(old, f"t{len(names)}")
    for each in (*graph.initializer, *graph.value_info):
        each.name = names.setdefault(each.name, f"t{len(names)}")
    constants = sorted(graph.initializer, key=lambda each: each.name)
    del graph.initializer[:]
    graph.initializer.extend(constants)
    del graph.value_info[:]
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description="Convert a Keras file to ONNX and TFLite, fp32.")
    parser.add_argument("file", type=Path, help="as model.save() wrote it: FILE.keras")
    parser.add_argument("--output", type=Path, required=True, help="a folder; gets model.onnx and model.tflite")
    arguments = parser.parse_args()
    print(f"reading {arguments.file} with TensorFlow, some seconds", file=sys.stderr)
    model = read_keras(arguments.file)
    names = {"inputs": [f"input{at}" for at in range(len(model.inputs))],
             "outputs": [f"output{at}" for at in range(len(model.outputs))]}  # fmt: skip
    for built in from_keras(model, name=arguments.file.stem, **names):
        write_atomic(arguments.output / built.variant.file, built.data)
        print(f"{arguments.output / built.variant.file}: {built.size / 1000:.1f} kB")


if __name__ == "__main__":
    try:
        main()
    except ModelError as error:
        sys.exit(f"octogate: {error}")
