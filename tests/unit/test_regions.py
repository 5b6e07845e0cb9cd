"""Regions of a picture: the media text, the crop, and jobs that look at several regions or tiles."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.contract import Result
from gateway.errors import ModelError
from gateway.infer import media, pictures
from gateway.infer.manifest import Fit, Picture, Segment, Tensor, Tiles, TopK, Values, Yolo
from gateway.infer.recipe import Recipe
from gateway.infer.steps import Array
from tests.unit import bundles

SIDE = 16
BASE: dict[str, Any] = {
    "input": Picture(width=SIDE, height=SIDE),
    "pre": (Fit(), Tensor(layout="nhwc")),
    "post": (Values(names=("r", "g", "b")),),
}
fraction = st.integers(0, 1_000_000).map(lambda n: n / 1_000_000)


@st.composite
def regions(draw: st.DrawFn) -> tuple[float, float, float, float]:
    x0, y0 = draw(st.integers(0, 999_000)), draw(st.integers(0, 999_000))
    x1, y1 = draw(st.integers(x0 + 1000, 1_000_000)), draw(st.integers(y0 + 1000, 1_000_000))
    return x0 / 1e6, y0 / 1e6, x1 / 1e6, y1 / 1e6


@given(st.lists(regions(), max_size=media.MAX_REGIONS))
def test_the_text_comes_back_as_it_was(wanted: list[tuple[float, float, float, float]]) -> None:
    assert media.split(media.with_regions("image/png", wanted)) == ("image/png", tuple(wanted))


@given(st.one_of(st.text(max_size=80), st.from_regex(r"image/jpeg(;region=[0-9.,eE+-]{0,40}){1,3}", fullmatch=True)))
def test_a_strangers_text_is_understood_or_refused(text: str) -> None:
    try:
        kind, found = media.split(text)
    except ModelError:
        return
    assert len(found) <= media.MAX_REGIONS and ";region=" not in kind
    for x0, y0, x1, y1 in found:
        assert 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0,0,1",
        "0,0,1,1,1",
        "0,0,1,1.1",
        "-0.1,0,1,1",
        "0.5,0,0.5,1",
        "0,1,1,0",
        "nan,0,1,1",
        "0,0,1e0,1",
        "0,0,1,1 ",
    ],
)
def test_what_is_no_region(text: str) -> None:
    with pytest.raises(ModelError, match="region"):
        media.split(f"image/jpeg;region={text}")


def test_too_many_regions() -> None:
    with pytest.raises(ModelError, match="33 regions of one picture; at most 32"):
        media.split("image/jpeg" + ";region=0,0,1,1" * 33)


@given(st.integers(1, 60), st.integers(1, 60), regions())
def test_a_crop_is_never_empty(height: int, width: int, region: tuple[float, float, float, float]) -> None:
    picture = np.zeros((height, width, 3), np.uint8)
    at = pictures.pixels(picture, region)
    part = pictures.crop(picture, at)
    assert part.shape == (at[3] - at[1], at[2] - at[0], 3) and part.size
    for low, high, first, last, side in (
        (region[0], region[2], at[0], at[2], width), (region[1], region[3], at[1], at[3], height),
    ):  # fmt: skip
        assert first <= low * side + 1e-6 and last >= min(side, high * side) - 1e-6, "the region is inside"


def quarters(suffix: str = ".png", side: int = 64) -> bytes:
    """Four coloured quarters: red, green, blue, white."""
    picture = np.zeros((side, side, 3), np.uint8)
    half = side // 2
    picture[:half, :half, 2] = 255
    picture[:half, half:, 1] = 255
    picture[half:, :half, 0] = 255
    picture[half:, half:] = 255
    return bytes(cv2.imencode(suffix, picture)[1].tobytes())


class Mean:
    """A model: the mean colour of each input of a batch. Remembers how many inputs each call had."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, inputs: Sequence[Array]) -> list[Array]:
        self.calls.append(len(inputs[0]))
        return [inputs[0].mean(axis=(1, 2))]


