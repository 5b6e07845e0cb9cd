"""The figures of the card, on pictures with known content: `python -m models.detect.evaluate`."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from gateway.contract import Detection
from models import kit
from models.detect import fetch
from sdk.demo_data import write_pictures

# What is to be seen on each picture, of the model's own labels. The motorcycle is none of them but a vehicle.
TRUTH = {"1-astronaut": "person", "2-chelsea": "cat", "3-coffee": "coffee cup", "4-motorcycle": "vehicle"}
COMMAND = "./inv models.evaluate detect"
RUNS = 20


def look(model: kit.Loaded, picture: bytes) -> tuple[tuple[Detection, ...], float]:
    """The objects, and the median time of a run in milliseconds."""
    took = []
    for _ in range(RUNS):
        began = time.perf_counter()
        result = model.answer(picture, "image/jpeg")
        took.append((time.perf_counter() - began) * 1000)
    return result.detections, sorted(took)[RUNS // 2]


def measure(model: kit.Loaded, bundle: Path) -> list[str]:
    """The lines of the card's figures."""
    rows, right, wrong = [], 0, 0
    with tempfile.TemporaryDirectory() as scratch:
        for path in write_pictures(Path(scratch), say=print):
            found, took = look(model, path.read_bytes())
            truth = TRUTH[path.stem]
            right += any(detection.label == truth for detection in found)
            wrong += sum(detection.label != truth for detection in found)
            said = ", ".join(f"{detection.label} {detection.score:.2f}" for detection in found) or "nothing"
            rows.append([path.stem.partition("-")[2], truth, said, f"{took:.0f} ms"])
    return [
        f"Bundle digest: `{model.digest}` ({bundle.stat().st_size / 1e6:.1f} MB). Command: `{COMMAND}`, backend "
        f"{model.runner.description}.",
        "",
        *kit.table(["picture", "shows", "found at .5", "time"], rows),
        "",
        f"{right} of {len(TRUTH)} found, {wrong} objects of a wrong class. Time: decoding to detections, one thread, median of "
        f"{RUNS} (x86_64, shared machine: an order of magnitude, not a benchmark).",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Look at pictures with known content and write the card's figures.")
    parser.add_argument("--bundle", type=Path, default=fetch.BUNDLE)
    parser.add_argument("--backend", default="", help="litert (default: the bundle's first that runs here)")
    parser.add_argument("--dry", action="store_true", help="print the figures, leave the card as it is")
    arguments = parser.parse_args()
    model = kit.load(arguments.bundle, [kit.PROJECT_KEY, *kit.own_public_key()], backend=arguments.backend)
    lines = measure(model, arguments.bundle)
    print("\n".join(lines))
    if not arguments.dry:
        kit.write_figures(fetch.FOLDER / "README.md", lines)


if __name__ == "__main__":
    main()
