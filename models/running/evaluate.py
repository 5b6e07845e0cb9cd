"""The figures of the card, on simulated pictures before other backgrounds: `python -m models.running.evaluate`."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from gateway.errors import ModelError
from gateway.infer.candidate import BACKENDS
from models import kit
from models.running import data, train


def row(model: kit.Loaded, pictures: list[tuple[bytes, str]]) -> list[str]:
    """Accuracy, recall of each label and the median time of one variant."""
    right = dict.fromkeys(data.LABELS, 0)
    took = []
    for picture, label in pictures:
        began = time.perf_counter()
        said = model.answer(picture, train.MEDIA).label
        took.append((time.perf_counter() - began) * 1000)
        right[label] += said == label
    each = len(pictures) // len(data.LABELS)
    recalls = [f"{right[label] / each:.2f}" for label in data.LABELS]
    return [f"{sum(right.values()) / len(pictures):.3f}", *recalls, f"{sorted(took)[len(took) // 2]:.0f} ms"]


def main() -> None:
    parser = argparse.ArgumentParser(description="Judge simulated pictures and write the card's figures.")
    parser.add_argument("--bundle", type=Path, default=train.BUNDLE)
    parser.add_argument("--dry", action="store_true", help="print the figures, leave the card as it is")
    arguments = parser.parse_args()
    if not arguments.bundle.exists():
        raise ModelError(f"{arguments.bundle} is not there", hint="./inv models.build running")
    first = kit.load(arguments.bundle, kit.trusted())
    pictures = [(train.encoded(picture), label) for picture, label in data.pictures("test", data.TEST_EACH)]
    rows = []
    for variant in first.manifest.variants:
        backend = BACKENDS[variant.format][0]
        model = kit.load(arguments.bundle, kit.trusted(), backend=backend, file=variant.file)
        rows.append([variant.file, variant.precision, backend, *row(model, pictures)])
    lines = [
        f"Bundle digest: `{first.digest}` ({arguments.bundle.stat().st_size / 1e6:.1f} MB). Command: `./inv models.evaluate "
        f"running`.",
        "",
        f"{len(pictures)} SIMULATED pictures, {data.TEST_EACH} of each state, before backgrounds that no example had; fitted to "
        f"{data.EXAMPLES_EACH} examples of each.",
        "",
        *kit.table(
            ["variant", "precision", "runtime", "accuracy", *(f"recall {s}" for s in data.LABELS), "time"], rows
        ),
        "",
        "Time: decoding to label, one thread, median (x86_64, shared machine: an order of magnitude, not a benchmark).",
    ]
    print("\n".join(lines))
    if not arguments.dry:
        kit.write_figures(train.FOLDER / "README.md", lines)


if __name__ == "__main__":
    main()
