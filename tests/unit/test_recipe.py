"""What a manifest declares runs as declared, and what cannot run is refused when it is loaded."""

import cv2
import msgspec
import numpy as np
import pytest

from gateway.contract import Detection, Result
from gateway.errors import ModelError
from gateway.infer import golden
from gateway.infer.manifest import (
    Features,
    Fit,
    Normalise,
    Picture,
    Softmax,
    Ssd,
    Standardise,
    Tensor,
    TopK,
    Values,
    Window,
)
from gateway.infer.recipe import Recipe
from tests.unit import bundles

CLASSES = {"task": "classify", "labels": ("off", "idle", "run"), "post": (Softmax(), TopK(k=2, min_score=0.15))}
LETTERBOX = {
    "task": "detect",
    "labels": ("???", "cat", "dog"),
    "input": Picture(width=64, height=64),
    "pre": (Fit(mode="letterbox"), Normalise(scale=1 / 127.5, mean=(1.0,)), Tensor(layout="nhwc")),
    "post": (Ssd(strides=(32,)),),
}


def jpeg(width: int, height: int) -> bytes:
    return bytes(cv2.imencode(".jpg", np.zeros((height, width, 3), np.uint8))[1].tobytes())


def test_a_window_is_chosen_by_name_and_scaled() -> None:
    window = Window(channels=("b", "a"), length=2, rate_hz=1)
    pre = (Normalise(mean=(1.0, 0.0), std=(1.0, 2.0)), Tensor(layout="ncl"))
    recipe = Recipe(bundles.manifest(input=window, pre=pre))
    data = np.array([(1, 10.0), (2, 20.0)], [("a", "<i2"), ("b", "<f4")]).tobytes()
    (tensor,), _ = recipe.prepare(memoryview(data), "records;a:h:A,b:f:V")
    assert tensor.tolist() == [[[9, 19], [0.5, 1]]]


def test_features_and_standardise_run() -> None:
    pre = (Standardise(), Features(names=("mean", "std")), Tensor(layout="flat"))
    (tensor,), _ = Recipe(bundles.manifest(pre=pre)).prepare(bundles.window(1, 2, 3), bundles.MEDIA)
    assert tensor.tolist()[0] == pytest.approx([0, 1], abs=1e-6)


def test_classes_are_named_and_weak_ones_left_out() -> None:
    recipe = Recipe(bundles.manifest(**CLASSES))
    result = recipe.finish([np.log(np.array([[0.1, 0.2, 0.7]], np.float32))])
    assert result.label == "run" and result.score == pytest.approx(0.7)
    assert result.scores == pytest.approx({"run": 0.7, "idle": 0.2}, abs=1e-6)
    sure = Recipe(bundles.manifest(**{**CLASSES, "post": (TopK(min_score=0.9),)}))
    assert sure.finish([np.array([0.1, 0.2, 0.7])]) == Result()


def test_values_are_scaled_and_must_be_finite() -> None:
    recipe = Recipe(bundles.manifest(post=(Values(names=("t",), scale=2, offset=1),)))
    assert recipe.finish([np.array([[3.0]])]).values == {"t": 7.0}
    with pytest.raises(ModelError, match="answered nan for t"):
        recipe.finish([np.array([[np.nan]])])


