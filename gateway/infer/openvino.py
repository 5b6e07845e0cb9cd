"""OpenVINO IR, ONNX and TFLite models on OpenVINO, on a device named explicitly: AUTO would hide what computes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gateway.errors import ModelError
from gateway.infer.backend import Device, Source
from gateway.infer.candidate import CPU, Candidate, Report
from gateway.infer.manifest import Variant
from gateway.infer.steps import Array

_FAULTS = (RuntimeError, ValueError, TypeError)


def devices(extra: Sequence[str]) -> list[Device]:
    """The devices that OpenVINO lists, and those of the config; see `backend.Backend`."""
    try:
        import openvino
    except ImportError as error:
        return [Device(name, f"OpenVINO is not usable: {error}") for name in (CPU, *extra)]
    listed = openvino.Core().available_devices
    found = [Device(name) for name in dict.fromkeys((CPU, *listed))]
    return found + [Device(name, "OpenVINO lists no such device") for name in extra if name not in listed]


def load(source: Source, candidate: Candidate) -> OpenvinoRunner:
    """A compiled model with preset tensors; see `backend.Backend`."""
    try:
        import openvino
    except ImportError as error:
        raise ModelError(
            f"OpenVINO is not usable: {error}", hint="install the extra: pip install 'octogate[openvino]'"
        ) from error
    core = openvino.Core()
    settings: dict[str, object] = {"INFERENCE_NUM_THREADS": candidate.threads} if candidate.device == "CPU" else {}
    # the default is bf16 where the processor has it: 3e-3 off, and slower
    settings["INFERENCE_PRECISION_HINT"] = "f32"
    try:
        model = core.read_model(source.model, source.weights) if source.weights else core.read_model(source.model)
        return OpenvinoRunner(core.compile_model(model, candidate.device, settings), source.variant, candidate)
    except _FAULTS as error:
        raise ModelError(
            f"OpenVINO {openvino.__version__.partition('-')[0]} does not take it: {_line(error)}"
        ) from error


class OpenvinoRunner:
    """One infer request whose input tensors are written in place."""

    def __init__(self, compiled: Any, variant: Variant, candidate: Candidate) -> None:
        self.description = str(candidate)
        devices = [str(name) for name in compiled.get_property("EXECUTION_DEVICES")]
        self._report = Report(
            device=",".join(devices),
            precision=candidate.precision,
            threads=candidate.threads,
            partition={},
            detail="OpenVINO",
        )
        self._request = compiled.create_infer_request()
        self._inputs = [
            self._request.get_tensor(port).data for port in _ports(compiled.inputs, variant.inputs, variant)
        ]
        self._outputs = [
            self._request.get_tensor(port).data for port in _ports(compiled.outputs, variant.outputs, variant)
        ]

    def __call__(self, inputs: Sequence[Array]) -> Sequence[Array]:
        try:
            for target, x in zip(self._inputs, inputs, strict=True):
                np.copyto(target, x.reshape(target.shape), casting="same_kind")
            self._request.infer()
        except _FAULTS as error:
            raise ModelError(f"OpenVINO failed: {_line(error)}") from error
        return self._outputs

    def report(self) -> Report:
        """The devices as OpenVINO says after compiling."""
        return self._report


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


def _line(error: Exception) -> str:
    """The last line that says something: OpenVINO puts its source files first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
