"""The figures of the card: masks against the official model's, `python -m models.segment.evaluate`."""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

from models import kit
from models.segment import fetch
from sdk.optimise.progress import shown

RUNS = 20


def rows(model: kit.Loaded) -> tuple[list[list[str]], float]:
    """A row for the whole pictures and one for the people in them, of the test split; and the worst of all."""
    official, tensors = fetch.Official(), fetch.views(model.manifest, "test")
    scores = fetch.agreement(model.runner, official, tensors)
    whole = [score for name, score in scores.items() if not name[-1].isdigit()]
    people = [score for name, score in scores.items() if name[-1].isdigit()]
    made = [
        [what, str(len(each)), f"{sum(each) / len(each):.4f}", f"{min(each):.4f}"]
        for what, each in (("whole pictures", whole), ("one person each, by the box", people))
    ]
    return made, min(scores.values())


def took_ms(model: kit.Loaded) -> float:
    """Median of a run, the network alone."""
    [tensor, *_] = fetch.views(model.manifest, "validation").values()
    times = []
    for _ in range(RUNS):
        began = time.perf_counter()
        model.runner([tensor])
        times.append((time.perf_counter() - began) * 1000)
    return sorted(times)[RUNS // 2]


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Compare masks with the official model's and write the card's figures."
    )
    parser.add_argument("--bundle", type=Path, default=fetch.BUNDLE)
    parser.add_argument("--dry", action="store_true", help="print the figures, leave the card as it is")
    arguments = parser.parse_args()
    model = kit.load(arguments.bundle, kit.trusted())
    found, least = rows(model)
    lines = [
        f"Bundle digest: `{model.digest}` ({arguments.bundle.stat().st_size / 1e6:.2f} MB). Command: `./inv models.evaluate "
        f"segment`, backend {model.runner.description}.",
        "",
        *kit.table(["test split", "masks", "IoU with the official model, mean", "least"], found),
        "",
        f"Least of all: {least:.4f} (bar: {fetch.BAR}). A mask is what exceeds .5 on the network's 256 x 256 cells. Time of the "
        f"network: {took_ms(model):.0f} ms, one thread, median of {RUNS} (x86_64, shared machine: an order of magnitude).",
    ]
    print("\n".join(lines))
    if not arguments.dry:
        kit.write_figures(fetch.FOLDER / "README.md", lines)
        official, tensors = fetch.Official(), fetch.views(model.manifest, "test")
        with shown("segment, for the report") as tell:
            figures = kit.evaluated(
                arguments.bundle,
                ("iou",),
                lambda one: {"iou": statistics.mean(fetch.agreement(one.runner, official, tensors).values())},
                lambda what: tell(what, False),
            )
        figures.write(arguments.bundle.parent)


if __name__ == "__main__":
    main()
