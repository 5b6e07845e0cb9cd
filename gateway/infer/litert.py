"""TFLite models on LiteRT (ai-edge-litert), or on tflite-runtime where only that is installed; CPU and delegates."""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
from collections.abc import Sequence
from typing import Any

import numpy as np

from gateway.errors import ModelError
from gateway.infer import device as words
from gateway.infer.backend import Device, Source
from gateway.infer.candidate import CPU, Candidate, Report
from gateway.infer.manifest import Variant
from gateway.infer.steps import Array

_RUNTIMES = ("ai_edge_litert.interpreter", "tflite_runtime.interpreter")
_FAULTS = (RuntimeError, ValueError, TypeError)
_TAKEN = "DELEGATE"  # the name of a node that stands for those a delegate has taken
# tflite-runtime beside NumPy 2: SystemError, when something is constructed
_UNUSABLE = (ImportError, AttributeError, SystemError, *_FAULTS)
# One float tensor, input and output at once, and no node: the smallest model.
_PROBE = bytes.fromhex(
    "1800000054464c3300000e00140010000c000800000004000e000000700000000c000000100000000300000001000000"
    "14000000000000000c00140010000c00080004000c000000100000001000000014000000180000000000000001000000"
    "000000000100000000000000010000000c00000000000600080004000600000004000000010000000100000001000000"
    "080000000400040004000000"
)


def devices(extra: Sequence[str]) -> list[Device]:
    """The CPU, and each delegate of the config, opened once; see `backend.Backend`."""
    try:
        module = _runtime()
    except ModelError as error:
        return [Device(name, error.what) for name in (CPU, *extra)]
    found = [Device(CPU)]
    for library in dict.fromkeys(extra):
        try:
            _delegate(module, library)
            found.append(Device(library))
        except ModelError as error:
            found.append(Device(library, str(error)))
    return found


def load(source: Source, candidate: Candidate) -> LitertRunner:
    """An interpreter of the first runtime that really constructs one; see `backend.Backend`."""
    module = _runtime()
    if candidate.device != CPU:
        return _load_delegated(module, source, candidate)
    try:
        interpreter = module.Interpreter(model_content=source.model, num_threads=candidate.threads)
        interpreter.allocate_tensors()
    except _FAULTS as error:
        raise ModelError(f"{_package(module)} does not take it: {_first_line(error)}") from error
    partition = _partition(interpreter, "XNNPACK", "kernels")
    return LitertRunner(interpreter, source.variant, candidate, _package(module), partition)


def _load_delegated(module: Any, source: Source, candidate: Candidate) -> LitertRunner:
    """An interpreter with the delegate alone, so that what it takes can be told from what XNNPACK would take.

    The nodes it leaves are computed by the runtime's own kernels.
    """
    delegate = _delegate(module, candidate.device)
    try:
        interpreter = module.Interpreter(
            model_content=source.model,
            num_threads=candidate.threads,
            experimental_delegates=[delegate],
            experimental_op_resolver_type=module.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        )
        interpreter.allocate_tensors()
    except _FAULTS as error:
        raise ModelError(f"{candidate.device} does not take it: {_first_line(error)}") from error
    partition = _partition(interpreter, candidate.device, "kernels")
    if not partition.get(candidate.device):
        raise ModelError(
            f"{candidate.device} takes none of the {sum(partition.values())} nodes of {source.variant.file}",
            hint="it would compute on the CPU alone; was the model compiled for this device?",
        )
    return LitertRunner(interpreter, source.variant, candidate, _package(module), partition)


def _runtime() -> Any:
    """The first runtime that really constructs an interpreter.

    Raises:
        ModelError: none does, with the reason of each.
    """
    reasons = []
    for name in _RUNTIMES:
        try:
            module = importlib.import_module(name)
            # constructing is the probe: tflite-runtime imports beside NumPy 2 and breaks only here
            module.Interpreter(model_content=_PROBE).allocate_tensors()
        except _UNUSABLE as error:
            reasons.append(f"{name.partition('.')[0]}: {_first_line(error)}")
        else:
            return module
    raise ModelError("; ".join(reasons), hint="install the extra: pip install 'octogate[litert]'")


