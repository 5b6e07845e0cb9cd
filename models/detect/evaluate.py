"""The figures of the card, on the labelled pictures: `python -m models.detect.evaluate`."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from gateway.errors import ModelError
from gateway.infer.candidate import BACKENDS
from gateway.infer.manifest import Tiles
from models import kit, scoring
from models.detect import bar, data, fetch, measure
from models.scoring import Tally, Truth

# How each detector might look besides as its bundle says: what a `tiles` or `again` of your own would give.
TILES = Tiles(size=640)
WAYS: dict[str, bar.Changes] = {"as the bundle": {}, "again at .5": {"again": (0.5,)}, "tiles of 640": {"tiles": TILES}}


def tally(model: kit.Loaded, pictures: measure.Encoded, truths: Mapping[str, Sequence[Truth]]) -> Tally:
    """What the model says at its own threshold."""
    found, _ = measure.guesses(model, pictures)
    return scoring.tally(found, scoring.vocabulary(truths, model.manifest.labels))


def spoken(pairs: Sequence[tuple[str, ...]]) -> str:
    """`picture: what` for people, each picture once."""
    by_picture: dict[str, list[str]] = {}
    for picture, *words in pairs:
        by_picture.setdefault(picture, []).append(" for ".join(words))
    return "; ".join(f"{picture}: {', '.join(words)}" for picture, words in by_picture.items()) or "none"


def variant_rows(bundle: Path, pictures: measure.Encoded, truths: Mapping[str, Sequence[Truth]]) -> list[list[str]]:
    """A row for each variant of the bundle, each on every runtime that is installed and takes it."""
    test = {picture.name: pictures[picture.name] for picture in data.of("test")}
    first = kit.load(bundle, kit.trusted())
    rows = []
    for variant in first.manifest.variants:
        for backend in BACKENDS[variant.format]:
            try:
                model = kit.load(bundle, kit.trusted(), backend=backend, file=variant.file)
            except ModelError as error:
                rows.append([variant.file, variant.precision, backend, f"does not run here: {error}", *"----"])
                continue
            on_test, took = measure.precision(model, test, truths)
            on_all, _ = measure.precision(model, pictures, truths)
            said = tally(model, pictures, truths)
            scores = [f"{on_test:.3f}", f"{on_all:.3f}", str(said.found), str(len(said.wrong))]
            rows.append([variant.file, variant.precision, backend, *scores, f"{took:.0f} ms"])
    return rows


def size(bundle: Path) -> str:
    return f"{bundle.stat().st_size / 1e6:.1f} MB"


def measured(bundle: Path, full: Path, command: str, ways: Mapping[str, bar.Changes]) -> list[str]:
    """The lines of the card's figures: variants of the `full` bundle, kinds and misses of the first of `bundle`."""
    pictures, truths = data.labelled(data.load(list(data.pictures())))
    test = {picture.name: pictures[picture.name] for picture in data.of("test")}
    model = kit.load(bundle, kit.trusted())
    known = bar.counted(scoring.vocabulary(truths, model.manifest.labels))
    said = tally(model, pictures, truths)
    missed = Counter(label for _, label in said.missed)
    kinds = [[kind, str(known[kind]), str(known[kind] - missed[kind])] for kind in bar.KINDS if known[kind]]
    rest = sum(known.values()) - sum(known[kind] for kind in bar.KINDS)
    rest_missed = len(said.missed) - sum(missed[kind] for kind in bar.KINDS)
    kinds.append(["all other kinds", str(rest), str(rest - rest_missed)])
    splits = Counter(picture.split for picture in data.pictures() if picture.truths)
    return [
        f"Bundle digest: `{model.digest}` ({size(bundle)}). Command: `{command}`.",
        *([] if full == bundle else [f"With all variants: `{kit.load(full, kit.trusted()).digest}` ({size(full)})."]),
        "",
        f"{len(pictures)} pictures labelled by hand, {sum(known.values())} objects of the model's kinds; {splits['test']} "
        f"pictures are the test split, which nothing was chosen by. mAP is at an overlap of .5; found and wrong are at the "
        f"bundle's own threshold, {measure.threshold(model.manifest):g}, on all of them.",
        "",
        *kit.table(
            ["variant", "precision", "runtime", "mAP, test", "mAP, all", "found", "wrong class", "time"],
            variant_rows(full, pictures, truths),
        ),
        "",
        *kit.table(["kind", "on the pictures", f"found by {model.variant.file}"], kinds),
        "",
        f"The bar, by {model.variant.file}: of every labelled person, cat and car, and of those that are not small (32 x 32 "
        f"pixels of the model's input or more, by the label). All {len(pictures)} pictures:",
        "",
        *bar.table(model, ways, pictures, truths),
        "",
        f"The {len(test)} pictures of the test split alone:",
        "",
        *bar.table(model, {"as the bundle": {}}, test, truths),
        "",
        f"Missed: {spoken(said.missed)}.",
        "",
        f"Called by a wrong name: {spoken(said.wrong)}. Nothing labelled there: {spoken(said.unexplained)}.",
        "",
        "Time: decoding to detections, one thread, median over the pictures (x86_64, shared machine: an order of magnitude, "
        "not a benchmark).",
    ]


def run(bundle: Path, full: Path, readme: Path, command: str, ways: Mapping[str, bar.Changes]) -> None:
    """What both detectors' evaluation does.

    Args:
        ways: of looking at a picture, by name; see `bar.table`.

    Raises:
        ModelError: a bundle is not there, or does not run here.
    """
    parser = argparse.ArgumentParser(description="Look at pictures with known content and write the card's figures.")
    parser.add_argument("--bundle", type=Path, default=bundle, help="whose misses are told")
    parser.add_argument("--full", type=Path, default=full, help="the bundle whose variants are compared")
    parser.add_argument("--dry", action="store_true", help="print the figures, leave the card as it is")
    arguments = parser.parse_args()
    for path in (arguments.bundle, arguments.full):
        if not path.exists():
            raise ModelError(f"{path} is not there", hint=f"./inv models.build {full.stem}")
    lines = measured(arguments.bundle, arguments.full, command, ways)
    print("\n".join(lines))
    if not arguments.dry:
        kit.write_figures(readme, lines)
        test, truths = data.labelled(data.load(list(data.of("test"))))
        kit.evaluated(
            arguments.bundle, ("mAP",), lambda one: {"mAP": measure.precision(one, test, truths)[0]}, print
        ).write(arguments.bundle.parent)


def main() -> None:
    run(fetch.BUNDLE, fetch.FULL, fetch.FOLDER / "README.md", "./inv models.evaluate detect", WAYS)


if __name__ == "__main__":
    main()
