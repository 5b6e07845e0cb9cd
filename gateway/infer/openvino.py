"""OpenVINO IR and ONNX models on OpenVINO, on devices that are named: AUTO would hide what computes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gateway.errors import ModelError
from gateway.infer import device as words
from gateway.infer.backend import Device, Source
from gateway.infer.candidate import CPU, Candidate, Report
from gateway.infer.device import Part, Target
from gateway.infer.manifest import Variant
from gateway.infer.steps import Array

_FAULTS = (RuntimeError, ValueError, TypeError)
# Devices that no plug-in of OpenVINO's own serves, and why; `NAME=/path/of/its/plugin.so` brings one along.
_REFUSED = {
    "MYRIAD": "support of Neural Compute Stick 2 and Myriad X ended with OpenVINO's 2022 releases, and was in no wheel",
    "HDDL": "support of Vision Accelerator cards ended with OpenVINO's 2022 releases, and was in no wheel",
    "GNA": "support of the Gaussian & Neural Accelerator ended with OpenVINO's 2023 releases",
    "AUTO": "it falls back to the CPU without a word; name the device, and the gateway falls back itself and tells",
    "MULTI": "it leaves devices out without a word; name one device, or HETERO:NPU,CPU to split the graph",
    "BATCH": "it waits for a batch to fill; the gateway batches itself",
}
_NO_NODES = ("Parameter", "Result", "Constant")


def devices(extra: Sequence[str]) -> list[Device]:
    """The devices that OpenVINO lists and those of the config, each tried once; see `backend.Backend`."""
    try:
        import openvino
    except ImportError as error:
        return [Device(name, f"OpenVINO is not usable: {error}") for name in (CPU, *extra)]
    found = []
    for word in dict.fromkeys((CPU, *openvino.Core().available_devices, *extra)):
        why = ""
        try:
            _probe(openvino, word)
        except ModelError as error:
            why = str(error)
        found.append(Device(word, why))
    return found


def load(source: Source, candidate: Candidate) -> OpenvinoRunner:
    """A compiled model that has inferred once; see `backend.Backend`."""
    try:
        import openvino
    except ImportError as error:
        raise ModelError(
            f"OpenVINO is not usable: {error}", hint="install the extra: pip install 'octogate[openvino]'"
        ) from error
    weights = _writeable(np.frombuffer(source.weights, np.uint8))
    try:
        core, target = _core(openvino, candidate)
        if weights.size:
            # the model looks into these bytes from now on, so they are kept as long as the runner
            model = core.read_model(source.model, openvino.Tensor(_writeable(weights), shared_memory=True))
        else:
            model = core.read_model(source.model)
        compiled = core.compile_model(model, target.name)
        report = _report(openvino, core, model, compiled, target, candidate)
        return OpenvinoRunner(compiled, source.variant, candidate, report, weights)
    except _FAULTS as error:
        raise ModelError(f"OpenVINO {_version(openvino)} does not take it: {_line(error)}") from error


def _writeable(weights: Any) -> Any:
    """OpenVINO shares only what may be written, though it never writes; bytes may not, a bundle's mapping may."""
    return weights if weights.flags.writeable else weights.copy()


def _core(openvino: Any, candidate: Candidate) -> tuple[Any, Target]:
    """OpenVINO with the devices of a candidate, set up for it.

    Raises:
        ModelError: a device is refused or not there.
    """
    if why := _REFUSED.get(candidate.device.partition(":")[0]):
        raise ModelError(f"{candidate.device} is refused: {why}")
    target = words.target(candidate.device)
    core = openvino.Core()
    for part in target.parts:
        _find(openvino, core, part)
        settings: dict[str, object] = {}
        known = core.get_property(part.name, "SUPPORTED_PROPERTIES")
        if "INFERENCE_NUM_THREADS" in known:
            settings["INFERENCE_NUM_THREADS"] = candidate.threads
        # pinned, every worker waits for the same core, the first one, whoever else is on it
        if "ENABLE_CPU_PINNING" in known:
            settings["ENABLE_CPU_PINNING"] = False
        # the default is bf16 where a processor has it: 3e-3 off, which int8 models are anyway
        if "INFERENCE_PRECISION_HINT" in known and candidate.precision == "fp32":
            settings["INFERENCE_PRECISION_HINT"] = "f32"
        core.set_property(part.name, settings)
    return core, target


def _find(openvino: Any, core: Any, part: Part) -> None:
    """Make a device known to OpenVINO, or say why it is not."""
    if part.library:
        try:
            core.register_plugin(part.library, part.name)
            core.get_property(part.name, "SUPPORTED_PROPERTIES")  # loads it
        except _FAULTS as error:
            raise ModelError(f"the plug-in of {part.name} does not load: {_line(error)}") from error
    elif why := _REFUSED.get(part.name.partition(".")[0]):
        raise ModelError(f"{part.name} is refused: {why}")
    listed = core.available_devices
    if part.name not in listed and f"{part.name}.0" not in listed:
        raise ModelError(
            f"OpenVINO {_version(openvino)} lists no device {part.name} here; it lists {', '.join(listed) or 'none'}",
            hint="is it plugged in, its driver installed, and may this user open it?",
        )


