"""What an evaluation found, in a file that the report reads: figures.json, beside the bundle in its model's folder.

The bundle's digest is in it: figures of another bundle are stale, and are shown as such.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import msgspec

from gateway.errors import ModelError
from gateway.infer.manifest import Precision
from sdk.registry import write_atomic

FILE = "figures.json"


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One variant on one runtime.

    Attributes:
        stage: `base`, `pruned` or `int8`; a model that is fetched has no `pruned`.
        size: bytes of its files.
        macs: multiplications with additions for one input.
        metrics: by name.
        latency_us: one input through the runtime alone, one thread; 0 when it was not timed.
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
        split: of the data: an evaluation reads the test split, a build the validation split.
    """

    model: str
    bundle: str
    bundle_bytes: int
    headline: tuple[str, ...]
    figures: tuple[Figure, ...]
    split: Literal["test", "validation"] = "test"

    def write(self, folder: Path) -> None:
        write_atomic(folder / FILE, msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n")


def read(folder: Path) -> Figures:
    """Raises `ModelError`: there are none, or not in this form."""
    path = folder / FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Figures)
    except (OSError, msgspec.DecodeError) as error:
        raise ModelError(f"{path}: no figures: {error}", hint="./inv models.evaluate NAME writes them") from error


def nearest(folders: Iterable[Path], bundle: str) -> tuple[Figures | None, Figures | None]:
    """Those of this bundle, from the first folder that has them; and, without them, the first of another bundle.

    Args:
        bundle: its digest.
    """
    stale = None
    for folder in folders:
        try:
            found = read(folder)
        except ModelError:
            continue
        if found.bundle == bundle:
            return found, None
        stale = stale or found
    return None, stale
