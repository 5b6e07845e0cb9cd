"""Anchor-free box decoding, tiling and merging against plain loops."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import ModelError
from gateway.infer import boxes
from gateway.infer.boxes import Found
from gateway.infer.manifest import Gfl, Yolo

RNG = np.random.default_rng(4)
LABELS = 3
GFL = Gfl(strides=(8, 16), reg_max=7, iou=1.0, min_score=0.0, max_detections=1000)
WIDTH, HEIGHT = 40, 24  # 5 x 3 cells of 8, 3 x 2 cells of 16
PLACES = 15 + 6


def plain_gfl(
    scores: list[list[float]], sides: list[list[float]], offset: float
) -> list[tuple[float, int, list[float]]]:
    """(score, class, corners in pixels) of every cell, best first."""
    out, row = [], 0
    for stride in (8, 16):
        for y in range(math.ceil(HEIGHT / stride)):
            for x in range(math.ceil(WIDTH / stride)):
                reach = []
                for side in range(4):
                    raised = [math.exp(v) for v in sides[row][side * 8 : side * 8 + 8]]
                    reach.append(sum(i * v for i, v in enumerate(raised)) / sum(raised) * stride)
                cx, cy = (x + offset) * stride, (y + offset) * stride
                best = max(range(LABELS), key=lambda i: (scores[row][i], -i))
                box = [cx - reach[0], cy - reach[1], cx + reach[2], cy + reach[3]]
                out.append((scores[row][best], best, box))
                row += 1
    return sorted(out, key=lambda item: -item[0])


@pytest.mark.parametrize("offset", [0.5, 0.0])
@pytest.mark.parametrize("form", ["one", "pair", "levels", "swapped"])
def test_gfl(offset: float, form: str) -> None:
    spec = Gfl(strides=(8, 16), offset=offset, iou=1.0, min_score=0.0, max_detections=1000)
    scores, sides = RNG.random((PLACES, LABELS)), RNG.normal(0, 2, (PLACES, 32))
    outputs = {
        "one": [np.concatenate([scores, sides], axis=1)[None]],
        "pair": [scores[None], sides[None]],
        "levels": [scores[None, :15], scores[None, 15:], sides[None, :15], sides[None, 15:]],
        "swapped": [sides[None, :15], scores[None, :15], sides[None, 15:], scores[None, 15:]],
    }[form]
    found = boxes.gfl(outputs, boxes.cells(spec.strides, WIDTH, HEIGHT, offset), spec, LABELS, WIDTH, HEIGHT)
    expected = plain_gfl(scores.tolist(), sides.tolist(), offset)
    assert found.scores.tolist() == pytest.approx([score for score, _, _ in expected])
    assert found.classes.tolist() == [label for _, label, _ in expected]
    pixels = found.boxes * np.array([WIDTH, HEIGHT, WIDTH, HEIGHT])
    for got, (_, _, box) in zip(pixels.tolist(), expected, strict=True):
        assert got == pytest.approx(box, abs=1e-3)


def test_gfl_of_logits_keeps_what_is_sure_enough() -> None:
    spec = Gfl(strides=(8, 16), sigmoid=True, min_score=0.9)
    scores, sides = np.full((PLACES, LABELS), -9.0), np.zeros((PLACES, 32))
    scores[7, 2] = 4.0
    grid = boxes.cells(spec.strides, WIDTH, HEIGHT, 0.5)
    found = boxes.gfl([scores, sides], grid, spec, LABELS, WIDTH, HEIGHT)
    assert found.scores.tolist() == pytest.approx([1 / (1 + math.exp(-4))]) and found.classes.tolist() == [2]
    nothing = boxes.gfl([scores - 9, sides], grid, spec, LABELS, WIDTH, HEIGHT)
    assert nothing.boxes.shape == (0, 4)


@pytest.mark.parametrize(
    "shapes", [[(21, 5)], [(21, 3)], [(21, 3), (20, 32)], [(15, 3), (6, 3), (21, 32)], [(21, 32)] * 2]
)
def test_gfl_outputs_that_do_not_fit_are_named(shapes: list[tuple[int, int]]) -> None:
    with pytest.raises(ModelError, match="'gfl' needs scores for 3 labels and 32 columns"):
        boxes.gfl_split([np.zeros(shape) for shape in shapes], LABELS, 7)
    with pytest.raises(ModelError, match="4 scores for 21 cells"):
        grid = boxes.cells((8, 16), WIDTH, HEIGHT, 0.5)
        boxes.gfl([np.zeros((4, 3)), np.zeros((4, 32))], grid, GFL, LABELS, WIDTH, HEIGHT)


def test_gfl_with_as_many_labels_as_columns_goes_by_order() -> None:
    scores, sides = RNG.random((PLACES, 32)), RNG.random((PLACES, 32))
    first, second = boxes.gfl_split([scores, sides], 32, 7)
    assert (first == scores).all() and (second == sides).all()


@pytest.mark.parametrize("layout", ["rows", "columns"])
@pytest.mark.parametrize("objectness", [False, True])
@pytest.mark.parametrize("strides", [(), (8, 16)])
def test_yolo(layout: str, objectness: bool, strides: tuple[int, ...]) -> None:
    spec = Yolo(layout=layout, objectness=objectness, strides=strides, iou=1.0, min_score=0.0, max_detections=1000)  # type: ignore[arg-type]
    first = 5 if objectness else 4
    table = RNG.random((PLACES, first + LABELS))
    grid = boxes.cells(strides, WIDTH, HEIGHT, 0.0) if strides else None
    output = table[None] if layout == "rows" else table.T[None]
    found = boxes.yolo(output, grid, spec, LABELS, WIDTH, HEIGHT)
    cells = [(x, y, s) for s in (8, 16) for y in range(math.ceil(HEIGHT / s)) for x in range(math.ceil(WIDTH / s))]
    expected = []
    for (cx, cy, stride), row in zip(cells, table.tolist(), strict=True):
        x, y, w, h = row[:4]
        if strides:
            x, y, w, h = (x + cx) * stride, (y + cy) * stride, math.exp(w) * stride, math.exp(h) * stride
        score = max(row[first:]) * (row[4] if objectness else 1)
        expected.append((score, row[first:].index(max(row[first:])), [x - w / 2, y - h / 2, x + w / 2, y + h / 2]))
    expected.sort(key=lambda item: -item[0])
    assert found.scores.tolist() == pytest.approx([score for score, _, _ in expected])
    assert found.classes.tolist() == [label for _, label, _ in expected]
    pixels = found.boxes * np.array([WIDTH, HEIGHT, WIDTH, HEIGHT])
    for got, (_, _, box) in zip(pixels.tolist(), expected, strict=True):
        assert got == pytest.approx(box, abs=1e-3)


def test_yolo_outputs_that_do_not_fit_are_named() -> None:
    with pytest.raises(ModelError, match="needs 7 columns, the output has 9 and 21"):
        boxes.yolo(np.zeros((1, 9, 21)), None, Yolo(), LABELS, WIDTH, HEIGHT)
    with pytest.raises(ModelError, match="needs 7 columns and 21 places, the output has 7 and 20"):
        grid = boxes.cells((8, 16), WIDTH, HEIGHT, 0)
        boxes.yolo(np.zeros((1, 7, 20)), grid, Yolo(strides=(8, 16)), LABELS, WIDTH, HEIGHT)


@given(n=st.integers(0, 60), limit=st.integers(0, 100), seed=st.integers(0, 99))
def test_choose_takes_the_best_class_of_the_rows_that_are_sure(n: int, limit: int, seed: int) -> None:
    scores = np.random.default_rng(seed).integers(0, 101, (n, 4)) / 100
    rows, best, classes = boxes.choose(scores, limit / 100)
    expected = [i for i, row in enumerate(scores.tolist()) if max(row) >= limit / 100]
    assert rows.tolist() == expected
    assert best.tolist() == [max(scores[i].tolist()) for i in expected]
    assert classes.tolist() == [scores[i].tolist().index(max(scores[i].tolist())) for i in expected]


def test_choose_bounds_what_is_compared() -> None:
    scores = RNG.random((3 * boxes.CANDIDATES, 1))
    rows, best, _ = boxes.choose(scores, 0.0)
    assert len(rows) == boxes.CANDIDATES and best.min() >= np.sort(scores[:, 0])[-boxes.CANDIDATES]


@given(
    width=st.integers(1, 9000), height=st.integers(1, 9000), wide=st.integers(16, 2000), high=st.integers(16, 2000),
    overlap=st.integers(0, 50).map(lambda n: n / 100), limit=st.integers(1, 64),
)  # fmt: skip
def test_tiles_cover_the_picture(width: int, height: int, wide: int, high: int, overlap: float, limit: int) -> None:
    grid = boxes.tiles(width, height, (wide, high), overlap, limit)
    assert 1 <= len(grid) <= limit and len(set(grid)) == len(grid)
    sizes = {(x1 - x0, y1 - y0) for x0, y0, x1, y1 in grid}
    assert len(sizes) == 1, "all tiles are of one size"
    ((w, h),) = sizes
    assert w >= min(wide, width) and h >= min(high, height)
    columns, rows = sorted({(t[0], t[2]) for t in grid}), sorted({(t[1], t[3]) for t in grid})
    assert len(columns) * len(rows) == len(grid)
    for lines, side in ((columns, width), (rows, height)):
        assert lines[0][0] == 0 and lines[-1][1] == side and all(0 <= a < b <= side for a, b in lines)
        for (_, end), (start, next_end) in itertools.pairwise(lines):
            # one pixel for each of the two roundings
            assert end - start >= overlap * (next_end - start) - 2


def test_a_small_picture_is_one_tile() -> None:
    assert boxes.tiles(300, 200, (320, 320), 0.2, 16) == [(0, 0, 300, 200)]
    assert boxes.tiles(640, 320, (320, 320), 0.0, 16) == [(0, 0, 320, 320), (320, 0, 640, 320)]


def test_what_a_tile_cuts_off() -> None:
    tile, whole = (0.0, 0.0, 0.5, 1.0), (0.0, 0.0, 1.0, 1.0)
    found = np.array([[0, 0, 0.4, 1], [0.2, 0.1, 0.4999, 0.2], [0.1, 0.1, 0.2, 0.2]])
    assert boxes.cut_off(found, tile, whole).tolist() == [False, True, False]
    assert boxes.cut_off(found, tile, tile).tolist() == [False] * 3, "the picture's own edge cuts nothing"
    inside = (0.25, 0.25, 0.75, 0.75)
    sides = np.array([[0.25, 0.4, 0.5, 0.5], [0.4, 0.25, 0.5, 0.5], [0.4, 0.4, 0.75, 0.5], [0.4, 0.4, 0.5, 0.75]])
    assert boxes.cut_off(sides, inside, whole).all()


coordinate = st.integers(0, 8).map(lambda n: n / 8)
corner = st.tuples(coordinate, coordinate, coordinate, coordinate).map(
    lambda c: [min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]) + 0.125, max(c[1], c[3]) + 0.125]
)
items = st.lists(st.tuples(corner, st.integers(1, 20), st.integers(1, 2), st.booleans()), min_size=1, max_size=15)


def same(a: list[float], b: list[float], iou: float) -> bool:
    wide = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    high = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    first, second = ((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b))
    shared = wide * high
    return shared > iou * (first + second - shared) or shared > 0.8 * min(first, second)


@given(items=items, limit=st.integers(1, 20))
def test_merge(items: list[tuple[list[float], int, int, bool]], limit: int) -> None:
    kept: list[int] = []
    for i in sorted(range(len(items)), key=lambda i: (items[i][3], -items[i][1])):
        if not any(same(items[i][0], items[j][0], 0.3) for j in kept if items[j][2] == items[i][2]):
            kept.append(i)
    kept = sorted(kept, key=lambda i: -items[i][1])[:limit]
    corners, scores, classes, cut = (np.array(column) for column in zip(*items, strict=True))
    got = boxes.merge(Found(corners, scores, classes), cut, 0.3, limit)
    assert got.boxes.tolist() == [items[i][0] for i in kept]
    assert got.scores.tolist() == [items[i][1] for i in kept]


def test_a_whole_object_replaces_its_better_scored_half() -> None:
    found = Found(np.array([[0.1, 0.1, 0.5, 0.3], [0.1, 0.1, 0.9, 0.3]]), np.array([0.9, 0.6]), np.array([1, 1]))
    assert boxes.merge(found, np.array([True, False]), 0.5, 10).scores.tolist() == [0.6]
