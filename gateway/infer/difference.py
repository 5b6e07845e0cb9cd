"""How far two results are apart. Without NumPy: the daemon compares a shadow's answers by it."""

from __future__ import annotations

from operator import ne

from gateway.contract import Mask, Result
from gateway.errors import ModelError


def result_difference(a: Result, b: Result) -> float:
    """The largest difference of any score, coordinate, value or share of a mask's cells.

    Infinite when labels, names, texts or counts differ.
    """
    if _names(a) != _names(b):
        return float("inf")
    off = [abs(a.score - b.score)]
    off += [abs(p - q) for p, q in zip(a.characters, b.characters, strict=True)]
    off += [mask_difference(one, other) for one, other in zip(a.masks, b.masks, strict=True)]
    off += [result_difference(one, other) for one, other in zip(a.parts, b.parts, strict=True)]
    # a class that only one of them lists is at most as far off as its score is above nothing
    off += [abs(a.scores.get(k, 0.0) - b.scores.get(k, 0.0)) for k in a.scores.keys() | b.scores.keys()]
    off += [abs(a.values[key] - b.values[key]) for key in a.values]
    for one, other in zip(a.detections, b.detections, strict=True):
        if one.label != other.label:
            return float("inf")
        off.append(abs(one.score - other.score))
        off += [abs(getattr(one, side) - getattr(other, side)) for side in ("x0", "y0", "x1", "y1")]
    return max(off)


def _names(result: Result) -> tuple[object, ...]:
    """What must be the same."""
    shape = len(result.detections), len(result.characters), len(result.masks), len(result.parts)
    return result.label, result.text, result.values.keys(), shape


def mask_difference(a: Mask, b: Mask) -> float:
    """The share of cells that differ; infinite when the label or the grid does.

    Raises:
        ModelError: one of them is no mask.
    """
    if (a.label, a.width, a.height) != (b.label, b.width, b.height):
        return float("inf")
    try:
        one, other = a.cells(), b.cells()
    except ValueError as error:
        raise ModelError(f"a mask that cannot be compared: {error}", hint="pack the bundle again") from error
    different: int = sum(map(ne, one, other))
    return different / len(one)
