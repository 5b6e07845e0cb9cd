"""Boxes: choosing, suppressing and merging them, and the decoding of detectors without anchors.

Boxes are corners x0, y0, x1, y1 as fractions of the model's input. GFL's decoding is that of NanoDet (Generalized Focal
Loss, Li et al. 2020), the grid's that of YOLOX (Ge et al. 2021), restated; suppression is by class and greedy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from gateway.contract import Region
from gateway.errors import ModelError
from gateway.infer.manifest import Gfl, Yolo
from gateway.infer.steps import Array, Float32

CANDIDATES = 1000  # the best of a picture; what suppression may have to compare
CONTAINED = 0.8  # of the smaller of two boxes: when tiles are merged, this much inside another is the same object
_BLOCK = 128
_EDGE = 0.01  # of a tile: a box that ends so near to it may be cut off there


class Found(NamedTuple):
    """Boxes [k, 4], scores [k] and classes [k], best first."""

    boxes: Float32
    scores: Array
    classes: Array


def overlaps(a: Array, b: Array) -> tuple[Array, Array]:
    """[n, m] of boxes [n, 4] and [m, 4]: intersection over union, and intersection over the smaller of the two."""
    wide = np.minimum(a[:, None, 2], b[:, 2]) - np.maximum(a[:, None, 0], b[:, 0])
    high = np.minimum(a[:, None, 3], b[:, 3]) - np.maximum(a[:, None, 1], b[:, 1])
    shared = np.maximum(wide, 0) * np.maximum(high, 0)
    first = ((a[:, 2] - a[:, 0]) * (a[:, 3] - a[:, 1]))[:, None]
    second = (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])
    union = np.maximum(first + second - shared, 1e-12)
    return shared / union, shared / np.maximum(np.minimum(first, second), 1e-12)


def suppress(boxes: Array, scores: Array, classes: Array, iou: float, limit: int) -> list[int]:
    """Indices of the boxes that stay, best first: of one class and overlapping by more than `iou`, the best only."""

    def same(a: Array, b: Array) -> Array:
        of_union, _ = overlaps(boxes[a], boxes[b])
        return np.asarray((of_union > iou) & (classes[a][:, None] == classes[b]))

    return _greedy(np.argsort(-scores, kind="stable"), same, limit)


def best_names(found: Found, overlap: float) -> Found:
    """Without the boxes that overlap a better one of another class by more than this: one thing has one name."""
    boxes, _, classes = found

    def rivals(a: Array, b: Array) -> Array:
        of_union, _ = overlaps(boxes[a], boxes[b])
        return np.asarray((of_union > overlap) & (classes[a][:, None] != classes[b]))

    return take(found, _greedy(np.arange(len(boxes)), rivals, len(boxes)))


def take(found: Found, rows: Sequence[int] | Array) -> Found:
    """Some of them, in this order."""
    return Found(found.boxes[rows], found.scores[rows], found.classes[rows])


def _greedy(order: Array, same: Callable[[Array, Array], Array], limit: int) -> list[int]:
    """Of indices in their order, those that are not the `same` as one before that stays; at most `limit`.

    Blocks are compared at once: a call of NumPy for each box would cost more than the comparisons.
    """
    kept: list[int] = []
    for start in range(0, len(order), _BLOCK):
        block = order[start : start + _BLOCK]
        if kept:
            block = block[~same(np.array(kept), block).any(axis=0)]
        goes = same(block, block)
        gone = np.zeros(len(block), bool)
        for i, index in enumerate(block.tolist()):
            if not gone[i]:
                kept.append(index)
                if len(kept) == limit:
                    return kept
                gone |= goes[i]
    return kept


def choose(scores: Array, min_score: float) -> tuple[Array, Array, Array]:
    """Of [n, classes]: the rows whose best class has at least `min_score` (at most CANDIDATES), scores, classes."""
    classes = scores.argmax(axis=1)
    best = scores[np.arange(len(scores)), classes]
    rows = np.flatnonzero(best >= min_score)
    if len(rows) > CANDIDATES:
        rows = rows[np.argsort(-best[rows], kind="stable")[:CANDIDATES]]
    return rows, best[rows].astype(np.float64), classes[rows]


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)); clipped, so that exp cannot overflow."""
    return np.asarray(1 / (1 + np.exp(-np.clip(x.astype(np.float64), -100, 100))))