def _delegate(module: Any, library: str) -> Any:
    """A delegate, which lives as long as this object and whoever was given it.

    Raises:
        ModelError: no such library, no delegate in it, or its device is not there.
    """
    words.delegate(library)
    try:
        # looked at beforehand: the runtime's own class complains once more, unheard, when it is torn down half made
        ctypes.PyDLL(library).tflite_plugin_create_delegate  # noqa: B018
    except (OSError, AttributeError) as error:
        raise ModelError(
            f"no delegate {library}: {_first_line(error)}", hint="install its runtime, or mend inference.delegates"
        ) from error
    try:
        return module.load_delegate(library)
    except _FAULTS as error:
        why = " ".join(str(error).split())[:300]
        raise ModelError(f"delegate {library} has no device: {why}", hint="is it plugged in?") from error


def _package(module: Any) -> str:
    return str(module.__name__).partition(".")[0]


def _partition(interpreter: Any, delegate: str, otherwise: str) -> dict[str, int]:
    """Nodes by who computes them. The runtime lists the model's nodes, then one for each part that was taken.

    A part names the tensors that go in and come out; what it replaces is all that lies between them.
    """
    tell = getattr(interpreter, "_get_ops_details", list)
    nodes = [(str(op["op_name"]), [*map(int, op["inputs"])], [*map(int, op["outputs"])]) for op in tell()]
    makers = {tensor: i for i, (name, _, made) in enumerate(nodes) if name != _TAKEN for tensor in made}
    taken: set[int] = set()
    for name, given, made in nodes:
        if name != _TAKEN:
            continue
        open_ends = [tensor for tensor in made if tensor in makers]
        while open_ends:
            maker = makers[open_ends.pop()]
            if maker not in taken:
                taken.add(maker)
                open_ends += [t for t in nodes[maker][1] if t in makers and t not in given]
    own = sum(name != _TAKEN for name, _, _ in nodes)
    return {name: n for name, n in ((delegate, len(taken)), (otherwise, own - len(taken))) if n}


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:300]


class _Port:
    """One input or output tensor: index, and how its integers stand for numbers (0 means they do not)."""

    def __init__(self, detail: dict[str, Any]) -> None:
        self.index: int = detail["index"]
        self.dtype = np.dtype(detail["dtype"])
        self.shape = tuple(int(n) for n in detail["shape"])
        scale, zero = detail["quantization"]
        self.scale = float(scale)
        self.zero = int(zero)

    def quantise(self, x: Array) -> Array:
        if x.dtype == self.dtype:
            return x
        if not self.scale:
            return x.astype(self.dtype)
        limits = np.iinfo(self.dtype)
        whole = np.rint(x / self.scale) + self.zero
        return np.asarray(np.clip(whole, limits.min, limits.max), self.dtype)

    def dequantise(self, x: Array) -> Array:
        if not self.scale or self.dtype.kind == "f":
            return x
        return np.asarray((x.astype(np.float32) - self.zero) * np.float32(self.scale))


class LitertRunner:
    """Integer tensors are quantised and dequantised here, so that the steps see the same numbers for each variant."""

    def __init__(
        self, interpreter: Any, variant: Variant, candidate: Candidate, package: str, partition: dict[str, int]
    ) -> None:
        # who reads the description must see which of the two it was
        self.description = str(candidate).replace("litert", "litert" if package == "ai_edge_litert" else "tflite", 1)
        name = package.replace("_", "-")
        self._report = Report(
            device=candidate.device,
            precision=candidate.precision,
            threads=candidate.threads,
            partition=partition,
            detail=f"{name} {importlib.metadata.version(name)}",
        )
        self._interpreter = interpreter
        self._inputs = _ports(interpreter.get_input_details(), variant.inputs, variant.file)
        self._outputs = _ports(interpreter.get_output_details(), variant.outputs, variant.file)

    def __call__(self, inputs: Sequence[Array]) -> Sequence[Array]:
        try:
            for port, x in zip(self._inputs, inputs, strict=True):
                self._interpreter.set_tensor(port.index, port.quantise(x))
            self._interpreter.invoke()
            return [port.dequantise(self._interpreter.get_tensor(port.index)) for port in self._outputs]
        except _FAULTS as error:
            raise ModelError(f"LiteRT failed: {_first_line(error)}") from error

    def report(self) -> Report:
        """Nodes by delegate: XNNPACK is the one that comes along for the CPU, `kernels` are the plain ones."""
        return self._report


def _ports(details: list[dict[str, Any]], names: Sequence[str], file: str) -> list[_Port]:
    if not names:
        return [_Port(detail) for detail in details]
    by_name = {detail["name"]: detail for detail in details}
    for name in names:
        if name not in by_name:
            raise ModelError(
                f"{file} has no tensor {name}", hint=f"mend the variant's names; there are: {', '.join(by_name)}"
            )
    return [_Port(by_name[name]) for name in names]
