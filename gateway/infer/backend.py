"""What a runtime must offer, and the choice among those that are there."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from gateway.errors import ModelError
from gateway.infer.manifest import Manifest, Variant
from gateway.infer.steps import Array


class Runner(Protocol):
    """One loaded model. Calling it computes; the outputs may be overwritten by the next call.

    Raises:
        ModelError: the runtime or its device failed.
    """

    description: str  # "onnx fp32 x1": runtime, precision, threads

    def __call__(self, inputs: Sequence[Array]) -> Sequence[Array]: ...


class Backend(Protocol):
    """One runtime; a module with these two names is one."""

    FORMAT: str

    def load(self, model: bytes, variant: Variant, threads: int) -> Runner:
        """Load a model.

        Raises:
            ModelError: the runtime is not installed, or does not take this model.
        """


# name in the config -> module, in the order of preference for a format
_MODULES = {"onnx": "gateway.infer.onnx", "litert": "gateway.infer.litert"}
_FORMATS = {"onnx": ("onnx",), "tflite": ("litert",), "openvino": ()}


class Candidate(NamedTuple):
    """A variant that loaded, ready to be checked against the golden samples."""

    variant: Variant
    runner: Runner


def backend(name: str) -> Backend:
    """The module behind a name of the config.

    Raises:
        ModelError: there is none of this name.
    """
    if name not in _MODULES:
        raise ModelError(f"there is no backend '{name}'", hint=f"known are: {', '.join(_MODULES)}")
    module: Backend = importlib.import_module(_MODULES[name])
    return module


def candidates(
    manifest: Manifest,
    read: Callable[[str], bytes],
    *,
    wanted: str,
    threads: int,
    rejected: list[str],
) -> Iterator[Candidate]:
    """Load one variant after the other, in the manifest's order; why one was left out is added to `rejected`.

    Args:
        read: member name -> bytes.
        wanted: the only backend to consider; empty considers all.
    """
    if wanted:
        backend(wanted)
    for variant in manifest.variants:
        names: Iterable[str] = _FORMATS[variant.format]
        if wanted:
            names = [name for name in names if name == wanted]
        if not names:
            why = f"not for backend '{wanted}'" if wanted else f"no backend runs {variant.format} yet"
            rejected.append(f"{variant.file}: {why}")
        for name in names:
            try:
                runner = backend(name).load(read(variant.file), variant, threads)
            except ModelError as error:
                rejected.append(f"{variant.file}: {error}")
                continue
            yield Candidate(variant, runner)