# --- detectors without anchors ------------------------------------------------------------------------------------


def cells(strides: Sequence[int], width: int, height: int, offset: float) -> Float32:
    """[n, 3]: x and y of each cell's point in pixels, and its stride; levels in order, each row by row."""
    levels = []
    for stride in strides:
        y, x = np.mgrid[0 : -(-height // stride), 0 : -(-width // stride)]
        level = np.column_stack([x.ravel() + offset, y.ravel() + offset, np.ones(x.size)])
        levels.append(level * stride)
    return np.concatenate(levels).astype(np.float32)


def gfl_split(outputs: Sequence[Array], labels: int, reg_max: int) -> tuple[Array, Array]:
    """Scores [n, labels] and distributions [n, 4 * (reg_max + 1)] of one tensor, one pair, or one pair a level.

    Raises:
        ModelError: the outputs are none of these.
    """
    sides = 4 * (reg_max + 1)
    flat = [x.reshape(-1, x.shape[-1]) for x in outputs]
    if len(flat) == 1 and flat[0].shape[1] == labels + sides:
        return flat[0][:, :labels], flat[0][:, labels:]
    half = len(flat) // 2
    scores, boxes = flat[:half], flat[half:]
    if labels != sides:  # then the widths tell them apart, in whatever order they come
        scores = [x for x in flat if x.shape[1] == labels]
        boxes = [x for x in flat if x.shape[1] == sides]
    same = [len(x) for x in scores] == [len(x) for x in boxes]
    if not scores or len(scores) + len(boxes) != len(flat) or not same or any(x.shape[1] != labels for x in scores):
        shapes = ", ".join(str(list(x.shape)) for x in outputs)
        raise ModelError(
            f"'gfl' needs scores for {labels} labels and {sides} columns of boxes; the outputs are {shapes}",
            hint="mend labels, reg_max, or the variant's outputs",
        )
    return np.concatenate(scores), np.concatenate(boxes)


def gfl(outputs: Sequence[Array], grid: Float32, spec: Gfl, labels: int, width: int, height: int) -> Found:
    """Detections of a GFL head; `grid` is `cells` of the step's strides and offset.

    Raises:
        ModelError: the shapes do not fit the grid or the labels.
    """
    scores, sides = gfl_split(outputs, labels, spec.reg_max)
    if len(scores) != len(grid):
        raise ModelError(f"{len(scores)} scores for {len(grid)} cells", hint="mend the gfl step's strides")
    rows, best, classes = choose(sigmoid(scores) if spec.sigmoid else scores, spec.min_score)
    logits = sides[rows].reshape(-1, 4, spec.reg_max + 1).astype(np.float64)
    raised = np.exp(logits - logits.max(axis=2, keepdims=True))
    # the expected distance to each side, in strides
    reach = raised @ np.arange(spec.reg_max + 1) / raised.sum(axis=2)
    x, y, stride = grid[rows].T
    left, top, right, bottom = (reach * stride[:, None]).T
    corners = np.stack([x - left, y - top, x + right, y + bottom], axis=1)
    return _kept(corners, best, classes, spec, width, height)


def yolo(output: Array, grid: Float32 | None, spec: Yolo, labels: int, width: int, height: int) -> Found:
    """Detections of a YOLO head; `grid` is `cells` without offset, where the boxes are relative to it.

    Raises:
        ModelError: the shape does not fit the labels or the grid.
    """
    if output.ndim < 2:
        raise ModelError(f"'yolo' needs a table of places; the output is {list(output.shape)}")
    table: Array = output.reshape(-1, output.shape[-1])
    if spec.layout == "columns":
        table = table.T
    first = 5 if spec.objectness else 4
    if table.shape[1] != first + labels or (grid is not None and len(grid) != len(table)):
        raise ModelError(
            f"'yolo' needs {first + labels} columns{f' and {len(grid)} places' if grid is not None else ''}, "
            f"the output has {table.shape[1]} and {len(table)}",
            hint="mend the labels, layout, objectness or strides",
        )
    scores = table[:, first:] * table[:, 4:5] if spec.objectness else table[:, first:]
    rows, best, classes = choose(scores, spec.min_score)
    centre, size = table[rows, :2].astype(np.float64), table[rows, 2:4].astype(np.float64)
    if grid is not None:
        stride = grid[rows, 2:3]
        # a grid's x and y are multiples of the stride already
        centre, size = centre * stride + grid[rows, :2], np.exp(np.minimum(size, 50)) * stride
    corners = np.concatenate([centre - size / 2, centre + size / 2], axis=1)
    return _kept(corners, best, classes, spec, width, height)


def _kept(corners: Array, scores: Array, classes: Array, spec: Gfl | Yolo, width: int, height: int) -> Found:
    boxes = (corners / np.array([width, height, width, height])).astype(np.float32)
    kept = suppress(boxes, scores, classes, spec.iou, spec.max_detections)
    return Found(boxes[kept], scores[kept], classes[kept])


# --- tiles --------------------------------------------------------------------------------------------------------

Pixels = tuple[int, int, int, int]  # x0, y0, x1, y1; the ends are not included


def tiles(width: int, height: int, tile: tuple[int, int], overlap: float, limit: int) -> list[Pixels]:
    """Tiles of at least `tile` (width, height) that cover a picture, row by row; neighbours share `overlap` or more.

    A side that is shorter than a tile is one tile. When more than `limit` would be needed, they grow.
    """
    wide, high = float(tile[0]), float(tile[1])
    while _count(width, wide, overlap) * _count(height, high, overlap) > limit:
        wide, high = wide * 1.05, high * 1.05
    across, down = _spread(width, wide, overlap), _spread(height, high, overlap)
    return [(x0, y0, x1, y1) for y0, y1 in down for x0, x1 in across]


def _count(side: int, tile: float, overlap: float) -> int:
    # what rounding adds is no further tile
    return 1 if tile >= side else 1 + int(np.ceil((side - tile) / (tile * (1 - overlap)) - 1e-9))


def _spread(side: int, tile: float, overlap: float) -> list[tuple[int, int]]:
    n, length = _count(side, tile, overlap), min(side, int(np.ceil(tile)))
    starts = [i * (side - length) // (n - 1) for i in range(n)] if n > 1 else [0]
    return [(start, start + length) for start in starts]


def cut_off(boxes: Array, tile: Region, within: Region) -> Array:
    """Which boxes end at a side of their tile that lies inside what is looked at; all in fractions of one picture."""
    x, y = _EDGE * (tile[2] - tile[0]), _EDGE * (tile[3] - tile[1])
    cut = np.zeros(len(boxes), bool)
    if tile[0] > within[0]:
        cut |= boxes[:, 0] < tile[0] + x
    if tile[1] > within[1]:
        cut |= boxes[:, 1] < tile[1] + y
    if tile[2] < within[2]:
        cut |= boxes[:, 2] > tile[2] - x
    if tile[3] < within[3]:
        cut |= boxes[:, 3] > tile[3] - y
    return cut


def join(looks: Sequence[Found], iou: float, limit: int) -> Found:
    """What several looks at one and the same part of a picture found, each object once; best first."""
    every = together(looks)
    return take(every, suppress(*every, iou, limit))


def together(parts: Sequence[Found]) -> Found:
    """All of them, one after the other."""
    return Found(*(np.concatenate(each) for each in zip(*parts, strict=True)))


def merge(found: Found, cut: Array, iou: float, limit: int) -> Found:
    """What tiles found of one picture, each object once; boxes in fractions of the picture.

    Whole boxes go before those that a tile's side cuts off, better ones before worse. Of one class, a box goes when it
    overlaps one that stays by more than `iou`, or when CONTAINED of the smaller of the two is shared.
    """
    boxes, scores, classes = found

    def same(a: Array, b: Array) -> Array:
        of_union, of_smaller = overlaps(boxes[a], boxes[b])
        close = (of_union > iou) | (of_smaller > CONTAINED)
        return np.asarray(close & (classes[a][:, None] == classes[b]))

    kept = _greedy(np.lexsort((-scores, cut)), same, len(boxes))
    order = sorted(kept, key=lambda i: -scores[i])[:limit]
    return Found(boxes[order], scores[order], classes[order])
