"""Choosing a runtime: the reasons for what was left out, and what quantised tensors mean."""

import sys

import numpy as np
import pytest

from gateway.errors import ModelError
from gateway.infer import backend, litert
from gateway.infer.backend import Device, Runner, Source
from gateway.infer.candidate import Candidate, defaults
from gateway.infer.manifest import Variant
from gateway.infer.steps import Array
from tests.unit import bundles

ONNX = Variant(file="model.onnx", format="onnx", precision="fp32")
TFLITE = Variant(file="model.tflite", format="tflite", precision="fp32")
X: Array = np.arange(8, dtype=np.float32).reshape(1, 8)


RUNTIMES = {"onnx": "onnxruntime", "openvino": "openvino"}


def load(name: str, source: Source, candidate: Candidate) -> Runner:
    """On a runtime that is installed: where only tflite-runtime is, the others are skipped."""
    if name in RUNTIMES:
        pytest.importorskip(RUNTIMES[name])
    return backend.backend(name).load(source, candidate)


def candidate(name: str, variant: Variant) -> Candidate:
    return Candidate(backend=name, file=variant.file, precision=variant.precision)


@pytest.mark.parametrize(("name", "file"), [("onnx", ONNX), ("litert", TFLITE), ("openvino", ONNX)])
def test_every_runtime_computes_the_same(name: str, file: Variant) -> None:
    model = bundles.onnx_model() if file is ONNX else bundles.tflite_model()
    runner = load(name, Source(file, model), candidate(name, file))
    for _ in range(3):
        (y,) = runner([X])
        assert y.tolist() == [[28.0, 0.0]]
    assert runner.description.replace("tflite", "litert") == f"{name} fp32 x1"
    report = runner.report()
    assert (report.device, report.precision, report.threads) == ("CPU", "fp32", 1)
    with pytest.raises(ModelError, match="failed"):
        runner([X[:, :5]])


@pytest.mark.parametrize(("name", "file"), [("onnx", ONNX), ("litert", TFLITE), ("openvino", ONNX)])
def test_nonsense_and_wrong_names_are_refused(name: str, file: Variant) -> None:
    with pytest.raises(ModelError):
        load(name, Source(file, b"nonsense"), candidate(name, file))
    model = bundles.onnx_model() if file is ONNX else bundles.tflite_model()
    named = Variant(file=file.file, format=file.format, precision="fp32", outputs=("elsewhere",))
    with pytest.raises(ModelError, match=r"has no tensor elsewhere"):
        load(name, Source(named, model), candidate(name, named))


def test_a_missing_runtime_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("onnxruntime", "openvino"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(litert, "_RUNTIMES", ("no_such_runtime.interpreter",))
    rejected: list[str] = []
    manifest = bundles.manifest(variants=(ONNX, TFLITE))
    assert list(backend.load_each(manifest, lambda _: b"", defaults(manifest), rejected)) == []
    assert "model.onnx on onnx: ONNX Runtime is not usable" in rejected[0] and "octogate[onnx]" in rejected[0]
    assert "model.onnx on openvino: OpenVINO is not usable" in rejected[1]
    assert "model.tflite on litert: no_such_runtime: No module named" in rejected[2]


@pytest.mark.parametrize("name", ["onnx", "litert", "openvino"])
def test_every_backend_names_its_devices(name: str) -> None:
    if name in RUNTIMES:
        pytest.importorskip(RUNTIMES[name])
    found = backend.backend(name).devices(["Unheard"])
    assert found[0] == Device("CPU")
    (absent,) = [device for device in found if device.name == "Unheard"]
    assert absent.why_not


def test_a_runtime_that_only_imports_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """As tflite-runtime beside NumPy 2: it breaks with a SystemError when an interpreter is constructed."""
    module = litert._runtime()

    def broken(**_: object) -> None:
        raise SystemError("returned a result with an exception set")

    with monkeypatch.context() as patch:
        patch.setattr(module, "Interpreter", broken)
        assert "returned a result with an exception set" in litert.devices([])[0].why_not
        with pytest.raises(ModelError, match="returned a result with an exception set"):
            litert.load(Source(TFLITE, bundles.tflite_model()), candidate("litert", TFLITE))


def test_the_authors_order_is_the_default() -> None:
    manifest = bundles.manifest(variants=(TFLITE, ONNX))
    assert [(c.file, c.backend) for c in defaults(manifest)] == [
        ("model.tflite", "litert"),
        ("model.onnx", "onnx"),
        ("model.onnx", "openvino"),
    ]
    assert [c.file for c in defaults(manifest, backend="onnx")] == ["model.onnx"]
    with pytest.raises(ModelError, match=r"no backend 'cuda' \(known are: litert, onnx, openvino\)"):
        defaults(manifest, backend="cuda")
    with pytest.raises(ModelError, match=r"'onnx' takes none of its variants \(tflite\)"):
        defaults(bundles.manifest(variants=(TFLITE,)), backend="onnx")


def test_quantised_tensors_stand_for_numbers() -> None:
    detail = {"index": 0, "dtype": np.int8, "shape": (1, 4), "quantization": (0.5, 10)}
    port = litert._Port(detail)
    x = np.array([0.0, 1.3, -100, 100], np.float32)
    assert port.quantise(x).tolist() == [10, 13, -128, 127]
    assert port.dequantise(np.array([10, 13, -128], np.int8)).tolist() == [0.0, 1.5, -69.0]
    plain = litert._Port({**detail, "dtype": np.float32, "quantization": (0.0, 0)})
    assert plain.quantise(x) is x and plain.dequantise(x) is x
