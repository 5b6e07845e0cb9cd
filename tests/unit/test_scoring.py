"""Average precision against its definition written as plain loops; what counts as found, missed and wrong."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import scoring
from models.scoring import Guess, Truth


@st.composite
def boxes(draw: st.DrawFn) -> scoring.Box:
    x = sorted(draw(st.lists(st.integers(0, 8), min_size=2, max_size=2, unique=True)))
    y = sorted(draw(st.lists(st.integers(0, 8), min_size=2, max_size=2, unique=True)))
    return x[0] / 8, y[0] / 8, x[1] / 8, y[1] / 8


labels = st.sampled_from(["cat", "dog"])
pictures = st.sampled_from(["a", "b"])
truths = st.lists(st.tuples(pictures, st.builds(Truth, labels, boxes())), max_size=6)
# no two scores are the same: then the order is no matter of taste
scores = st.lists(st.integers(1, 1000), unique=True, max_size=8)


@st.composite
def guesses(draw: st.DrawFn) -> list[tuple[str, Guess]]:
    return [(draw(pictures), Guess(draw(labels), score / 1000, draw(boxes()))) for score in draw(scores)]


def cells(box: scoring.Box) -> set[tuple[int, int]]:
    """The box on a grid of 8 x 8: areas by counting."""
    x0, y0, x1, y1 = (round(at * 8) for at in box)
    return {(x, y) for x in range(x0, x1) for y in range(y0, y1)}


def counted_iou(a: scoring.Box, b: scoring.Box) -> float:
    one, other = cells(a), cells(b)
    return len(one & other) / len(one | other)


def by_definition(said: list[tuple[str, Guess]], real: list[tuple[str, Truth]], label: str) -> float:
    """Everingham et al. 2010: the area under max over recall' >= recall of precision(recall')."""
    wanted = [(name, truth) for name, truth in real if truth.label == label]
    taken: list[tuple[str, Truth]] = []
    points: list[tuple[float, float]] = []
    right = 0
    ranked = sorted((one for one in said if one[1].label == label), key=lambda one: -one[1].score)
    for rank, (name, guess) in enumerate(ranked, 1):
        best, overlap = -1, 0.0
        for number, (where, truth) in enumerate(wanted):
            if where == name and counted_iou(guess.box, truth.box) > overlap:
                best, overlap = number, counted_iou(guess.box, truth.box)
        if best >= 0 and overlap >= 0.5 and not any(wanted[best] is one for one in taken):
            taken.append(wanted[best])
            right += 1
        points.append((right / len(wanted), right / rank))
    total, before = 0.0, 0.0
    for recall in sorted({recall for recall, _ in points}):
        total += (recall - before) * max(p for r, p in points if r >= recall)
        before = recall
    return total


def grouped(pairs: list[tuple[str, Guess]]) -> dict[str, list[Guess]]:
    return {name: [each for where, each in pairs if where == name] for name in "ab"}


@settings(deadline=None)
@given(guesses(), truths)
def test_average_precision_is_that_of_the_definition(
    said: list[tuple[str, Guess]], real: list[tuple[str, Truth]]
) -> None:
    by_picture = {name: [truth for where, truth in real if where == name] for name in "ab"}
    if not any(truth.label == "cat" for _, truth in real):
        with pytest.raises(ValueError, match="no 'cat'"):
            scoring.average_precision(grouped(said), by_picture, "cat")
        return
    found = scoring.average_precision(grouped(said), by_picture, "cat")
    assert found == pytest.approx(by_definition(said, real, "cat"))


@settings(deadline=None)
@given(boxes(), boxes())
def test_iou_is_what_counting_cells_gives(a: scoring.Box, b: scoring.Box) -> None:
    assert scoring.iou(a, b) == pytest.approx(counted_iou(a, b))


LEFT, RIGHT, ALL = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0), (0.0, 0.0, 1.0, 1.0)


def test_found_missed_wrong_and_unexplained() -> None:
    real = {"p": [Truth("cat", LEFT), Truth("dog", RIGHT)], "q": [Truth("car", ALL, ("vehicle",))]}
    said = {
        "p": [Guess("cat", 0.9, LEFT), Guess("cat", 0.8, RIGHT), Guess("cup", 0.7, (0.4, 0.4, 0.6, 0.6))],
        "q": [Guess("vehicle", 0.6, ALL)],
    }
    tally = scoring.tally(said, real)
    assert tally == scoring.Tally(2, (("p", "dog"),), (("p", "cat", "dog"),), (("p", "cup"),))


def test_what_is_ignored_counts_neither_way() -> None:
    real = {"p": [Truth("cat", LEFT), Truth("cat", RIGHT, ignore=True)]}
    said = {"p": [Guess("cat", 0.9, (0.6, 0.0, 0.9, 1.0)), Guess("cat", 0.8, LEFT)]}
    assert scoring.average_precision(said, real, "cat") == 1.0
    assert scoring.tally(said, real) == scoring.Tally(1, (), (), ())
    # beside it, it is an error
    said["p"][0] = Guess("cat", 0.9, (0.3, 0.0, 0.6, 1.0))
    assert scoring.average_precision(said, real, "cat") == 0.5


def test_a_model_is_judged_in_its_own_words() -> None:
    real = {"p": [Truth("cattle", LEFT, ("cow",)), Truth("spoon", RIGHT)]}
    known = scoring.vocabulary(real, ["cow", "car"])
    assert known["p"][0].label == "cow"
    assert known["p"][1].ignore
    assert scoring.mean_average_precision({"p": [Guess("cow", 0.5, LEFT)]}, known) == (1.0, {"cow": 1.0})


def test_another_word_that_fits_is_no_error_of_its_class() -> None:
    real = {"p": [Truth("van", LEFT, ("car",)), Truth("car", RIGHT)]}
    said = {"p": [Guess("car", 0.9, LEFT), Guess("car", 0.8, RIGHT)]}
    assert scoring.average_precision(said, real, "car") == 1.0
    assert scoring.average_precision(said, real, "van") == 1.0
