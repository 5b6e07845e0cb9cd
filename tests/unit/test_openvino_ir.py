"""OpenVINO IR in bundles: two members, the weights used where they lie."""

from pathlib import Path

import numpy as np
import pytest

from gateway.errors import ModelError
from gateway.infer import backend, golden, openvino
from gateway.infer.bundle import Bundle
from gateway.infer.candidate import defaults
from gateway.infer.manifest import Precision, Variant
from gateway.infer.recipe import Recipe
from sdk.bundle import openvino_variant
from tests.unit import bundles

ov = pytest.importorskip("openvino")


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_it_reproduces_the_golden_samples(tmp_path: Path, precision: Precision) -> None:
    with Bundle(bundles.make_openvino(tmp_path / "a.octo", precision)) as bundle:
        loaded = backend.load(bundle.manifest, bundle.member, defaults(bundle.manifest)[0])
        golden.check(bundle, Recipe(bundle.manifest), loaded.runner, precision)
    assert loaded.runner.description == f"openvino {precision} x1"


def test_weights_are_read_where_they_lie(tmp_path: Path) -> None:
    path = bundles.make_openvino(tmp_path / "a.octo", "fp32")
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
    path = bundles.make_openvino(tmp_path / "a.octo", "fp32")
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
