"""ONNX models on ONNX Runtime: its CPU, and whatever execution provider the installed build or a plug-in offers."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gateway.errors import ModelError
from gateway.infer import device as words
from gateway.infer.backend import Device, Source
from gateway.infer.candidate import CPU, Candidate, Report
from gateway.infer.device import Provider
from gateway.infer.manifest import Variant
from gateway.infer.steps import Array

_TYPES = {
    "tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8, "tensor(int8)": np.int8, "tensor(int32)": np.int32, "tensor(int64)": np.int64,
}  # fmt: skip
_CPU_PROVIDER = "CPUExecutionProvider"
_REMOTE = "AzureExecutionProvider"  # in every build; it asks a service on the internet
_OPENVINO = "OpenVINOExecutionProvider"
# provider -> the package that brings its plug-in along
_PLUGIN_PACKAGES = {_OPENVINO: ("onnxruntime_ep_openvino", "libonnxruntime_providers_openvino_plugin.so")}
# bytes of all tensors up to which copying into preset ones is cheaper than making and binding new ones
_PRESET_MAX = 64 << 10
# Input x float32 [1], output y = Relu(x): the smallest model that shows whether a provider comes up at all.
_PROBE = bytes.fromhex(
    "08083a36120474696e790a0c0a0178120179220452656c755a0f0a0178120a0a"
    "08080112040a020801620f0a0179120a0a08080112040a0208014202100d"
)
_registered: dict[str, str] = {}  # plug-in's library -> why it did not load; ONNX Runtime keeps them for the process


def devices(extra: Sequence[str]) -> list[Device]:
    """The CPU, what this build offers, and the providers of the config, each tried once; see `backend.Backend`."""
    try:
        import onnxruntime
    except ImportError as error:
        return [Device(name, f"ONNX Runtime is not usable: {error}") for name in (CPU, *extra)]
    offered = [name for name in onnxruntime.get_available_providers() if name not in (_CPU_PROVIDER, _REMOTE)]
    found = [Device(CPU)]
    for word in dict.fromkeys((*offered, *extra)):
        try:
            found += _devices_of(onnxruntime, word)
        except ModelError as error:
            found.append(Device(word, str(error)))
    return found


def _devices_of(ort: Any, word: str) -> list[Device]:
    provider = words.provider(word)
    wanted = [provider]
    if not provider.kind and provider.name not in ort.get_available_providers():
        kinds = [one.device.type.name for one in _plugin_devices(ort, provider)]
        wanted = [provider._replace(kind=kind) for kind in kinds] if len(kinds) > 1 else wanted
    probe = Variant(file="probe", format="onnx", precision="fp32")
    found = []
    for one in wanted:
        candidate = Candidate(backend="onnx", file="probe", precision="fp32", device=str(one))
        try:
            _session(ort, Source(probe, _PROBE), candidate)
            found.append(Device(str(one)))
        except ModelError as error:
            found.append(Device(str(one), str(error)))
    return found


def load(source: Source, candidate: Candidate) -> OnnxRunner:
    """A session on the named provider, with the CPU for the nodes it does not take; see `backend.Backend`."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ModelError(
            f"ONNX Runtime is not usable: {error}", hint="install the extra: pip install 'octogate[onnx]'"
        ) from error
    session = _session(onnxruntime, source, candidate)
    report = _report(onnxruntime, session, candidate)
    name = _CPU_PROVIDER if candidate.device == CPU else words.provider(candidate.device).name
    if report.partition and not report.partition.get(name):
        raise ModelError(
            f"{candidate.device} takes none of the {sum(report.partition.values())} nodes of {source.variant.file}",
            hint="it would compute on the CPU alone; pack a variant that it takes",
        )
    return OnnxRunner(session, source.variant, candidate, report)