def _probe(openvino: Any, word: str) -> None:
    """Compile and infer the smallest model: being listed is no proof.

    Raises:
        ModelError: why the device does not count.
    """
    from openvino import opset8

    x = opset8.parameter([1, 8], np.float32)
    model = openvino.Model([opset8.relu(x)], [x], "probe")
    candidate = Candidate(backend="openvino", file="probe", precision="fp32", device=word)
    variant = Variant(file="probe", format="onnx", precision="fp32")
    try:
        core, target = _core(openvino, candidate)
        compiled = core.compile_model(model, target.name)
        report = _report(openvino, core, model, compiled, target, candidate)
        OpenvinoRunner(compiled, variant, candidate, report, b"")
    except _FAULTS as error:
        raise ModelError(f"{word} does not compute: {_line(error)}") from error


def _report(openvino: Any, core: Any, model: Any, compiled: Any, target: Target, candidate: Candidate) -> Report:
    """What the compiled model says of itself.

    Raises:
        ModelError: the device that is named first computes nothing, or another than was named does.
    """
    named = [part.name for part in target.parts]
    really = [str(name).strip("()") for name in compiled.get_property("EXECUTION_DEVICES")]
    if not any(_same(named[0], name) for name in really):
        raise ModelError(f"{candidate.device}: {named[0]} computes nothing, {', '.join(really)} all of it")
    if strange := [name for name in really if not any(_same(one, name) for one in named)]:
        raise ModelError(f"{candidate.device}: computes on {', '.join(strange)} instead")
    nodes = [op.get_friendly_name() for op in model.get_ops() if op.get_type_name() not in _NO_NODES]
    partition = {really[0]: len(nodes)}
    if len(really) > 1:
        by_node = core.query_model(model, target.name)
        owners = [str(by_node.get(name, "")) for name in nodes]
        partition = {name: owners.count(name) for name in really} if set(owners) == set(really) else {}
    return Report(
        device=",".join(really),
        precision=candidate.precision,
        threads=candidate.threads,
        partition=partition,
        detail=f"OpenVINO {_version(openvino)}, computes in {_computes_in(compiled, really)}",
    )


def _same(named: str, really: str) -> bool:
    return really == named or really.startswith(named + ".")


def _computes_in(compiled: Any, really: Sequence[str]) -> str:
    """The precision of the kernels, of each device when there are several."""
    if "INFERENCE_PRECISION_HINT" in compiled.get_property("SUPPORTED_PROPERTIES"):
        return str(compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name())
    each = compiled.get_property("DEVICE_PROPERTIES") if len(really) else {}
    found = [each.get(name, {}).get("INFERENCE_PRECISION_HINT") for name in really]
    return ", ".join("?" if one is None else str(one.get_type_name()) for one in found)


class OpenvinoRunner:
    """One infer request whose input tensors are written in place."""

    def __init__(self, compiled: Any, variant: Variant, candidate: Candidate, report: Report, weights: Any) -> None:
        self.description = str(candidate)
        self._report = report
        self._weights = weights
        self._request = compiled.create_infer_request()
        self._inputs = [
            self._request.get_tensor(port).data for port in _ports(compiled.inputs, variant.inputs, variant)
        ]
        self._outputs = [
            self._request.get_tensor(port).data for port in _ports(compiled.outputs, variant.outputs, variant)
        ]
        self._shapes = [place.shape for place in self._inputs]
        self._marks = [_Mark(place.reshape(-1)[:1]) for place in self._outputs if place.size]
        for place in self._inputs:
            place[...] = 0
        self._infer()  # a device that compiles may still fail here

    def __call__(self, inputs: Sequence[Array]) -> Sequence[Array]:
        try:
            for place, shape, x in zip(self._inputs, self._shapes, inputs, strict=True):
                np.copyto(place, x if x.shape == shape else x.reshape(shape), "same_kind")
            self._infer()
        except _FAULTS as error:
            raise ModelError(f"OpenVINO failed: {_line(error)}") from error
        return self._outputs

    def _infer(self) -> None:
        """Compute; raise what the device raises.

        With one thread OpenVINO 2026.4 loses the exceptions of `infer()`, and the outputs are those of the run before.
        `start_async()` and `wait()` lose none but cost 60 us more, so they only have the last word where an output was
        not written.
        """
        for mark in self._marks:
            mark.set()
        self._request.infer()
        if any(mark.stands() for mark in self._marks):
            self._request.start_async()
            self._request.wait()

    def report(self) -> Report:
        """The devices as OpenVINO says after compiling, with their shares of the graph."""
        return self._report


class _Mark:
    """The first number of an output, made one that hardly any model answers: whether it still stands after a run."""

    def __init__(self, first: Array) -> None:
        self._first = first
        self._value = (
            np.nan if first.dtype.kind == "f" else np.iinfo(first.dtype).min if first.dtype.kind in "iu" else 0
        )

    def set(self) -> None:
        self._first[0] = self._value

    def stands(self) -> bool:
        found = self._first[0]
        return bool(found == self._value or found != found)


def _ports(ports: Sequence[Any], names: Sequence[str], variant: Variant) -> list[Any]:
    if not names:
        return list(ports)
    by_name = {name: port for port in ports for name in port.get_names()}
    for name in names:
        if name not in by_name:
            raise ModelError(
                f"{variant.file} has no tensor {name}",
                hint=f"mend the variant's names; there are: {', '.join(sorted(by_name))}",
            )
    return [by_name[name] for name in names]


def _version(openvino: Any) -> str:
    return str(openvino.__version__).partition("-")[0]


def _line(error: Exception) -> str:
    """The last line that says something: OpenVINO puts its source files first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