CORNERS = [(0.0, 0.0, 0.5, 0.5), (0.5, 0.0, 1.0, 0.5), (0.0, 0.5, 0.5, 1.0), (0.5, 0.5, 1.0, 1.0)]
COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)]


@pytest.mark.parametrize(("batch", "calls"), [(1, [1, 1, 1, 1]), (3, [3, 1]), (8, [4])])
@pytest.mark.parametrize("kind", ["image/png", "image/jpeg"])
def test_each_region_has_its_answer(batch: int, calls: list[int], kind: str) -> None:
    model, recipe = Mean(), Recipe(bundles.manifest(**BASE))
    data = quarters(f".{kind.partition('/')[2]}")
    result = recipe.run(model, data, media.with_regions(kind, CORNERS), batch)
    assert model.calls == calls
    for part, colour in zip(result.parts, COLOURS, strict=True):
        assert list(part.values.values()) == pytest.approx(colour, abs=3)
    whole = recipe.run(model, data, kind)
    assert whole.parts == () and list(whole.values.values()) == pytest.approx((127, 127, 127), abs=2)


def test_one_region_is_one_part_and_can_be_prepared_alone() -> None:
    recipe = Recipe(bundles.manifest(**BASE))
    text = media.with_regions("image/png", CORNERS[:1])
    assert recipe.run(Mean(), quarters(), text) == Result(parts=(Result(values={"r": 255, "g": 0, "b": 0}),))
    prepared = recipe.prepare(quarters(), text)
    assert prepared.inputs[0].shape == (1, SIDE, SIDE, 3) and prepared.place.region == CORNERS[0]
    with pytest.raises(ModelError, match="4 inputs of one picture"):
        recipe.prepare(quarters(), media.with_regions("image/png", CORNERS))


def test_a_model_without_a_batch_is_told_apart() -> None:
    recipe = Recipe(bundles.manifest(**BASE))
    with pytest.raises(ModelError, match=r"one row for each of 4 inputs \(set the variant's batch to 1"):
        recipe.run(lambda inputs: [np.zeros((1, 3))], quarters(), media.with_regions("image/png", CORNERS), 4)