def _session(ort: Any, source: Source, candidate: Candidate) -> Any:
    """A session that really has the provider; ONNX Runtime alone would fall back to the CPU with a warning."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = candidate.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # spinning threads starve the other workers of a small machine, and the daemon
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    name = _CPU_PROVIDER
    if candidate.device != CPU:
        provider = words.provider(candidate.device)
        name = provider.name
        if name == _REMOTE:
            raise ModelError(f"{name} computes on a service on the internet", hint="name a provider of this machine")
    try:
        if name in ort.get_available_providers():
            order = list(dict.fromkeys((name, _CPU_PROVIDER)))
            session = ort.InferenceSession(source.model, options, providers=order, enable_fallback=0)
        else:
            _add_plugin(ort, options, provider, candidate)
            session = ort.InferenceSession(source.model, options, enable_fallback=0)
        session.disable_fallback()  # at run time
    except _faults() as error:
        raise ModelError(f"ONNX Runtime {ort.__version__} does not take it: {_first_line(error)}") from error
    if name not in session.get_providers():
        raise ModelError(
            f"{name} did not come up: ONNX Runtime {ort.__version__} has only {', '.join(session.get_providers())}",
            hint="are its driver and libraries installed, and its device there?",
        )
    return session


def _add_plugin(ort: Any, options: Any, provider: Provider, candidate: Candidate) -> None:
    found = _plugin_devices(ort, provider)
    if len(found) > 1:
        kinds = ", ".join(f"{provider.name}:{one.device.type.name}" for one in found)
        raise ModelError(f"{provider.name} has several devices here", hint=f"name one: {kinds}")
    settings = {}
    if provider.name == _OPENVINO:
        hints = {} if candidate.precision != "fp32" else {"INFERENCE_PRECISION_HINT": "f32"}
        if found[0].device.type.name == CPU:
            hints["INFERENCE_NUM_THREADS"] = str(candidate.threads)
        settings["load_config"] = json.dumps({found[0].device.type.name: hints})
    options.add_provider_for_devices(found, settings)


def _plugin_devices(ort: Any, provider: Provider) -> list[Any]:
    """The devices that a plug-in offers, one of each kind; never empty.

    Raises:
        ModelError: there is no such plug-in, it does not load, or it has no device here.
    """
    if not hasattr(ort, "get_ep_devices"):
        raise ModelError(f"ONNX Runtime {ort.__version__} here is built without {provider.name}, and takes no plug-ins")
    library = provider.library or _packaged(provider.name)
    if library:
        _register(ort, library)
    named = [one for one in ort.get_ep_devices() if one.ep_name == provider.name]
    if not named and not library:
        raise ModelError(
            f"ONNX Runtime {ort.__version__} here is built without {provider.name}",
            hint="install a build that has it, or name its plug-in: NAME=/path/of/its/library.so",
        )
    by_kind = {one.device.type.name: one for one in reversed(named) if provider.kind in ("", one.device.type.name)}
    if not by_kind:
        raise ModelError(
            f"{provider.name}: its plug-in loads, but takes no {provider.kind or 'device'} of this machine",
            hint="Intel's takes devices by Intel only, processors included" if provider.name == _OPENVINO else "",
        )
    return list(by_kind.values())


def _register(ort: Any, library: str) -> None:
    if library not in _registered:
        try:
            ort.register_execution_provider_library(library, library)
            _registered[library] = ""
        except _faults() as error:
            _registered[library] = _first_line(error)
    if _registered[library]:
        raise ModelError(f"the plug-in {library} does not load: {_registered[library]}")


def _packaged(name: str) -> str:
    """Where an installed package has the plug-in of a provider; empty when there is none."""
    package, file = _PLUGIN_PACKAGES.get(name, ("", ""))
    spec = importlib.util.find_spec(package) if package else None
    return str(Path(spec.origin).with_name(file)) if spec and spec.origin else ""


def _report(ort: Any, session: Any, candidate: Candidate) -> Report:
    partition: dict[str, int] = {}
    # builds of vendors are often too old to tell
    tell = getattr(session, "get_provider_graph_assignment_info", list)
    for part in tell():
        partition[part.ep_name] = partition.get(part.ep_name, 0) + len(part.get_nodes())
    return Report(
        device=candidate.device,
        precision=candidate.precision,
        threads=candidate.threads,
        partition=partition,
        detail=f"ONNX Runtime {ort.__version__} with {', '.join(session.get_providers())}",
    )


class OnnxRunner:
    """One session with the tensors' names and types looked up once."""

    def __init__(self, session: Any, variant: Variant, candidate: Candidate, report: Report) -> None:
        self.description = str(candidate)
        self._report = report
        self._session = session
        self._faults = _faults()
        nodes = {node.name: node for node in session.get_inputs()}
        results = {node.name: node for node in session.get_outputs()}
        self._inputs = list(variant.inputs) or list(nodes)
        self._outputs = list(variant.outputs) or list(results)
        missing = [name for name in self._inputs if name not in nodes]
        missing += [name for name in self._outputs if name not in results]
        if missing:
            raise ModelError(f"{variant.file} has no tensor {missing[0]}", hint="mend the variant's tensor names")
        self._dtypes = [np.dtype(_TYPES.get(nodes[name].type, np.float32)) for name in self._inputs]
        self._preset: _Preset | None = None
        if candidate.device == CPU:
            self._preset = _preset(session, [nodes[n] for n in self._inputs], [results[n] for n in self._outputs])

    def __call__(self, inputs: Sequence[Array]) -> Sequence[Array]:
        try:
            if self._preset is not None:
                return self._preset(inputs)
            feed = {
                name: x.astype(dtype, copy=False)
                for name, dtype, x in zip(self._inputs, self._dtypes, inputs, strict=True)
            }
            outputs: list[Array] = self._session.run(self._outputs, feed)
        except self._faults as error:
            raise ModelError(f"ONNX Runtime failed: {_first_line(error)}") from error
        return outputs

    def report(self) -> Report:
        """Nodes by execution provider; empty where the build is too old to tell."""
        return self._report


