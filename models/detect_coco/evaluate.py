"""The figures of the card, on the labelled pictures: `python -m models.detect_coco.evaluate`."""

from __future__ import annotations

from models.detect import bar, evaluate
from models.detect_coco import fetch

WAYS: dict[str, bar.Changes] = {
    "as the bundle": {},
    "once": {"again": ()},
    "tiles of 640": {"tiles": evaluate.TILES},
}


def main() -> None:
    evaluate.run(fetch.BUNDLE, fetch.BUNDLE, fetch.FOLDER / "README.md", "./inv models.evaluate detect_coco", WAYS)


if __name__ == "__main__":
    main()
