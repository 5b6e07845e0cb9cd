"""Fetch the detector's weights and pack them: `python -m models.detect.fetch` (needs npm, and the network once).

The TFLite file lies unconverted inside the package's asset file, behind the label map; nothing in it is changed.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from pathlib import Path

from models import kit
from sdk.demo_data import write_pictures
from sdk.registry import Member, Package, RegistryError, Say, fetch

NAME = "detect"
FOLDER = Path(__file__).resolve().parent
BUNDLE = FOLDER / f"{NAME}.octo"
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
TOLERANCE = {"fp32": 0.02, "fp16": 0.03}  # decoders of JPEG differ by a level or two of brightness

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


def build(output: Path, key: Path) -> str:
    """Pack and sign; gives the digest."""
    model, _ = weights()
    files = {
        "model.tflite": model,
        "card.md": kit.bundled_card(FOLDER / "README.md"),
        "LICENSE": LICENCE.read_bytes(),
        "NOTICE": NOTICE.encode(),
    }
    with tempfile.TemporaryDirectory() as scratch:
        pictures = {path.stem: path.read_bytes() for path in write_pictures(Path(scratch), say=print)}
    samples = {f"{name}.jpg": (pictures[name], "image/jpeg") for name in GOLDEN}
    return kit.build(kit.read_spec(FOLDER / "model.toml"), files, samples, TOLERANCE, output, kit.signing_key(key))


def main() -> None:
    parser = argparse.ArgumentParser(description="Fetch the detector's weights, pack and sign them.")
    kit.add_arguments(parser, BUNDLE)
    arguments = parser.parse_args()
    digest = build(arguments.output, arguments.key)
    print(f"{arguments.output}: {arguments.output.stat().st_size} bytes, digest {digest}")


if __name__ == "__main__":
    main()
