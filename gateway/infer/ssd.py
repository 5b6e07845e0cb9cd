"""Single-shot detectors: anchors, box decoding and non-maximum suppression.

The rules are those of MediaPipe's SsdAnchorsCalculator and TensorsToDetectionsCalculator (Apache-2.0), restated;
suppression is by class. Boxes are fractions of the model's input.
"""

from __future__ import annotations

import math

import numpy as np

from gateway.errors import ModelError
from gateway.infer.boxes import Found, choose, sigmoid, suppress
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


def detect(raw: Array, logits: Array, grid: Float32, spec: Ssd) -> Found:
    """The detections.

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
    # sigmoid is monotonic: a threshold on the logits chooses the same rows, and only those are computed
    least = _logit(spec.min_score) if spec.sigmoid else spec.min_score
    chosen, scores, classes = choose(logits[:, first:], least)
    if spec.sigmoid:
        scores = sigmoid(scores)
    boxes = decode_boxes(raw[chosen], grid[chosen], spec)
    kept = suppress(boxes, scores, classes, spec.iou, spec.max_detections)
    return Found(boxes[kept], scores[kept], classes[kept] + first)


def _logit(score: float) -> float:
    if score <= 0:
        return -math.inf
    return math.inf if score >= 1 else math.log(score / (1 - score))
