"""Choosing a runtime: the reasons for what was left out, and what quantised tensors mean."""

import sys
from typing import Any

import numpy as np
import pytest

from gateway.errors import ModelError
from gateway.infer import backend, litert, onnx
from gateway.infer.manifest import Variant
from gateway.infer.steps import Array
from tests.unit import bundles

ONNX = Variant(file="model.onnx", format="onnx", precision="fp32")
TFLITE = Variant(file="model.tflite", format="tflite", precision="fp32")
X: Array = np.arange(8, dtype=np.float32).reshape(1, 8)


def test_both_runtimes_compute_the_same() -> None:
    for module, model, variant in (
        (onnx, bundles.onnx_model(), ONNX),
        (litert, bundles.tflite_model(), TFLITE),
    ):
        runner = backend.backend(module.__name__.rpartition(".")[2]).load(model, variant, 1)
        for _ in range(3):
            (y,) = runner([X])
            assert y.tolist() == [[28.0, 0.0]]
        assert runner.description.endswith("fp32 x1")
        with pytest.raises(ModelError, match="failed"):
            runner([X[:, :5]])


@pytest.mark.parametrize(("module", "file"), [(onnx, ONNX), (litert, TFLITE)])
def test_nonsense_and_wrong_names_are_refused(module: Any, file: Variant) -> None:
    with pytest.raises(ModelError):
        module.load(b"nonsense", file, 1)
    model = bundles.onnx_model() if module is onnx else bundles.tflite_model()
    named = Variant(file=file.file, format=file.format, precision="fp32", outputs=("elsewhere",))
    with pytest.raises(ModelError, match=r"has no tensor elsewhere"):
        module.load(model, named, 1)


def test_a_missing_runtime_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(litert, "_RUNTIMES", ("no_such_runtime.interpreter",))
    rejected: list[str] = []
    found = backend.candidates(
        bundles.manifest(variants=(ONNX, TFLITE)), lambda _: b"", wanted="", threads=1, rejected=rejected
    )
    assert list(found) == []
    assert "model.onnx: ONNX Runtime is not usable" in rejected[0] and "octogate[onnx]" in rejected[0]
    assert "model.tflite: no_such_runtime: No module named" in rejected[1]


def test_only_the_wanted_backend_is_tried() -> None:
    rejected: list[str] = []
    manifest = bundles.manifest(variants=(TFLITE, ONNX))
    found = backend.candidates(manifest, lambda _: bundles.onnx_model(), wanted="onnx", threads=1, rejected=rejected)
    assert [candidate.variant for candidate in found] == [ONNX]
    assert rejected == ["model.tflite: not for backend 'onnx'"]
    with pytest.raises(ModelError, match=r"no backend 'cuda' \(known are: onnx, litert\)"):
        list(backend.candidates(manifest, lambda _: b"", wanted="cuda", threads=1, rejected=rejected))


def test_quantised_tensors_stand_for_numbers() -> None:
    detail = {"index": 0, "dtype": np.int8, "shape": (1, 4), "quantization": (0.5, 10)}
    port = litert._Port(detail)
    x = np.array([0.0, 1.3, -100, 100], np.float32)
    assert port.quantise(x).tolist() == [10, 13, -128, 127]
    assert port.dequantise(np.array([10, 13, -128], np.int8)).tolist() == [0.0, 1.5, -69.0]
    plain = litert._Port({**detail, "dtype": np.float32, "quantization": (0.0, 0)})
    assert plain.quantise(x) is x and plain.dequantise(x) is x
