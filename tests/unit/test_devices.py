"""Devices beside the CPU: used by config alone, refused with the reason, and never replaced by the CPU in silence.

No accelerator is needed: `VPU_CPU` is OpenVINO's CPU plug-in under another name, the delegate is made from delegate.c,
and the plug-in way of ONNX Runtime is gone with its own CPU provider. All three are simulations.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.errors import ModelError
from gateway.infer import backend, onnx, openvino
from gateway.infer.backend import Device, Runner, Source
from gateway.infer.candidate import CPU, Candidate
from gateway.infer.device import Provider
from gateway.infer.manifest import Variant
from gateway.infer.steps import Array
from tests.unit import bundles, delegates

X: Array = np.arange(8, dtype=np.float32).reshape(1, 8)
FORMAT = {"onnx": "onnx", "openvino": "onnx", "litert": "tflite"}


def load(name: str, device: str, model: bytes = b"", **changes: Any) -> Runner:
    model = model or (bundles.tflite_model() if name == "litert" else bundles.onnx_model())
    variant = Variant(file="model", format=FORMAT[name], precision="fp32")  # type: ignore[arg-type]
    candidate = Candidate(**{"backend": name, "file": "model", "precision": "fp32", "device": device, **changes})
    return backend.backend(name).load(Source(variant, model), candidate)


def why_not(name: str, word: str) -> str:
    """The answer of `devices`, which for an absent device must be that of `load`."""
    answers = backend.backend(name).devices([word])
    assert answers[0] == Device(CPU)
    (answer,) = [device for device in answers if device.name == word]
    if answer.why_not:
        with pytest.raises(ModelError) as raised:
            load(name, word)
        assert raised.value.what in answer.why_not
    return answer.why_not


def right(runner: Runner) -> bool:
    for _ in range(3):
        (y,) = runner([X])
    return bool(y.tolist() == [[28.0, 0.0]])


# --- ONNX Runtime -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("CUDAExecutionProvider", "is built without CUDAExecutionProvider"),
        ("VitisAIExecutionProvider", "install a build that has it, or name its plug-in"),
        ("Mine=/nonexistent/libmine.so", "plug-in /nonexistent/libmine.so does not load: .*cannot open shared object"),
        ("not a provider", "'not a provider' is not an execution provider"),
        ("AzureExecutionProvider", "computes on a service on the internet"),
    ],
)
def test_a_provider_that_is_not_there_is_refused_with_the_reason(word: str, why: str) -> None:
    pytest.importorskip("onnxruntime")
    for _ in range(2):  # a plug-in that did not load is remembered
        with pytest.raises(ModelError, match=why):
            load("onnx", word)
    assert why_not("onnx", word)


def test_a_provider_that_does_not_come_up_is_never_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a build for CUDA on a machine without: it is offered, and ONNX Runtime would go on with the CPU."""
    ort = pytest.importorskip("onnxruntime")
    offered = [*ort.get_available_providers(), "CUDAExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: offered)
    with pytest.warns(UserWarning, match="not in available"):
        with pytest.raises(ModelError, match=r"CUDAExecutionProvider did not come up: .* has only CPUExecution"):
            load("onnx", "CUDAExecutionProvider")
        assert onnx.devices([])[1].name == "CUDAExecutionProvider"
        assert "did not come up" in onnx.devices([])[1].why_not


def test_a_plugin_is_used_by_its_devices() -> None:
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    candidate = Candidate(backend="onnx", file="model", precision="fp32", device="CPUExecutionProvider")
    onnx._add_plugin(ort, options, Provider("CPUExecutionProvider"), candidate)
    assert options.has_providers()
    session = ort.InferenceSession(bundles.onnx_model(), options)
    assert session.run(None, {"x": X})[0].tolist() == [[28.0, 0.0]]
    with pytest.raises(ModelError, match="takes no NPU of this machine"):
        onnx._plugin_devices(ort, Provider("CPUExecutionProvider", "NPU"))


def test_the_openvino_plugin_computes_or_says_why_not() -> None:
    """It takes processors by Intel only, so which of the two depends on this machine."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxruntime_ep_openvino")
    name = "OpenVINOExecutionProvider"
    answers = [device for device in onnx.devices([name]) if device.name.startswith(name)]
    assert answers
    for device in answers:
        if device.why_not:
            assert "takes no device of this machine" in device.why_not
            with pytest.raises(ModelError, match="Intel only"):
                load("onnx", device.name)
        else:
            runner = load("onnx", device.name)
            assert right(runner) and runner.report().partition[name] > 0


def test_small_tensors_are_preset_and_large_ones_are_not() -> None:
    pytest.importorskip("onnxruntime")
    small = load("onnx", CPU)
    assert isinstance(small, onnx.OnnxRunner) and small._preset is not None and right(small)
    with pytest.raises(ModelError, match=r"failed: an input of shape \(1, 1\), not \(1, 8\)"):
        small([X[:, :1]])  # NumPy would broadcast it
    large = load("onnx", CPU, bundles.onnx_model((1, onnx._PRESET_MAX // 4)))
    assert isinstance(large, onnx.OnnxRunner) and large._preset is None
    (y,) = large([np.ones((1, onnx._PRESET_MAX // 4), np.float32)])
    assert y.tolist() == [[onnx._PRESET_MAX // 4, 1.0]]


def test_an_output_that_is_not_of_the_size_it_says_is_not_preset() -> None:
    ort = pytest.importorskip("onnxruntime")
    session = ort.InferenceSession(bundles.onnx_model(), providers=["CPUExecutionProvider"])

    class Lie:
        name, type, shape = "y", "tensor(float)", (1, 3)

    assert onnx._preset(session, session.get_inputs(), [Lie]) is None
    Lie.shape = ("n", 2)  # type: ignore[assignment]
    assert onnx._preset(session, session.get_inputs(), [Lie]) is None


def test_a_build_that_cannot_tell_says_nothing() -> None:
    class Old:
        __version__ = "1.18.0"

        def get_providers(self) -> Sequence[str]:
            return ["CPUExecutionProvider"]

    candidate = Candidate(backend="onnx", file="model", precision="fp32")
    assert onnx._report(Old, Old(), candidate).partition == {}
    with pytest.raises(ModelError, match=r"1\.18\.0 here is built without CUDA.*, and takes no plug-ins"):
        onnx._plugin_devices(Old, Provider("CUDAExecutionProvider"))


# --- LiteRT -------------------------------------------------------------------------------------------------------


@delegates.needs_compiler
def test_a_delegate_by_its_library_computes(tmp_path: Path) -> None:
    library = delegates.build(tmp_path)
    assert why_not("litert", library) == ""
    runner = load("litert", library)
    report = runner.report()
    assert right(runner) and report.device == library and report.partition == {library: 1}


@delegates.needs_compiler
def test_a_delegate_that_takes_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nothing\.so takes none of the 1 nodes of model"):
        load("litert", delegates.build(tmp_path, "TAKES_NOTHING"))


@delegates.needs_compiler
def test_a_delegate_without_its_device_is_refused(tmp_path: Path) -> None:
    assert "no simulated device is plugged in" in why_not("litert", delegates.build(tmp_path, "ABSENT"))


def test_a_library_that_is_no_delegate_is_refused() -> None:
    assert "no delegate libedgetpu-none.so.1: libedgetpu-none.so.1: cannot open" in why_not(
        "litert", "libedgetpu-none.so.1"
    )
    assert "undefined symbol" in why_not("litert", "libc.so.6")
    assert "not a delegate's library" in why_not("litert", "lib/x.so")


def test_the_cpu_of_litert_tells_what_xnnpack_takes() -> None:
    assert load("litert", CPU).report().partition == {"XNNPACK": 1}


# --- OpenVINO -----------------------------------------------------------------------------------------------------


def vpu() -> str:
    """The simulated accelerator, as a word of the config."""
    library = pytest.importorskip("openvino")
    (plugin,) = (Path(library.__file__).parent / "libs").glob("libopenvino_*_cpu_plugin.so")
    return f"VPU_CPU={plugin}"


def test_a_simulated_vpu_computes() -> None:
    word = vpu()
    assert why_not("openvino", word) == ""
    runner = load("openvino", word)
    report = runner.report()
    assert right(runner) and report.device == "VPU_CPU" and report.partition == {"VPU_CPU": 9}
    assert report.detail.endswith("computes in f32")


def test_a_graph_can_be_split() -> None:
    runner = load("openvino", f"HETERO:{vpu()},CPU")
    assert right(runner) and runner.report().device == "VPU_CPU", "it takes all there is"
    assert "lists no device NPU here" in why_not("openvino", f"HETERO:NPU,{vpu()}")


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("NPU.7", "lists no device NPU.7 here; it lists CPU"),
        ("MYRIAD", "MYRIAD is refused: support of Neural Compute Stick 2 and Myriad X ended"),
        ("AUTO:NPU,CPU", "falls back to the CPU without a word"),
        ("MULTI:NPU,CPU", "leaves devices out without a word"),
        ("HETERO:MYRIAD,CPU", "MYRIAD is refused"),
        ("MYRIAD=/nonexistent/libmyriad.so", "cannot open shared object file"),
        ("HETERO:CPU", "not a device of OpenVINO"),
    ],
)
def test_a_device_of_openvino_that_is_not_there_is_refused_with_the_reason(word: str, why: str) -> None:
    pytest.importorskip("openvino")
    assert why in why_not("openvino", word)


def test_what_really_computes_is_read_after_compiling() -> None:
    """A graph that was split by hand, for HETERO leaves nothing to the CPU that VPU_CPU can do."""
    ov = pytest.importorskip("openvino")
    from openvino import opset8

    candidate = Candidate(backend="openvino", file="model", precision="fp32", device=f"HETERO:{vpu()},CPU")
    core, target = openvino._core(ov, candidate)
    x = opset8.parameter([1, 8], np.float32)
    first, second = (a := opset8.relu(x)), opset8.sin(a)
    model = ov.Model([second], [x], "split")
    for node, name in ((x, "VPU_CPU"), (first, "VPU_CPU"), (second, "CPU"), (model.get_results()[0], "CPU")):
        node.get_rt_info()["affinity"] = name
    compiled = core.compile_model(model, target.name)
    report = openvino._report(ov, core, model, compiled, target, candidate)
    assert report.device == "VPU_CPU,CPU" and report.detail.endswith("computes in f32, f32")
    assert report.partition == {}, "the plan that can be asked for is not what was done by hand"
    on_cpu = core.compile_model(model, "CPU")
    with pytest.raises(ModelError, match="VPU_CPU computes nothing, CPU all of it"):
        openvino._report(ov, core, model, on_cpu, target, candidate)


def test_int8_need_not_compute_in_f32() -> None:
    ov = pytest.importorskip("openvino")
    default = ov.Core().get_property(CPU, "INFERENCE_PRECISION_HINT").get_type_name()
    assert load("openvino", CPU).report().detail.endswith("computes in f32")
    assert load("openvino", CPU, precision="int8").report().detail.endswith(f"computes in {default}")
