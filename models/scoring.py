"""How good a detector is on pictures with known content: average precision, what was found, what was called wrongly.

Boxes are corners x0, y0, x1, y1 in fractions of the picture. The rules are those of Pascal VOC (Everingham et al. 2010)
with the area under the whole curve, as since its 2010 edition: of the detections of a class, best first over all
pictures, each takes the object it overlaps most, an object counts once, and what is marked `ignore` counts neither way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Box = tuple[float, float, float, float]
IOU = 0.5


@dataclass(frozen=True)
class Truth:
    """An object on a picture.

    Attributes:
        label: what it is. also: other words that are right for it.
        ignore: neither to be found nor an error when found.
    """

    label: str
    box: Box
    also: tuple[str, ...] = ()
    ignore: bool = False

    @property
    def words(self) -> tuple[str, ...]:
        return (self.label, *self.also)


@dataclass(frozen=True)
class Guess:
    """A detection."""

    label: str
    score: float
    box: Box


@dataclass(frozen=True)
class Tally:
    """What a detector said at one threshold.

    Attributes:
        found: objects that were found. missed: those that were not, as (picture, label).
        wrong: detections on an object that is something else, as (picture, said, is).
        unexplained: detections where nothing is labelled, as (picture, said).
    """

    found: int
    missed: tuple[tuple[str, str], ...]
    wrong: tuple[tuple[str, str, str], ...]
    unexplained: tuple[tuple[str, str], ...]


def area(box: Box) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def shared(a: Box, b: Box) -> float:
    """The area that two boxes have in common."""
    return area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))


def iou(a: Box, b: Box) -> float:
    """Intersection over union; 0 of two empty boxes."""
    both = shared(a, b)
    union = area(a) + area(b) - both
    return both / union if union else 0.0


def ignorable(guess: Guess, truths: Sequence[Truth]) -> bool:
    """It lies at least half inside an object of its kind that is marked `ignore`."""
    return any(
        truth.ignore and guess.label in truth.words and shared(guess.box, truth.box) >= 0.5 * area(guess.box)
        for truth in truths
    )


def vocabulary(truths: Mapping[str, Sequence[Truth]], labels: Sequence[str]) -> dict[str, list[Truth]]:
    """The truths in a model's words: those it has no word for are marked `ignore`, so that they count neither way."""
    known = set(labels)
    found: dict[str, list[Truth]] = {}
    for name, of_picture in truths.items():
        found[name] = []
        for truth in of_picture:
            words = [word for word in truth.words if word in known]
            # kept under its own name where no word fits: the place is not empty, whatever is said of it
            label, also = (words[0], tuple(words[1:])) if words else (truth.label, ())
            found[name].append(Truth(label, truth.box, also, truth.ignore or not words))
    return found


def average_precision(
    guesses: Mapping[str, Sequence[Guess]], truths: Mapping[str, Sequence[Truth]], label: str
) -> float:
    """Of one class, over all pictures; the area under precision over recall, precision made monotonic.

    Raises:
        ValueError: no object of the class is on the pictures.
    """
    positives = sum(truth.label == label and not truth.ignore for each in truths.values() for truth in each)
    if not positives:
        raise ValueError(f"no '{label}' to be found")
    ranked = sorted(
        ((guess, name) for name, each in guesses.items() for guess in each),
        key=lambda pair: (-pair[0].score, pair[1], pair[0].box),
    )
    taken: set[tuple[str, int]] = set()
    hits: list[bool] = []
    for guess, name in ranked:
        hit = _judge(guess, name, truths[name], label, taken)
        if hit is not None:
            hits.append(hit)
    return _area_under(hits, positives)


def _judge(guess: Guess, name: str, truths: Sequence[Truth], label: str, taken: set[tuple[str, int]]) -> bool | None:
    """Whether a detection is right for the class, None when it is no matter of it."""
    best = max(
        (
            i
            for i, truth in enumerate(truths)
            if not truth.ignore and truth.label == label and guess.label in truth.words
        ),
        key=lambda i: iou(guess.box, truths[i].box),
        default=-1,
    )
    if best >= 0 and iou(guess.box, truths[best].box) >= IOU:
        if (name, best) in taken:
            # the same object again: an error in the class's own word, passed over in another that fits as well
            return False if guess.label == label else None
        taken.add((name, best))
        return True
    if guess.label != label or ignorable(guess, truths):
        return None
    # right for an object that goes by another of its names
    named = (t for t in truths if not t.ignore and t.label != label and label in t.words)
    return None if any(iou(guess.box, truth.box) >= IOU for truth in named) else False


def _area_under(hits: Sequence[bool], positives: int) -> float:
    precision, right = [], 0
    for rank, hit in enumerate(hits, 1):
        right += hit
        precision.append(right / rank)
    for i in range(len(precision) - 2, -1, -1):
        precision[i] = max(precision[i], precision[i + 1])
    return sum(p for p, hit in zip(precision, hits, strict=True) if hit) / positives


def mean_average_precision(
    guesses: Mapping[str, Sequence[Guess]], truths: Mapping[str, Sequence[Truth]]
) -> tuple[float, dict[str, float]]:
    """The mean over the classes that are on the pictures, and each of them."""
    labels = sorted({truth.label for each in truths.values() for truth in each if not truth.ignore})
    each = {label: average_precision(guesses, truths, label) for label in labels}
    return (sum(each.values()) / len(each) if each else 0.0), each


def tally(guesses: Mapping[str, Sequence[Guess]], truths: Mapping[str, Sequence[Truth]]) -> Tally:
    """What was found, missed and called wrongly; the guesses are those above a threshold already."""
    found, missed, wrong, unexplained = 0, [], [], []
    for name, objects in truths.items():
        said = sorted(guesses.get(name, ()), key=lambda guess: -guess.score)
        seen: set[int] = set()
        for guess in said:
            over = [i for i, truth in enumerate(objects) if not truth.ignore and iou(guess.box, truth.box) >= IOU]
            right = [i for i in over if guess.label in objects[i].words]
            fresh = [i for i in right if i not in seen]
            if fresh:
                seen.add(max(fresh, key=lambda i: iou(guess.box, objects[i].box)))
            elif not right and not ignorable(guess, objects):
                if over:
                    wrong.append((name, guess.label, objects[over[0]].label))
                else:
                    unexplained.append((name, guess.label))
        found += len(seen)
        missed += [(name, t.label) for i, t in enumerate(objects) if not t.ignore and i not in seen]
    return Tally(found, tuple(missed), tuple(wrong), tuple(unexplained))
