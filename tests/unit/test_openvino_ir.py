"""OpenVINO IR in bundles: two members, the weights used where they lie, served by a real worker."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.errors import ModelError
from gateway.infer import backend, openvino
from gateway.infer.bundle import Bundle
from gateway.infer.candidate import defaults
from gateway.infer.manifest import Precision, Variant
from sdk.bundle import openvino_variant, pack
from tests.unit import bundles
from tests.unit.engines import running

ov = pytest.importorskip("openvino")


def model(precision: Precision) -> Any:
    """Sum and first of 8 readings; int8 as a quantiser leaves it: int8 weights with a scale, activations fake-quantised."""
    from openvino import opset8

    x = opset8.parameter([1, bundles.LENGTH], np.float32, name="x")
    weights = bundles.weights(bundles.LENGTH)
    if precision == "fp32":
        return ov.Model([opset8.matmul(x, opset8.constant(weights), False, False)], [x], "tiny")
    scaled = opset8.multiply(
        opset8.convert(opset8.constant((weights * 100).astype(np.int8)), np.float32), np.float32(0.01)
    )
    low, high = np.float32(-128), np.float32(127)
    rounded = opset8.fake_quantize(x, low, high, low, high, 256)
    return ov.Model([opset8.matmul(rounded, scaled, False, False)], [x], "tiny")


def make(folder: Path, precision: Precision) -> Path:
    ov.save_model(model(precision), folder / "model.xml", compress_to_fp16=False)
    variant, members = openvino_variant(folder / "model.xml", precision)
    assert members["model.bin"]
    files = bundles.files(**members)
    del files["model.onnx"]
    pack(folder / "a.octo", bundles.manifest(variants=(variant,)), files)
    return folder / "a.octo"


async def _served(path: Path) -> str:
    async with running(path) as (engine, _):
        answer = await engine.run(bundles.window(1, 2, 3), bundles.MEDIA)
    assert answer.result.values == pytest.approx({"sum": 6.0, "first": 1.0}, abs=0.01)
    return answer.backend


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_worker_serves_it(tmp_path: Path, precision: Precision) -> None:
    path = make(tmp_path, precision)
    assert asyncio.run(_served(path)) == f"openvino {precision} x1"


def test_weights_are_read_where_they_lie(tmp_path: Path) -> None:
    path = make(tmp_path, "fp32")
    before = path.read_bytes()
    with Bundle(path) as bundle:
        (candidate,) = defaults(bundle.manifest)
        view = np.frombuffer(bundle.member("model.bin"), np.uint8)
        assert openvino._writeable(view) is view, "OpenVINO takes the mapping itself"
        tensor = ov.Tensor(view, shared_memory=True)
        read = ov.Core().read_model(bytes(bundle.member("model.xml")), tensor)
        (constant,) = [op for op in read.get_ops() if op.get_type_name() == "Constant"]
        first = view.ctypes.data
        assert first <= constant.data.ctypes.data < first + view.size
        view[:] = 0  # a private mapping: nothing of this reaches the file
    assert path.read_bytes() == before
    with Bundle(path) as bundle:
        runner = backend.load(bundle.manifest, bundle.member, candidate).runner
    (y,) = runner([np.arange(8, dtype=np.float32).reshape(1, 8)])
    assert y.tolist() == [[28.0, 0.0]], "the mapping lives as long as the runner"


def test_weights_that_may_not_be_written_are_copied(tmp_path: Path) -> None:
    path = make(tmp_path, "fp32")
    with Bundle(path) as bundle:
        manifest = bundle.manifest
        loaded = backend.load(manifest, lambda name: bytes(bundle.member(name)), defaults(manifest)[0])
    (y,) = loaded.runner([np.ones((1, 8), np.float32)])
    assert y.tolist() == [[8.0, 1.0]]


def test_an_ir_is_two_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="an IR is two files"):
        Variant(file="model.xml", format="openvino", precision="fp32")
    with pytest.raises(ValueError, match="weights go with format openvino"):
        Variant(file="model.onnx", format="onnx", precision="fp32", weights="model.bin")
    (tmp_path / "model.xml").write_text("<net/>")
    with pytest.raises(ModelError, match=r"cannot read the IR.*model\.bin"):
        openvino_variant(tmp_path / "model.xml", "fp32")