class _Preset:
    """Inputs and outputs at fixed places, bound once: a third less overhead a run, which tiny models are made of."""

    def __init__(self, session: Any, inputs: dict[str, Array], outputs: dict[str, Array]) -> None:
        self._session = session
        self._binding = session.io_binding()
        self._inputs = list(inputs.values())
        self._outputs = list(outputs.values())
        for bind, arrays in ((self._binding.bind_input, inputs), (self._binding.bind_output, outputs)):
            for name, array in arrays.items():
                bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)

    def __call__(self, inputs: Sequence[Array]) -> Sequence[Array]:
        for place, x in zip(self._inputs, inputs, strict=True):
            if x.shape != place.shape:  # it would be broadcast
                raise ValueError(f"an input of shape {x.shape}, not {place.shape}")
            place[...] = x
        self._session.run_with_iobinding(self._binding)
        return self._outputs


def _preset(session: Any, inputs: Sequence[Any], outputs: Sequence[Any]) -> _Preset | None:
    """Preset tensors, where shapes and types are known beforehand and the tensors are small."""
    nodes = (*inputs, *outputs)
    if not all(node.type in _TYPES and all(isinstance(n, int) for n in node.shape) for node in nodes):
        return None
    if sum(math.prod(node.shape) * np.dtype(_TYPES[node.type]).itemsize for node in nodes) > _PRESET_MAX:
        return None
    arrays = [{node.name: np.zeros(node.shape, _TYPES[node.type]) for node in side} for side in (inputs, outputs)]
    preset = _Preset(session, *arrays)
    try:
        preset(list(arrays[0].values()))
    except _faults():  # the outputs' shapes are only what the file says of itself
        return None
    return preset


def _faults() -> tuple[type[Exception], ...]:
    """What the runtime raises: its own exceptions have no common base but Exception."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoModel", "NoSuchFile",
             "NotImplemented", "RuntimeException", "EngineError", "EPFail", "ModelLoaded")  # fmt: skip
    own = tuple(getattr(state, name) for name in names if hasattr(state, name))
    return (*own, RuntimeError, ValueError, TypeError)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:300]
