"""Anchors, box decoding and suppression against plain loops over MediaPipe's rules."""

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import ModelError
from gateway.infer import boxes, ssd
from gateway.infer.manifest import Ssd

SPEC = Ssd()
RNG = np.random.default_rng(5)


def plain_anchors() -> list[tuple[float, float, float, float]]:
    """SSD-MobileNetV2 at 300 x 300, by hand."""
    out = []
    scales = [0.2 + 0.15 * i for i in range(6)] + [1.0]
    for i, cells in enumerate([19, 10, 5, 3, 2, 1]):
        shapes = [(scales[i], r) for r in (1.0, 2.0, 0.5, 3.0, 0.3333)]
        shapes.append((math.sqrt(scales[i] * scales[i + 1]), 1.0))
        if i == 0:
            shapes = [(0.1, 1.0), (0.2, 2.0), (0.2, 0.5)]
        for y in range(cells):
            for x in range(cells):
                for scale, ratio in shapes:
                    root = math.sqrt(ratio)
                    out.append(((x + 0.5) / cells, (y + 0.5) / cells, scale * root, scale / root))
    return out


def test_the_anchors_of_ssd_mobilenet() -> None:
    grid = ssd.anchors(SPEC, 300, 300)
    assert grid.shape == (1917, 4) and grid.dtype == np.float32
    assert np.abs(grid - np.array(plain_anchors())).max() < 1e-6


def test_layers_of_equal_stride_share_a_grid() -> None:
    spec = msgspec.structs.replace(SPEC, strides=(8, 16, 16, 16), aspect_ratios=(1.0,), min_scale=0.1484375)
    spec = msgspec.structs.replace(spec, max_scale=0.75, reduce_boxes_in_lowest_layer=False)
    assert len(ssd.anchors(spec, 128, 128)) == 16 * 16 * 2 + 8 * 8 * 6  # the BlazeFace front model: 896
    assert len(ssd.anchors(msgspec.structs.replace(SPEC, strides=(100,)), 300, 300)) == 3 * 3 * 3


def test_decode_boxes() -> None:
    grid = ssd.anchors(SPEC, 300, 300)[:50]
    raw = RNG.normal(0, 2, (50, 4)).astype(np.float32)
    decoded = ssd.decode_boxes(raw, grid, SPEC)
    for (dy, dx, dh, dw), (ax, ay, aw, ah), box in zip(raw.tolist(), grid.tolist(), decoded.tolist(), strict=True):
        x, y = dx / 10 * aw + ax, dy / 10 * ah + ay
        w, h = math.exp(dw / 5) * aw, math.exp(dh / 5) * ah
        assert box == pytest.approx([x - w / 2, y - h / 2, x + w / 2, y + h / 2], abs=1e-5)


def plain_overlap(a: list[float], b: list[float]) -> float:
    wide = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    high = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - wide * high
    return wide * high / union if union > 0 else 0.0


coordinate = st.integers(0, 8).map(lambda n: n / 8)
box = st.tuples(coordinate, coordinate, coordinate, coordinate).map(
    lambda c: [min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]) + 0.125, max(c[1], c[3]) + 0.125]
)


@given(
    items=st.lists(st.tuples(box, st.integers(1, 20), st.integers(1, 2)), min_size=1, max_size=15),
    limit=st.integers(1, 20),
)
def test_suppress(items: list[tuple[list[float], int, int]], limit: int) -> None:
    kept: list[int] = []
    for i in sorted(range(len(items)), key=lambda i: -items[i][1]):
        rivals = [items[j][0] for j in kept if items[j][2] == items[i][2]]
        if all(plain_overlap(items[i][0], rival) <= 0.3 for rival in rivals):
            kept.append(i)
    corners, scores, classes = (np.array(column, float) for column in zip(*items, strict=True))
    assert boxes.suppress(corners, scores, classes, 0.3, limit) == kept[:limit]


def test_detect_leaves_the_background_out_and_orders_by_score() -> None:
    grid = ssd.anchors(SPEC, 300, 300)
    logits = np.full((1, 1917, 4), -10, np.float32)
    logits[0, :, 0] = 9  # background everywhere
    logits[0, 100, 2] = 1.0
    logits[0, 1900, 3] = 3.0
    found, scores, classes = ssd.detect(np.zeros((1, 1917, 4), np.float32), logits, grid, SPEC)
    assert classes.tolist() == [3, 2]
    assert scores.tolist() == pytest.approx([1 / (1 + math.exp(-3)), 1 / (1 + math.exp(-1))])
    x, y, w, h = grid[1900].tolist()
    assert found[0].tolist() == pytest.approx([x - w / 2, y - h / 2, x + w / 2, y + h / 2], abs=1e-6)


def test_shapes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ModelError, match="10 boxes and 10 scores for 1917 anchors"):
        ssd.detect(np.zeros((10, 4)), np.zeros((10, 3)), ssd.anchors(SPEC, 300, 300), SPEC)
