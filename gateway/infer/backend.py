"""What a runtime must offer, and the loading of candidates on those that are there."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from gateway.errors import ModelError
from gateway.infer.candidate import NAMES, Candidate, Report, variant_of
from gateway.infer.manifest import Manifest, Variant
from gateway.infer.steps import Array


class Runner(Protocol):
    """One loaded model. Calling it computes; the outputs may be overwritten by the next call.

    Raises:
        ModelError: the runtime or its device failed.
    """

    description: str  # "onnx fp32 x1": what really computes: runtime, precision, device, threads

    def __call__(self, inputs: Sequence[Array]) -> Sequence[Array]: ...

    def report(self) -> Report:
        """What it runs on: read once, at loading."""
        ...


class Device(NamedTuple):
    """What a backend could compute on: a word for `Candidate.device`, and why not when it cannot here."""

    name: str
    why_not: str = ""


class Source(NamedTuple):
    """A variant's bytes. Weights may be a view into the bundle, which a runtime that can goes on reading from."""

    variant: Variant
    model: bytes
    weights: bytes | memoryview = b""  # the second file of an OpenVINO IR


class Backend(Protocol):
    """One runtime; a module with this name is one."""

    def load(self, source: Source, candidate: Candidate) -> Runner:
        """Load a model.

        Raises:
            ModelError: the runtime is not installed, has no such device, or does not take this model.
        """
        ...

    def devices(self, extra: Sequence[str]) -> list[Device]:
        """What could be computed on here, the CPU first; absent devices carry the reason, and nothing is raised.

        Loads the runtime and may open drivers, which can hang or crash: call it in a process that may be lost.

        Args:
            extra: the words of the config for this backend (`[inference]`), each of which gets its answer.
        """
        ...


class Loaded(NamedTuple):
    """A candidate that loaded, ready to be checked against the golden samples."""

    candidate: Candidate
    variant: Variant
    runner: Runner


def backend(name: str) -> Backend:
    """The module behind a name of the config.

    Raises:
        ModelError: there is none of this name.
    """
    if name not in NAMES:
        raise ModelError(f"there is no backend '{name}'", hint=f"known are: {', '.join(NAMES)}")
    module: Backend = importlib.import_module(f"gateway.infer.{name}")
    return module


def load(manifest: Manifest, read: Callable[[str], bytes | memoryview], candidate: Candidate) -> Loaded:
    """Load one candidate.

    Args:
        read: member name -> bytes; `Bundle.member` saves a copy of the weights.

    Raises:
        ModelError: see `Backend.load`.
    """
    variant = variant_of(manifest, candidate)
    weights = read(variant.weights) if variant.weights else b""
    source = Source(variant, bytes(read(variant.file)), weights)
    return Loaded(candidate, variant, backend(candidate.backend).load(source, candidate))


def load_each(
    manifest: Manifest,
    read: Callable[[str], bytes | memoryview],
    candidates: Iterable[Candidate],
    rejected: list[str],
) -> Iterator[Loaded]:
    """Load one candidate after the other; why one was left out is added to `rejected`."""
    for candidate in candidates:
        try:
            yield load(manifest, read, candidate)
        except ModelError as error:
            rejected.append(f"{candidate.file} on {candidate.backend}: {error}")
