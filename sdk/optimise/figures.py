"""What an evaluation found, in a file that the report reads: build/models/NAME/figures.json."""

from __future__ import annotations

from pathlib import Path

import msgspec

from gateway.errors import ModelError
from gateway.infer.manifest import Precision
from sdk.registry import write_atomic

FILE = "figures.json"


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One variant on one runtime, on the test split.

    Attributes:
        stage: `base`, `pruned` or `int8`; a model that is fetched has no `pruned`.
        size: bytes of its files.
        macs: multiplications with additions for one input.
        metrics: by name.
        latency_us: one input through the runtime alone, one thread.
    """

    stage: str
    file: str
    precision: Precision
    backend: str
    size: int
    macs: int
    metrics: dict[str, float]
    latency_us: float = 0.0

    def timed(self, us: float) -> Figure:
        return msgspec.structs.replace(self, latency_us=us)


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """All of a model.

    Attributes:
        bundle: its digest.
        headline: the metrics that the report draws, the first of them in the Pareto front.
    """

    model: str
    bundle: str
    bundle_bytes: int
    headline: tuple[str, ...]
    figures: tuple[Figure, ...]

    def write(self, folder: Path) -> None:
        write_atomic(folder / FILE, msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n")


def read(folder: Path) -> Figures:
    """Raises `ModelError`: there are none, or not in this form."""
    path = folder / FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Figures)
    except (OSError, msgspec.DecodeError) as error:
        raise ModelError(f"{path}: no figures: {error}", hint="./inv models.evaluate NAME writes them") from error
