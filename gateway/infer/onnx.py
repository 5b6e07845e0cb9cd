"""ONNX models on ONNX Runtime, CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gateway.errors import ModelError
from gateway.infer.backend import Device, Source
from gateway.infer.candidate import CPU, Candidate, Report
from gateway.infer.manifest import Variant
from gateway.infer.steps import Array

_TYPES = {
    "tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8, "tensor(int8)": np.int8, "tensor(int32)": np.int32, "tensor(int64)": np.int64,
}  # fmt: skip


def devices(extra: Sequence[str]) -> list[Device]:
    """The CPU and each execution provider of the config; see `backend.Backend`."""
    try:
        import onnxruntime
    except ImportError as error:
        return [Device(name, f"ONNX Runtime is not usable: {error}") for name in (CPU, *extra)]
    offered = onnxruntime.get_available_providers()
    return [Device(CPU)] + [
        Device(name, "" if name in offered else f"ONNX Runtime {onnxruntime.__version__} here is built without it")
        for name in extra
    ]


def load(source: Source, candidate: Candidate) -> OnnxRunner:
    """A session on the CPU; see `backend.Backend`."""
    if candidate.device != CPU:
        raise ModelError(f"ONNX Runtime has no device {candidate.device} here", hint="leave device out")
    try:
        import onnxruntime
    except ImportError as error:
        raise ModelError(
            f"ONNX Runtime is not usable: {error}", hint="install the extra: pip install 'octogate[onnx]'"
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = candidate.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # spinning threads starve the other workers of a small machine, and the daemon
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    faults = _faults()
    try:
        session = onnxruntime.InferenceSession(source.model, options, providers=["CPUExecutionProvider"])
        return OnnxRunner(session, source.variant, candidate, faults)
    except faults as error:
        raise ModelError(f"ONNX Runtime {onnxruntime.__version__} does not take it: {_first_line(error)}") from error


class OnnxRunner:
    """One session with the tensors' names and types looked up once."""

    def __init__(
        self, session: Any, variant: Variant, candidate: Candidate, faults: tuple[type[Exception], ...]
    ) -> None:
        self.description = str(candidate)
        self._report = _report(session, candidate)
        self._session = session
        self._faults = faults
        nodes = {node.name: node for node in session.get_inputs()}
        self._inputs = list(variant.inputs) or list(nodes)
        self._outputs = list(variant.outputs) or [node.name for node in session.get_outputs()]
        missing = [name for name in self._inputs if name not in nodes]
        missing += [name for name in self._outputs if name not in {n.name for n in session.get_outputs()}]
        if missing:
            raise ModelError(f"{variant.file} has no tensor {missing[0]}", hint="mend the variant's tensor names")
        self._dtypes = [np.dtype(_TYPES.get(nodes[name].type, np.float32)) for name in self._inputs]

    def __call__(self, inputs: Sequence[Array]) -> Sequence[Array]:
        feed = {
            name: x.astype(dtype, copy=False) for name, dtype, x in zip(self._inputs, self._dtypes, inputs, strict=True)
        }
        try:
            outputs: list[Array] = self._session.run(self._outputs, feed)
        except self._faults as error:
            raise ModelError(f"ONNX Runtime failed: {_first_line(error)}") from error
        return outputs

    def report(self) -> Report:
        """Nodes by execution provider."""
        return self._report


def _report(session: Any, candidate: Candidate) -> Report:
    import onnxruntime

    partition: dict[str, int] = {}
    for part in session.get_provider_graph_assignment_info():
        partition[part.ep_name] = partition.get(part.ep_name, 0) + len(part.get_nodes())
    return Report(
        device=candidate.device,
        precision=candidate.precision,
        threads=candidate.threads,
        partition=partition,
        detail=f"ONNX Runtime {onnxruntime.__version__}",
    )


def _faults() -> tuple[type[Exception], ...]:
    """What the runtime raises: its own exceptions have no common base but Exception."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoModel", "NoSuchFile",
             "NotImplemented", "RuntimeException", "EngineError", "EPFail", "ModelLoaded")  # fmt: skip
    own = tuple(getattr(state, name) for name in names if hasattr(state, name))
    return (*own, RuntimeError, ValueError, TypeError)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:300]
