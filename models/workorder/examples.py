"""Makes examples/: photographs of three filled-in work orders, for the demo, the docs and the tests.

`python -m models.workorder.examples` (needs npm, and the network once). Rendered, in fonts of the validation split.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from models.workorder import data, fonts
from sdk.registry import write_atomic

FOLDER = Path(__file__).resolve().parent / "examples"
WIDTH, QUALITY = 1440, 60

# name -> what differs from the contents that the seed gives; the second ends before it starts
SHEETS: dict[str, dict[str, str]] = {
    "1-order": {"first-piece": "yes"},
    "2-end-before-start": {"start": "14:10", "end": "11:45"},
    "3-order": {"tool-changed": "yes"},
}
HAND = ("kalam", "shadows-into-light", "gochi-hand")
PRINTED = "lato"
BY_MACHINE = ("order", "part", "quantity", "machine")  # the office prints these, the rest is filled in by hand


def sheet(number: int, changes: dict[str, str]) -> bytes:
    """One photograph as JPEG."""
    form, rng = data.template(), np.random.default_rng(4200 + number)
    texts = data.contents(form, rng) | changes
    paths = fonts.files([HAND[number % len(HAND)], PRINTED])
    paper = data.blank(form)
    for field in form.field:
        if field.kind == "tick":
            if texts[field.name] == "yes":
                data.tick(paper, field.box, (120, 40, 20), rng)
            continue
        by_hand = field.name not in BY_MACHINE
        face = fonts.face(paths[HAND[number % len(HAND)] if by_hand else PRINTED])
        data.write(paper, field.box, texts[field.name], face, (120, 40, 20) if by_hand else (30, 30, 30), rng, by_hand)
    picture, _ = data.photograph(paper, rng)
    height = round(picture.shape[0] * WIDTH / picture.shape[1])
    small = cv2.resize(picture, (WIDTH, height), interpolation=cv2.INTER_AREA)
    return bytes(cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1])


def main() -> None:
    for number, (name, changes) in enumerate(SHEETS.items()):
        path = FOLDER / f"{name}.jpg"
        write_atomic(path, sheet(number, changes))
        print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
