"""TFLite models on LiteRT (ai-edge-litert), or on tflite-runtime where only that is installed."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from gateway.errors import ModelError
from gateway.infer.backend import Device, Source
from gateway.infer.candidate import CPU, Candidate, Report
from gateway.infer.manifest import Variant
from gateway.infer.steps import Array

_RUNTIMES = ("ai_edge_litert.interpreter", "tflite_runtime.interpreter")
_FAULTS = (RuntimeError, ValueError, TypeError)


def devices(extra: Sequence[str]) -> list[Device]:
    """The CPU and each delegate of the config; see `backend.Backend`."""
    return [Device(CPU)] + [Device(name, "delegates are not loaded yet") for name in extra]


def load(source: Source, candidate: Candidate) -> LitertRunner:
    """An interpreter of the first runtime that really constructs one; see `backend.Backend`."""
    if candidate.device != CPU:
        raise ModelError(f"LiteRT has no device {candidate.device} here", hint="leave device out")
    reasons = []
    for name in _RUNTIMES:
        try:
            # constructing is the probe: tflite-runtime imports beside NumPy 2 and breaks only here
            module = importlib.import_module(name)
            interpreter = module.Interpreter(model_content=source.model, num_threads=candidate.threads)
            interpreter.allocate_tensors()
        except (ImportError, AttributeError, *_FAULTS) as error:
            reasons.append(f"{name.partition('.')[0]}: {str(error).partition(chr(10))[0][:300]}")
            continue
        return LitertRunner(interpreter, source.variant, candidate, name.partition(".")[0])
    raise ModelError("; ".join(reasons), hint="install the extra: pip install 'octogate[litert]'")


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

    def __init__(self, interpreter: Any, variant: Variant, candidate: Candidate, runtime: str) -> None:
        # who reads the description must see which of the two it was
        self.description = str(candidate).replace("litert", "litert" if runtime == "ai_edge_litert" else "tflite", 1)
        self._report = Report(
            device=candidate.device,
            precision=candidate.precision,
            threads=candidate.threads,
            partition={},
            detail=runtime,
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
            raise ModelError(f"LiteRT failed: {str(error).partition(chr(10))[0][:300]}") from error

    def report(self) -> Report:
        """The runtime in `detail`."""
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
