"""Which labelled objects are small on a detector's input, and what the bar's table counts."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from gateway.infer.manifest import Manifest
from models import kit
from models.detect import bar, data, measure
from models.scoring import Guess, Truth, tally


def manifest(name: str) -> Manifest:
    return kit.manifest(kit.read_spec(kit.MODELS / name / "model.toml"))


def test_an_object_is_measured_on_the_models_input() -> None:
    half = Truth("person", (0.0, 0.0, 0.5, 0.25))
    # stretched to 300 x 300 whatever the picture's sides
    assert bar.pixels(half, manifest("detect"), (1920, 1080)) == pytest.approx(150 * 75)
    # letterboxed to 512 x 512: 1024 x 256 becomes 512 x 128
    assert bar.pixels(half, manifest("detect_coco"), (1024, 256)) == pytest.approx(256 * 32)


def test_small_ones_count_neither_way() -> None:
    picture = bytes(cv2.imencode(".png", np.zeros((512, 512, 3), np.uint8))[1].tobytes())
    side = 32 / 512
    known = {"a": [Truth("car", (0, 0, side, side)), Truth("car", (0.5, 0.5, 0.5 + side, 0.5 + side * 0.9))]}
    enough = bar.large(known, manifest("detect_coco"), {"a": (picture, "image/png")})
    assert [truth.ignore for truth in enough["a"]] == [False, True]
    assert bar.missed(tally({"a": [Guess("car", 0.9, (0, 0, side, side))]}, known), known)[2] == "1 of 2"
    assert bar.missed(tally({}, enough), enough) == ["0 of 0", "0 of 0", "1 of 1"]


def test_the_ways_change_what_they_name() -> None:
    stated = manifest("detect_coco")
    assert measure.threshold(stated) == 0.45
    once = measure.adjusted(stated, again=(), min_score=0.3)
    assert measure.threshold(once) == 0.3
    assert [step.again for step in once.pre if hasattr(step, "again")] == [()]
    assert measure.adjusted(stated) == stated


def test_no_labelled_picture_is_left_out_of_the_cards() -> None:
    labelled = [picture for picture in data.pictures() if picture.truths]
    for name in ("detect", "detect_coco"):
        text = Path(kit.MODELS / name / "README.md").read_text()
        assert f"{len(labelled)} pictures labelled by hand" in text
        people = sum(t.label == "person" and not t.ignore for p in labelled for t in p.truths)
        assert f" of {people} |" in text, "the table of the bar is of all people"
