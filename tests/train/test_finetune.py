"""A few-shot classifier: it learns what the examples show, says how well, and is the same each time."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from gateway.errors import ModelError
from sdk.optimise.finetune import Tuned, fine_tune, read_examples, vary

RNG = np.random.default_rng(3)
SIDE = 32


class Colours(torch.nn.Module):  # type: ignore[misc]
    """A stand-in for a trained network: the mean colour of each quarter of the picture."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)


def prepare(picture: np.ndarray) -> np.ndarray:
    return np.asarray(cv2.resize(picture, (SIDE, SIDE)).transpose(2, 0, 1).astype(np.float32) / 255)


def picture(colour: tuple[int, int, int]) -> np.ndarray:
    grey = RNG.integers(60, 160)
    canvas = np.full((48, 48, 3), grey, np.uint8)
    canvas[12:36, 12:36] = colour
    return canvas


def lamps(each: int) -> list[tuple[np.ndarray, str]]:
    return [(picture(c), name) for name, c in (("green", (40, 220, 60)), ("red", (230, 40, 40))) for _ in range(each)]


def tuned(seed: int = 0) -> Tuned:
    random = np.random.default_rng(8)
    examples = [(np.clip(p + random.integers(-20, 20), 0, 255).astype(np.uint8), label) for p, label in lamps(6)]
    return fine_tune(Colours(), examples, prepare, variations=4, seed=seed, say=lambda line: None)


def test_it_tells_the_classes_apart_on_pictures_it_has_not_seen() -> None:
    found = tuned()
    assert found.labels == ("green", "red")
    assert found.validation == 1.0
    assert found.confused == {}
    unseen = lamps(10)
    batch = torch.from_numpy(np.stack([prepare(each) for each, _ in unseen]))
    with torch.no_grad():
        said = [found.labels[i] for i in found.module(batch).argmax(1).tolist()]
    assert said == [label for _, label in unseen]


def test_where_nothing_can_be_learned_the_validation_says_so() -> None:
    random = np.random.default_rng(4)
    noise = [(random.integers(0, 255, (48, 48, 3)).astype(np.uint8), "ab"[i % 2]) for i in range(24)]
    found = fine_tune(Colours(), noise, prepare, variations=2, say=lambda line: None)
    assert found.validation < 0.85
    assert sum(found.confused.values()) == round(24 * (1 - found.validation))


def test_a_folder_of_folders_and_the_same_weights_each_time(tmp_path: Path) -> None:
    for number, (each, label) in enumerate(lamps(3)):
        (tmp_path / label).mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / label / f"{number}.png"), cv2.cvtColor(each, cv2.COLOR_RGB2BGR))
    (tmp_path / "notes.txt").write_text("no example")
    first, again = (fine_tune(Colours(), tmp_path, prepare, variations=2, say=lambda line: None) for _ in range(2))
    assert first.labels == ("green", "red")
    weights = [model.module.state_dict() for model in (first, again)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_what_is_too_little_or_no_picture(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="two classes and two pictures"):
        fine_tune(Colours(), lamps(1), prepare, say=lambda line: None)
    with pytest.raises(ModelError, match="two classes"):
        fine_tune(Colours(), [each for each in lamps(4) if each[1] == "red"], prepare, say=lambda line: None)
    (tmp_path / "red").mkdir()
    (tmp_path / "red" / "1.png").write_bytes(b"no picture")
    with pytest.raises(ModelError, match=r"1\.png: cannot be read"):
        read_examples(tmp_path)


def test_features_by_place_tell_where_a_lamp_is_lit() -> None:
    class Corners(torch.nn.Module):  # type: ignore[misc]
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.adaptive_avg_pool2d(x, 4)

    def lit(left: bool) -> np.ndarray:
        canvas = np.full((48, 48, 3), RNG.integers(60, 160), np.uint8)
        canvas[18:30, 6:18] = (220, 220, 210) if left else canvas[18:30, 6:18]
        canvas[18:30, 30:42] = canvas[18:30, 30:42] if left else (220, 220, 210)
        return canvas

    examples = [(lit(left), name) for name, left in (("left", True), ("right", False)) for _ in range(4)]
    found = fine_tune(Corners(), examples, prepare, say=lambda line: None)
    batch = torch.from_numpy(np.stack([prepare(lit(number % 2 == 0)) for number in range(20)]))
    with torch.no_grad():
        assert found.module(batch).argmax(1).tolist() == [0, 1] * 10


def test_a_variation_is_another_picture_of_the_same_size() -> None:
    one = picture((40, 220, 60))
    other = vary(one, np.random.default_rng(1))
    assert other.shape == one.shape
    assert other.dtype == np.uint8
    assert (other != one).any()
    # the lamp's hue stays: green is still the most of its middle
    assert other[16:32, 16:32].mean(axis=(0, 1)).argmax() == 1
