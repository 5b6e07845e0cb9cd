"""Several looks of one detector at the same picture: `again` at other sizes, and one name for one place."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.contract import Result
from gateway.errors import ModelError
from gateway.infer import boxes, pictures
from gateway.infer.boxes import Found
from gateway.infer.manifest import Fit, Picture, Tensor, Tiles, Values, Yolo
from gateway.infer.recipe import Recipe
from gateway.infer.steps import Array
from tests.unit import bundles

SIDE = 32
YOLO: dict[str, Any] = {
    "task": "detect",
    "labels": ("white", "pale"),
    "input": Picture(width=SIDE, height=SIDE),
    "post": (Yolo(layout="rows", min_score=0.5, iou=0.5),),
}


def recipe(fit: Fit, *before: Tiles, **changes: Any) -> Recipe:
    return Recipe(bundles.manifest(**{**YOLO, "pre": (*before, fit, Tensor(layout="nhwc")), **changes}))


def png(picture: Array) -> bytes:
    return bytes(cv2.imencode(".png", picture)[1].tobytes())


def with_box(x0: int, y0: int, x1: int, y1: int, side: int = 128) -> bytes:
    picture = np.zeros((side, side, 3), np.uint8)
    picture[y0:y1, x0:x1] = 255
    return png(picture)


class OfOneSize:
    """A detector that knows white things of a width between two bounds, in pixels of its input, and counts its looks."""

    def __init__(self, least: int, most: int) -> None:
        self.least, self.most, self.looks = least, most, 0

    def __call__(self, inputs: Sequence[Array]) -> list[Array]:
        self.looks += 1
        rows, columns = np.nonzero((inputs[0][0] > 128).all(axis=2))
        if not rows.size or not self.least <= np.ptp(columns) + 1 <= self.most:
            return [np.zeros((1, 1, 6), np.float32)]
        x0, x1, y0, y1 = columns.min(), columns.max() + 1, rows.min(), rows.max() + 1
        return [np.array([[[(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0, 0.9, 0]]], np.float32)]


@pytest.mark.parametrize("mode", ["stretch", "letterbox"])
def test_what_is_too_large_for_one_look_is_found_by_the_next(mode: Any) -> None:
    large, knows = with_box(8, 16, 120, 104), OfOneSize(4, 20)
    assert recipe(Fit(mode=mode)).run(knows, large, "image/png") == Result()
    again = recipe(Fit(mode=mode, again=(0.5,)))
    (found,) = again.run(knows, large, "image/png").detections
    # one pixel of the smaller look is a sixteenth of the picture
    assert (found.x0, found.y0, found.x1, found.y1) == pytest.approx(
        (8 / 128, 16 / 128, 120 / 128, 104 / 128), abs=0.07
    )
    assert knows.looks == 3, "one more look at the picture for each share, and no other"


def test_what_both_looks_find_is_one_object() -> None:
    knows = OfOneSize(1, SIDE)
    assert len(recipe(Fit(again=(0.75, 0.5))).run(knows, with_box(32, 32, 96, 96), "image/png").detections) == 1
    assert knows.looks == 3


def test_each_tile_is_looked_at_again() -> None:
    knows = OfOneSize(4, 10)
    tiled = recipe(Fit(again=(0.5,)), Tiles(size=64, overlap=0.0, whole=False))
    (found,) = tiled.run(knows, with_box(70, 72, 102, 100), "image/png").detections
    assert found.x0 == pytest.approx(70 / 128, abs=0.04) and knows.looks == 8


def test_a_wide_picture_lies_in_the_middle_of_a_smaller_look() -> None:
    knows = OfOneSize(1, 16)
    wide = np.zeros((32, 128, 3), np.uint8)
    wide[8:24, 32:96] = 255
    (found,) = recipe(Fit(mode="letterbox", again=(0.5,))).run(knows, png(wide), "image/png").detections
    assert (found.x0, found.y0, found.x1, found.y1) == pytest.approx((0.25, 0.25, 0.75, 0.75), abs=0.13)


def test_a_box_on_the_padding_alone_is_not_on_the_picture() -> None:
    def on_the_border(inputs: Sequence[Array]) -> list[Array]:
        return [np.array([[[2, 2, 4, 4, 0.9, 0], [16, 16, 4, 4, 0.8, 0]]], np.float32)]

    found = recipe(Fit(again=(0.5,))).run(on_the_border, with_box(0, 0, 1, 1), "image/png").detections
    # the first look has both on the picture, the second, 16 wide from 8 to 24, the one in the middle only
    assert [round(each.score, 1) for each in found] == [0.9, 0.8, 0.8]


def test_the_first_look_is_what_is_prepared() -> None:
    (tensor,), _ = recipe(Fit(again=(0.5,))).prepare(with_box(0, 0, 128, 128), "image/png")
    assert (tensor == 255).all(), "nothing is padded"


def test_again_is_for_detectors() -> None:
    with pytest.raises(ModelError, match="'again' is for detectors"):
        recipe(Fit(again=(0.5,)), task="regress", post=(Values(names=("a",)),), labels=())


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 30), st.integers(0, 30))
def test_the_middle_and_its_place(width: int, height: int, more: int, higher: int) -> None:
    out, at = pictures.middle(
        np.full((height, width, 3), 200, np.uint8), pictures.WHOLE, width + more, height + higher, 7
    )
    rows, columns = np.nonzero((out == 200).all(axis=2))
    total = np.array([width + more, height + higher] * 2)
    seen = np.array([columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]) / total
    assert list(at) == pytest.approx(seen.tolist())
    assert (out == 200).all(axis=2).sum() == width * height, "the rest is padding"


# --- one name for one place ---------------------------------------------------------------------------------------

corner = st.tuples(*[st.integers(0, 8)] * 4).map(
    lambda c: [min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]) + 1, max(c[1], c[3]) + 1]
)


def iou(a: list[int], b: list[int]) -> float:
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0, wide) * max(0, high)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


@given(st.lists(st.tuples(corner, st.integers(0, 2)), min_size=1, max_size=12), st.sampled_from([0.0, 0.3, 0.7]))
def test_one_place_has_one_name(items: list[tuple[list[int], int]], overlap: float) -> None:
    kept: list[int] = []
    for i, (box, label) in enumerate(items):
        if not any(items[j][1] != label and iou(items[j][0], box) > overlap for j in kept):
            kept.append(i)
    corners, classes = (np.array(column) for column in zip(*items, strict=True))
    scores = np.linspace(0.9, 0.5, len(items))
    got = boxes.best_names(Found(corners.astype(float), scores, classes), overlap)
    assert got.scores.tolist() == scores[kept].tolist()


def test_a_manifest_asks_for_it() -> None:
    def two_names(inputs: Sequence[Array]) -> list[Array]:
        return [np.array([[[16, 16, 20, 20, 0.7, 0.1], [16, 17, 20, 20, 0.2, 0.8], [4, 4, 4, 4, 0, 0.6]]], np.float32)]

    def labels(step: Yolo) -> list[str]:
        found = recipe(Fit(), post=(step,)).run(two_names, with_box(0, 0, 1, 1), "image/png").detections
        return [each.label for each in found]

    assert labels(Yolo(layout="rows", min_score=0.5)) == ["pale", "white", "pale"]
    assert labels(Yolo(layout="rows", min_score=0.5, one_name=0.7)) == ["pale", "pale"]
    assert labels(Yolo(layout="rows", min_score=0.5, one_name=0.95)) == ["pale", "white", "pale"]
