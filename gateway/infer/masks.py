"""Segmentation: planes of a model to coarse masks of bounded size, and to the share of the picture that each covers."""

from __future__ import annotations

import numpy as np

from gateway.contract import Mask
from gateway.errors import ModelError
from gateway.infer.boxes import sigmoid
from gateway.infer.manifest import Segment
from gateway.infer.steps import Array
from gateway.result import MAX_MASK_BYTES


def planes(output: Array, spec: Segment) -> Array:
    """[classes, height, width] of the output, a leading batch axis of 1 ignored; a foreground may lack the class axis.

    Raises:
        ModelError: the output is no stack of planes.
    """
    x = output[0] if output.ndim == 4 or (output.ndim == 3 and output.shape[0] == 1) else output
    if x.ndim == 2:
        x = x[None]
    elif x.ndim == 3 and spec.layout == "nhwc":
        x = x.transpose(2, 0, 1)
    if x.ndim != 3 or not x.size:
        raise ModelError(f"'segment' needs one plane a class; the output is {list(output.shape)}")
    return sigmoid(x) if spec.sigmoid else x


def inner(x: Array, place: tuple[float, float, float, float]) -> Array:
    """The part of [classes, height, width] that holds the picture: what a letterbox added is cut off."""
    height, width = x.shape[1:]
    left, top = round(place[0] * width), round(place[1] * height)
    right, bottom = round((place[0] + place[2]) * width), round((place[1] + place[3]) * height)
    return x[:, top : max(bottom, top + 1), left : max(right, left + 1)]


def shares(x: Array, threshold: float) -> list[float]:
    """The share of the picture that each class covers: one plane by threshold, several by the largest."""
    if len(x) == 1:
        return [float((x[0] >= threshold).mean())]
    counts = np.bincount(x.argmax(axis=0).ravel(), minlength=len(x))
    return [float(n) for n in counts / counts.sum()]


def coarse(x: Array, side: int) -> Array:
    """[classes, height, width] averaged over blocks, so that the longer side has at most `side` cells."""
    height, width = x.shape[1:]
    block = -(-max(height, width) // side)
    if block == 1:
        return x
    rows, columns = np.arange(0, height, block), np.arange(0, width, block)
    summed = np.add.reduceat(np.add.reduceat(x, rows, axis=1, dtype=np.float64), columns, axis=2)
    # the last blocks may be smaller
    high = np.diff(rows, append=height)[:, None]
    wide = np.diff(columns, append=width)[None]
    return np.asarray(summed / (high * wide))


def masks(x: Array, labels: list[str], threshold: float, side: int) -> tuple[Mask, ...]:
    """One mask for each class that covers a cell; the grid gets coarser until each fits MAX_MASK_BYTES.

    Args:
        x: [classes, height, width]. labels: of the classes; an empty one is left out.
    """
    while True:
        small = coarse(x, side)
        grids = [small[0] >= threshold] if len(small) == 1 else [*_largest(small)]
        made = tuple(pack(label, grid) for label, grid in zip(labels, grids, strict=True) if label and grid.any())
        if all(len(mask.runs) <= MAX_MASK_BYTES for mask in made):
            return made
        side = max(1, side // 2)


def _largest(x: Array) -> Array:
    return np.asarray(x.argmax(axis=0) == np.arange(len(x))[:, None, None])


def pack(label: str, grid: Array) -> Mask:
    """A mask of a boolean [height, width]; see `Mask.runs`."""
    cells = grid.ravel()
    # where the cells change, the outside before the first included
    ends = np.flatnonzero(np.diff(cells, prepend=False, append=not cells[-1]))
    lengths = np.diff(ends, prepend=0)
    runs = bytearray()
    for length in lengths.tolist():
        while length > 0x7F:
            runs.append(length & 0x7F | 0x80)
            length >>= 7
        runs.append(length)
    return Mask(label, grid.shape[1], grid.shape[0], bytes(runs))