def test_boxes_come_back_to_the_cameras_picture() -> None:
    recipe = Recipe(bundles.manifest(**LETTERBOX))
    (tensor,), place = recipe.prepare(jpeg(128, 64), "image/jpeg")
    assert tensor.shape == (1, 64, 64, 3)
    assert tensor[0, 32, 32].tolist() == [-1, -1, -1] and tensor[0, 2, 2, 0] == pytest.approx(114 / 127.5 - 1)
    raw, logits = np.zeros((1, 12, 4), np.float32), np.full((1, 12, 3), -9, np.float32)
    logits[0, 1, 2] = 5  # cell (0, 0), aspect ratio 2, scale .575
    recipe = Recipe(bundles.manifest(**{**LETTERBOX, "post": (Ssd(strides=(32,), min_scale=0.1, max_scale=0.2),)}))
    result = recipe.finish([raw, logits], place)
    (found,) = result.detections
    assert (result.label, found.label) == ("dog", "dog") and found.score == result.score > 0.99
    width, height = 0.15 * 2**0.5, 0.15 / 2**0.5
    assert (found.x0, found.x1) == pytest.approx((0.25 - width / 2, 0.25 + width / 2), abs=1e-6)
    # the picture covers the middle half of the input: 0.25 there is its upper edge
    assert (found.y0, found.y1) == pytest.approx((0, height), abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"pre": (Standardise(),)}, "must be 'tensor'"),
        ({"pre": (Fit(), Tensor(layout="flat"))}, "'fit' must be the first"),
        ({"pre": (Tensor(layout="nchw"),)}, "'nchw' does not fit"),
        ({"pre": (Features(names=("rms",)), Tensor(layout="ncl"))}, "'features' must be followed"),
        ({"pre": (Normalise(mean=(1.0, 2.0)), Tensor(layout="flat"))}, "wants 1 or 1 values"),
        ({"post": (TopK(),)}, "'top_k' needs labels"),
        ({"post": (Softmax(),)}, "post steps are"),
        ({"post": (Ssd(),), "labels": ("a",)}, "'ssd' needs a picture"),
        ({**LETTERBOX, "pre": (Tensor(layout="nhwc"),)}, "'fit' must be the first"),
        ({**LETTERBOX, "pre": (Fit(), Standardise(), Tensor(layout="nhwc"))}, "are for windows"),
    ],
)
def test_steps_that_do_not_fit_are_refused_at_load(changes: dict[str, object], what: str) -> None:
    with pytest.raises(ModelError, match=what):
        Recipe(bundles.manifest(**changes))


def test_input_that_does_not_fit_is_refused_by_name() -> None:
    windows, pictures = Recipe(bundles.manifest()), Recipe(bundles.manifest(**LETTERBOX))
    for recipe, data, media, what in [
        (windows, b"", "image/jpeg", "takes records, not image/jpeg"),
        (windows, b"", "records;nonsense", "not a schema"),
        (windows, bundles.window(1)[:-4], bundles.MEDIA, "takes 8 records of 4 bytes, got 28"),
        (windows, b"\0" * 32, "records;x:f:", "needs the channel 'p'"),
        (pictures, b"", "records;p:f:W", "takes pictures"),
        (pictures, b"nonsense", "image/jpeg", "not a picture"),
    ]:
        with pytest.raises(ModelError, match=what):
            recipe.prepare(data, media)
    with pytest.raises(ModelError, match="4 scores for 3 labels"):
        Recipe(bundles.manifest(**CLASSES)).finish([np.zeros((1, 4))])
    with pytest.raises(ModelError, match="needs boxes, then scores for 3 labels"):
        pictures.finish([np.zeros((1, 12, 4)), np.zeros((1, 12, 4))])


def test_a_strangers_schemas_do_not_pile_up() -> None:
    recipe = Recipe(bundles.manifest())
    for i in range(100):
        recipe.prepare(bundles.window(1), f"records;p:f:{i}")
    assert len(recipe._readers) <= 16


@pytest.mark.parametrize(
    ("other", "off"),
    [
        (Result("a", 0.5, {"a": 0.5}), 0.0),
        (Result("a", 0.75, {"a": 0.5}), 0.25),
        (Result("a", 0.5, {"a": 0.5, "b": 0.125}), 0.125),
        (Result("b", 0.5, {"a": 0.5}), float("inf")),
        (Result("a", 0.5, {"a": 0.5}, values={"x": 1}), float("inf")),
        (Result("a", 0.5, {"a": 0.5}, (Detection("a", 1, 0, 0, 1, 1),)), float("inf")),
    ],
)
def test_how_far_results_are_apart(other: Result, off: float) -> None:
    assert golden.result_difference(Result("a", 0.5, {"a": 0.5}), other) == off
    assert golden.result_difference(other, Result("a", 0.5, {"a": 0.5})) == off


def test_how_far_boxes_and_outputs_are_apart() -> None:
    one, two = Detection("a", 1, 0, 0, 1, 1), Detection("a", 1, 0, 0.25, 1, 1)
    assert golden.result_difference(Result(detections=(one,)), Result(detections=(two,))) == 0.25
    named = msgspec.structs.replace(two, label="b")
    assert golden.result_difference(Result(detections=(one,)), Result(detections=(named,))) == float("inf")
    got = [np.array([[1.0, 2.0]]), np.array([4.4])]
    assert golden.outputs_difference(got, np.array([1, 2, 4], np.float32)) == pytest.approx(0.1)
    assert golden.outputs_difference(got, np.array([1], np.float32)) == float("inf")