@pytest.mark.parametrize(
    ("region", "k"), [((0, 0, 1, 1), 8), ((0, 0, 0.5, 0.5), 4), ((0, 0, 1, 0.3), 2), ((0.4, 0.4, 0.5, 0.5), 1)]
)
def test_a_jpeg_is_reduced_as_far_as_its_regions_allow(region: tuple[float, float, float, float], k: int) -> None:
    data = quarters(".jpg", 128)
    assert pictures.reduction(data, [region], SIDE, SIDE) == k
    assert pictures.decode(data, 1 << 20, k).shape == (128 // k, 128 // k, 3)
    assert pictures.reduction(data, [], SIDE, SIDE) == 1
    assert pictures.reduction(quarters(".png", 128), [region], SIDE, SIDE) == 1


def test_a_turned_picture_is_not_reduced_too_far() -> None:
    wide = bytes(cv2.imencode(".jpg", np.zeros((64, 256, 3), np.uint8))[1].tobytes())
    # an EXIF orientation would make it 64 wide: then a quarter of its width is 16 pixels
    assert pictures.reduction(wide, [(0, 0, 0.25, 1)], SIDE, SIDE) == 1


def test_letterbox_from_the_start() -> None:
    picture = np.full((10, 40, 3), 200, np.uint8)
    out, place = pictures.letterbox(picture, 20, 20, 7, align="start")
    assert list(place) == [0, 0, 1, 0.25]
    assert (out[:5] == 200).all() and (out[5:] == 7).all()


YOLO: dict[str, Any] = {
    "task": "detect",
    "labels": ("white",),
    "input": Picture(width=SIDE, height=SIDE),
    "post": (Yolo(layout="rows", min_score=0.5, iou=0.5),),
}


def white(inputs: Sequence[Array]) -> list[Array]:
    """A detector that really looks: one box around all white pixels of its input."""
    (picture,) = inputs[0]
    rows, columns = np.nonzero((picture > 128).all(axis=2))
    if not rows.size:
        return [np.zeros((1, 1, 5), np.float32)]
    x0, x1, y0, y1 = columns.min(), columns.max() + 1, rows.min(), rows.max() + 1
    return [np.array([[[(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0, 0.9]]], np.float32)]


def with_box(x0: int, y0: int, x1: int, y1: int, side: int = 128) -> bytes:
    picture = np.zeros((side, side, 3), np.uint8)
    picture[y0:y1, x0:x1] = 255
    return bytes(cv2.imencode(".png", picture)[1].tobytes())


def test_what_is_found_in_a_region_is_told_in_the_whole_picture() -> None:
    recipe = Recipe(bundles.manifest(**{**YOLO, "pre": (Fit(), Tensor(layout="nhwc"))}))
    text = media.with_regions("image/png", [(0.25, 0.25, 0.75, 0.75)])
    (part,) = recipe.run(white, with_box(48, 56, 64, 72), text).parts
    (found,) = part.detections
    assert (found.x0, found.y0, found.x1, found.y1) == pytest.approx((48 / 128, 56 / 128, 64 / 128, 72 / 128), abs=0.02)


@pytest.mark.parametrize(
    ("box", "n"), [((4, 4, 12, 12), 1), ((60, 60, 68, 68), 1), ((8, 56, 120, 72), 1), ((20, 20, 30, 30), 1)]
)
@pytest.mark.parametrize("fit", ["stretch", "letterbox"])
def test_tiles_find_each_object_once(box: tuple[int, int, int, int], n: int, fit: Any) -> None:
    tiles = Tiles(size=32, overlap=0.4, max_tiles=64, whole=box[2] - box[0] > 32)
    recipe = Recipe(bundles.manifest(**{**YOLO, "pre": (tiles, Fit(mode=fit), Tensor(layout="nhwc"))}))
    found = recipe.run(white, with_box(*box), "image/png").detections
    assert len(found) == n
    corners = (found[0].x0, found[0].y0, found[0].x1, found[0].y1)
    assert corners == pytest.approx([side / 128 for side in box], abs=0.06)


def test_tiles_see_what_the_whole_picture_is_too_coarse_for() -> None:
    tiny = with_box(301, 301, 309, 309, 512)  # a quarter of a pixel across on the model's input
    pre = (Fit(interpolation="area"), Tensor(layout="nhwc"))
    assert Recipe(bundles.manifest(**{**YOLO, "pre": pre})).run(white, tiny, "image/png") == Result()
    tiled = Recipe(bundles.manifest(**{**YOLO, "pre": (Tiles(size=64, max_tiles=64), *pre)}))
    (found,) = tiled.run(white, tiny, "image/png").detections
    assert found.x0 == pytest.approx(301 / 512, abs=0.01)
    with pytest.raises(ModelError, match="inputs of one picture"):
        tiled.prepare(tiny, "image/png")
    assert tiled.run(white, with_box(0, 0, 1, 1), media.with_regions("image/png", CORNERS)).parts[3] == Result()


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({**BASE, "pre": (Tiles(size=8), *BASE["pre"])}, "'tiles' is for detectors"),
        ({**YOLO, "pre": (Fit(), Tiles(size=8), Tensor(layout="nhwc"))}, "after 'tiles' if any"),
        ({"post": (Yolo(),), "labels": ("a",)}, "'yolo' needs a picture"),
        ({"post": (Segment(layout="nchw"),), "labels": ("a",)}, "'segment' needs a picture"),
        ({"post": (TopK(), TopK()), "labels": ("a",)}, "then one other, then perhaps 'anomaly'"),
    ],
)
def test_steps_that_do_not_fit_are_refused_at_load(changes: dict[str, Any], what: str) -> None:
    with pytest.raises(ModelError, match=what):
        Recipe(bundles.manifest(**changes))
