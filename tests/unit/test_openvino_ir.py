"""OpenVINO IR in bundles: two members, the weights used where they lie."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.errors import ModelError
from gateway.infer import backend, golden, openvino
from gateway.infer.bundle import Bundle
from gateway.infer.candidate import Candidate, Report, defaults
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


class Failing(ov.Op):  # type: ignore[misc,name-defined]
    """Computes nothing; raises as a device does that is lost, once `lost` is set."""

    lost = False

    def __init__(self, inputs: Any = None) -> None:
        super().__init__(self, inputs)
        self.constructor_validate_and_infer_types()

    def validate_and_infer_types(self) -> None:
        self.set_output_type(0, self.get_input_element_type(0), self.get_input_partial_shape(0))

    def clone_with_new_inputs(self, new_inputs: Any) -> "Failing":
        return Failing(new_inputs)

    def evaluate(self, outputs: Any, inputs: Any) -> bool:
        if Failing.lost:
            raise RuntimeError("ZE_RESULT_ERROR_DEVICE_LOST (simulated)")
        np.copyto(outputs[0].data, inputs[0].data)
        return True

    def has_evaluate(self) -> bool:
        return True


@pytest.mark.parametrize("threads", [1, 2])
def test_a_device_that_raises_is_heard_whatever_the_threads(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    """OpenVINO 2026.4 with one thread: `infer()` raises nothing and leaves the outputs of the run before."""
    x = ov.opset8.parameter([1, 4], np.float32)
    copied = Failing([x.output(0)]).output(0)
    model = ov.Model([ov.opset8.add(copied, copied)], [x], "fails")
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_NUM_THREADS": threads})
    variant = Variant(file="model.onnx", format="onnx", precision="fp32")
    how = Candidate(backend="openvino", file="model.onnx", precision="fp32", threads=threads)
    report = Report(device="CPU", precision="fp32", threads=threads, partition={}, detail="")
    runner = openvino.OpenvinoRunner(compiled, variant, how, report, b"")
    numbers = np.array([[1, 2, 3, 4]], np.float32)
    assert runner([numbers])[0].tolist() == [[2, 4, 6, 8]]
    assert np.isnan(runner([numbers * np.nan])[0]).all(), "an answer like the mark is an answer"
    monkeypatch.setattr(Failing, "lost", True)
    with pytest.raises(ModelError, match="OpenVINO failed"):
        runner([numbers])
