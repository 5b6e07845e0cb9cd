"""Detectors on the labelled pictures: what `fetch.py` decides by on the validation split, and `evaluate.py` reports."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import msgspec

from gateway.errors import ModelError
from gateway.infer.manifest import Fit, Gfl, Manifest, Ssd, Tiles, Yolo
from gateway.infer.recipe import Recipe
from gateway.infer.steps import Array
from models import kit, scoring
from models.scoring import Guess, Truth
from sdk.optimise.variants import Built

MAX_LOSS = 0.02  # of mAP, from fp32 to int8: a variant that loses more is refused
CURVE_FROM = 0.05  # the lowest score that counts for the average precision's curve

Encoded = Mapping[str, tuple[bytes, str]]


def adjusted(
    manifest: Manifest,
    *,
    min_score: float | None = None,
    tiles: Tiles | None = None,
    again: tuple[float, ...] | None = None,
) -> Manifest:
    """The same model with another threshold, looking at tiles of a picture, or again at other sizes."""
    post = manifest.post
    if min_score is not None:
        post = tuple(
            msgspec.structs.replace(step, min_score=min_score) if isinstance(step, Ssd | Gfl | Yolo) else step
            for step in post
        )
    pre = manifest.pre if tiles is None else (tiles, *manifest.pre)
    if again is not None:
        pre = tuple(msgspec.structs.replace(step, again=again) if isinstance(step, Fit) else step for step in pre)
    return msgspec.structs.replace(manifest, pre=pre, post=post)


def threshold(manifest: Manifest) -> float:
    """From which score on a detector says something."""
    return next(step.min_score for step in manifest.post if isinstance(step, Ssd | Gfl | Yolo))


def guesses(model: kit.Loaded, pictures: Encoded, **changes: object) -> tuple[dict[str, list[Guess]], float]:
    """Name -> detections, and the median time a picture in milliseconds; `changes` as in `adjusted`."""
    recipe = Recipe(adjusted(model.manifest, **changes)) if changes else model.recipe  # type: ignore[arg-type]
    found, took = {}, []
    for name, (data, media) in pictures.items():
        began = time.perf_counter()
        result = recipe.run(model.runner, data, media)
        took.append((time.perf_counter() - began) * 1000)
        found[name] = [Guess(d.label, d.score, (d.x0, d.y0, d.x1, d.y1)) for d in result.detections]
    return found, sorted(took)[len(took) // 2]


def precision(model: kit.Loaded, pictures: Encoded, truths: Mapping[str, Sequence[Truth]]) -> tuple[float, float]:
    """mAP at an overlap of .5 in the model's own words, and the median time a picture in milliseconds."""
    found, took = guesses(model, pictures, min_score=CURVE_FROM)
    known = scoring.vocabulary({name: truths[name] for name in pictures}, model.manifest.labels)
    return scoring.mean_average_precision(found, known)[0], took


def tensors(manifest: Manifest, pictures: Encoded) -> list[Array]:
    """What the runtime is given for each picture: the calibration of a quantiser."""
    recipe = Recipe(manifest)
    return [recipe.prepare(data, media).inputs[0].copy() for data, media in pictures.values()]


def accepted(
    fp32: Built, others: Sequence[Built], manifest: Manifest, pictures: Encoded, truths: Mapping[str, Sequence[Truth]]
) -> list[Built]:
    """Those variants that keep within MAX_LOSS of the fp32 one; the table of all is printed.

    Raises:
        ModelError: the fp32 variant does not run here.
    """
    base, took = precision(opened(fp32, manifest), pictures, truths)
    rows = [[str(fp32), f"{fp32.size / 1e6:.1f} MB", f"{base:.3f}", f"{took:.0f} ms", "the reference"]]
    kept = []
    for built in others:
        try:
            reached, took = precision(opened(built, manifest), pictures, truths)
        except ModelError as error:
            rows.append([str(built), f"{built.size / 1e6:.1f} MB", "-", "-", f"refused: {error}"])
            continue
        good = reached >= base - MAX_LOSS
        rows.append(
            [
                str(built),
                f"{built.size / 1e6:.1f} MB",
                f"{reached:.3f}",
                f"{took:.0f} ms",
                "taken" if good else "REFUSED",
            ]
        )
        kept += [built] if good else []
    print("\n".join(kit.table(["variant", "size", "mAP@.5, validation", "time", "verdict"], rows)))
    return kept


def opened(built: Built, manifest: Manifest) -> kit.Loaded:
    """A variant before it is in a bundle, loaded by its first runtime that takes it."""
    return kit.open_variant(msgspec.structs.replace(manifest, variants=(built.variant,)), built.members)
