"""Single-shot detectors: anchors, box decoding and non-maximum suppression.

The rules are those of MediaPipe's SsdAnchorsCalculator and TensorsToDetectionsCalculator (Apache-2.0), restated;
suppression is by class. Boxes are fractions of the model's input.
"""

from __future__ import annotations

import math

import numpy as np

from gateway.errors import ModelError
from gateway.infer.manifest import Ssd
from gateway.infer.steps import Array, Float32


def anchors(spec: Ssd, width: int, height: int) -> Float32:
    """Float32 [anchors, 4]: centre x, centre y, width, height, as fractions of a width x height input.

    Layers of equal stride share one grid; within a cell the order is by layer, then by aspect ratio.
    """
    grids: list[Array] = []
    layer = 0
    while layer < len(spec.strides):
        stride = spec.strides[layer]
        shapes: list[tuple[float, float]] = []
        while layer < len(spec.strides) and spec.strides[layer] == stride:
            shapes += _shapes(spec, layer)
            layer += 1
        rows, columns = math.ceil(height / stride), math.ceil(width / stride)
        y, x, shape = np.meshgrid(np.arange(rows), np.arange(columns), np.arange(len(shapes)), indexing="ij")
        size = np.asarray(shapes)[shape.ravel()]
        grids.append(
            np.column_stack(
                [
                    (x.ravel() + spec.anchor_offset) / columns,
                    (y.ravel() + spec.anchor_offset) / rows,
                    size[:, 0],
                    size[:, 1],
                ]
            )
        )
    return np.concatenate(grids).astype(np.float32)


def _scale(spec: Ssd, layer: int) -> float:
    n = len(spec.strides)
    if n == 1:
        return (spec.min_scale + spec.max_scale) / 2
    return spec.min_scale + (spec.max_scale - spec.min_scale) * layer / (n - 1)


def _shapes(spec: Ssd, layer: int) -> list[tuple[float, float]]:
    """Width and height of each anchor in a cell of one layer."""
    scale = _scale(spec, layer)
    if layer == 0 and spec.reduce_boxes_in_lowest_layer:
        pairs = [(0.1, 1.0), (scale, 2.0), (scale, 0.5)]
    else:
        pairs = [(scale, ratio) for ratio in spec.aspect_ratios]
        if spec.interpolated_scale_aspect_ratio > 0:
            following = 1.0 if layer == len(spec.strides) - 1 else _scale(spec, layer + 1)
            pairs.append((math.sqrt(scale * following), spec.interpolated_scale_aspect_ratio))
    return [(scale * math.sqrt(ratio), scale / math.sqrt(ratio)) for scale, ratio in pairs]


def decode_boxes(raw: Array, grid: Float32, spec: Ssd) -> Float32:
    """Raw [n, 4] (y, x, h, w relative to its anchor) to corners [n, 4]: x0, y0, x1, y1."""
    x = raw[:, 1] / spec.x_scale * grid[:, 2] + grid[:, 0]
    y = raw[:, 0] / spec.y_scale * grid[:, 3] + grid[:, 1]
    w = np.exp(raw[:, 3] / spec.w_scale) * grid[:, 2]
    h = np.exp(raw[:, 2] / spec.h_scale) * grid[:, 3]
    return np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], axis=1).astype(np.float32)


def overlap(box: Array, boxes: Array) -> Array:
    """Intersection over union of one box [4] with each of [n, 4]."""
    wide = np.minimum(box[2], boxes[:, 2]) - np.maximum(box[0], boxes[:, 0])
    high = np.minimum(box[3], boxes[:, 3]) - np.maximum(box[1], boxes[:, 1])
    shared = np.maximum(wide, 0) * np.maximum(high, 0)
    area = (box[2] - box[0]) * (box[3] - box[1])
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return np.asarray(shared / np.maximum(area + areas - shared, 1e-12))


def suppress(boxes: Array, scores: Array, classes: Array, iou: float, limit: int) -> list[int]:
    """Indices of the boxes that stay, best first: of one class and overlapping by more than `iou`, the best only."""
    kept: list[int] = []
    rest = np.argsort(-scores, kind="stable")
    while rest.size and len(kept) < limit:
        best, rest = int(rest[0]), rest[1:]
        kept.append(best)
        again = (overlap(boxes[best], boxes[rest]) > iou) & (classes[rest] == classes[best])
        rest = rest[~again]
    return kept


def detect(raw: Array, logits: Array, grid: Float32, spec: Ssd) -> tuple[Float32, Array, Array]:
    """Boxes [k, 4] (x0, y0, x1, y1), scores [k] and classes [k] of the detections, best first.

    Args:
        raw: [anchors, 4], logits: [anchors, classes]; a leading batch axis of 1 is ignored.

    Raises:
        ModelError: the shapes do not fit the anchors.
    """
    raw, logits = raw.reshape(-1, 4), logits.reshape(-1, logits.shape[-1])
    if len(raw) != len(grid) or len(logits) != len(grid):
        raise ModelError(
            f"{len(raw)} boxes and {len(logits)} scores for {len(grid)} anchors",
            hint="mend the ssd step's strides and ratios, or the variant's order of outputs",
        )
    first = 1 if spec.background else 0
    classes = logits[:, first:].argmax(axis=1) + first
    best = logits[np.arange(len(logits)), classes].astype(np.float64)
    # sigmoid is monotonic: applied to the best class only; clipped so that exp cannot overflow
    scores = 1 / (1 + np.exp(-np.clip(best, -100, 100))) if spec.sigmoid else best
    chosen = np.flatnonzero(scores >= spec.min_score)
    boxes = decode_boxes(raw[chosen], grid[chosen], spec)
    kept = suppress(boxes, scores[chosen], classes[chosen], spec.iou, spec.max_detections)
    return boxes[kept], scores[chosen][kept], classes[chosen][kept]
