"""What can compute a model: one variant, on one runtime and device, with so many threads.

Light to import: the daemon ranks candidates and hands them to its workers; only these load a runtime.
"""

from __future__ import annotations

import msgspec

from gateway.errors import ModelError
from gateway.infer.manifest import Manifest, Precision, Variant

CPU = "CPU"

# format of a variant -> the backends that take it, in the order in which they are tried while nothing is measured
BACKENDS: dict[str, tuple[str, ...]] = {
    "onnx": ("onnx", "openvino"),
    "tflite": ("litert",),  # OpenVINO reads TFLite from a path only
    "openvino": ("openvino",),
}
NAMES = tuple(sorted({name for names in BACKENDS.values() for name in names}))


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """One way to compute a model.

    Attributes:
        backend: a module of this package: `onnx`, `litert`, `openvino`.
        file: the variant's member in the bundle.
        device: `CPU`, or the backend's own word for another: an execution provider of ONNX Runtime, a device of
            OpenVINO (`NPU`, `GPU.0`, `HETERO:NPU,CPU`), a delegate's library for LiteRT.
        threads: of the runtime on the CPU.
    """

    backend: str
    file: str
    precision: Precision
    device: str = CPU
    threads: int = 1

    def __str__(self) -> str:
        where = "" if self.device == CPU else f" {self.device}"
        return f"{self.backend} {self.precision}{where} x{self.threads}"


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a loaded model really runs on, as its runtime says after loading; not what was asked for.

    Attributes:
        device: where it computes: `CPU`, an execution provider, an OpenVINO device (several with commas), a delegate.
        precision: of the variant's file.
        threads: of the runtime on the CPU.
        partition: nodes of the graph by the execution provider or device that computes them; empty where the runtime
            does not tell.
        detail: runtime with version, and what else it says, for people.
    """

    device: str
    precision: Precision
    threads: int
    partition: dict[str, int]
    detail: str = ""


def defaults(manifest: Manifest, *, backend: str = "", device: str = CPU, threads: int = 1) -> tuple[Candidate, ...]:
    """What is tried while nothing is measured: the variants in their author's order, each on its first runtimes.

    Args:
        backend: the only one to consider; empty considers all.

    Raises:
        ModelError: there is no such backend, or it takes none of the variants.
    """
    if backend and backend not in NAMES:
        raise ModelError(f"there is no backend '{backend}'", hint=f"known are: {', '.join(NAMES)}")
    found = tuple(
        Candidate(backend=name, file=variant.file, precision=variant.precision, device=device, threads=threads)
        for variant in manifest.variants
        for name in BACKENDS[variant.format]
        if backend in ("", name)
    )
    if not found:
        formats = ", ".join(sorted({variant.format for variant in manifest.variants}))
        raise ModelError(
            f"model '{manifest.name}': backend '{backend}' takes none of its variants ({formats})",
            hint="leave backend out, or pack a variant for it",
        )
    return found


def variant_of(manifest: Manifest, candidate: Candidate) -> Variant:
    """The variant that a candidate names.

    Raises:
        ModelError: the bundle has none of this name (any more).
    """
    for variant in manifest.variants:
        if variant.file == candidate.file:
            return variant
    raise ModelError(f"model '{manifest.name}' has no variant {candidate.file}", hint="measure its candidates again")
