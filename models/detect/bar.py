"""The bar of the detectors: people, cats and cars found on the labelled pictures, at several thresholds and ways of looking.

Which objects are large enough to count separately is decided by their labels alone: those of at least 32 x 32 pixels on the
model's input, which is where COCO's evaluation ends its class of small objects (Lin et al. 2014, `areaRng`). All are told too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from gateway.infer import pictures as decoding
from gateway.infer.manifest import Fit, Manifest, Picture
from models import kit, scoring
from models.detect import measure
from models.scoring import Tally, Truth

KINDS = ("person", "cat", "car")  # those the bar speaks of
SMALL = 32 * 32  # pixels of the input: COCO's bound of "small"
SCORES = (0.5, 0.4, 0.3)

Truths = Mapping[str, Sequence[Truth]]
# what `measure.adjusted` changes
Changes = Mapping[str, Any]


def counted(known: Truths) -> Counter[str]:
    """How many of each kind there are to be found."""
    return Counter(truth.label for each in known.values() for truth in each if not truth.ignore)


def pixels(truth: Truth, manifest: Manifest, size: tuple[int, int]) -> float:
    """The area of an object on the model's input when the whole picture is fitted to it.

    Args:
        size: width and height of the picture in pixels.
    """
    spec, fit = manifest.input, next(step for step in manifest.pre if isinstance(step, Fit))
    assert isinstance(spec, Picture)  # detectors look at pictures
    across, down = spec.width / size[0], spec.height / size[1]
    if fit.mode == "letterbox":
        across = down = min(across, down)
    return scoring.area(truth.box) * size[0] * across * size[1] * down


def large(known: Truths, manifest: Manifest, pictures: measure.Encoded) -> dict[str, list[Truth]]:
    """The same truths, those marked `ignore` that are small on the model's input."""
    sizes = {name: decoding.size(data) for name, (data, _) in pictures.items()}
    return {
        name: [
            replace(truth, ignore=truth.ignore or pixels(truth, manifest, sizes[name]) < SMALL) for truth in of_picture
        ]
        for name, of_picture in known.items()
    }


def missed(said: Tally, known: Truths) -> list[str]:
    """For each kind `missed of so many`."""
    gone, there = Counter(label for _, label in said.missed), counted(known)
    return [f"{gone[kind]} of {there[kind]}" for kind in KINDS]


def row(model: kit.Loaded, pictures: measure.Encoded, known: Truths, changes: Changes) -> list[str]:
    """What is missed of all and of those that are not small, wrong names, boxes where nothing is labelled, time."""
    found, took = measure.guesses(model, pictures, **changes)
    enough = large(known, model.manifest, pictures)
    said = scoring.tally(found, known)
    return [
        *missed(said, known),
        *missed(scoring.tally(found, enough), enough),
        str(len(said.wrong)),
        str(len(said.unexplained)),
        f"{took:.0f} ms",
    ]


def table(model: kit.Loaded, ways: Mapping[str, Changes], pictures: measure.Encoded, truths: Truths) -> list[str]:
    """A row for each way of looking and threshold, the bundle's own first.

    Args:
        ways: name -> how it differs from the bundle; `{}` is the bundle itself.
        pictures: the truths are those of these.
    """
    known = scoring.vocabulary({name: truths[name] for name in pictures}, model.manifest.labels)
    scores = sorted({*SCORES, measure.threshold(model.manifest)}, reverse=True)
    rows = [
        [name, f"{score:g}", *row(model, pictures, known, {**changes, "min_score": score})]
        for name, changes in ways.items()
        for score in scores
    ]
    kinds = [f"{kind} missed" for kind in KINDS]
    return kit.table(
        [
            "looking",
            "score from",
            *kinds,
            *(f"{each}, not small" for each in kinds),
            "wrong name",
            "nothing there",
            "time",
        ],
        rows,
    )
