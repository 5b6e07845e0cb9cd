"""The threshold of acceptance, from forms of the validation split: `python -m models.workorder.calibrate`.

It is `accept` of the step `ctc` in model.toml: the lowest at which at most one in 1000 accepted fields is wrong. Ticks
do not come into it: no recogniser reads them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from models import kit
from models.workorder import fetch
from models.workorder.measure import Seen, measure

FORMS = 150
WRONG = 1 / 1000
GRID = [i / 100 for i in range(30, 100)]


def threshold(fields: Sequence[Seen], wrong: float = WRONG) -> float:
    """The lowest of the grid at which no more than that share of what is accepted is wrong; the highest if none is."""
    read = [field for field in fields if field.kind != "tick"]
    for least in GRID:
        accepted = [field for field in read if field.read.confidence >= least]
        if accepted and sum(not field.right for field in accepted) <= wrong * len(accepted):
            return least
    return GRID[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description="Fit the threshold of acceptance on the validation split.")
    parser.add_argument("--bundle", type=Path, default=fetch.BUNDLE)
    parser.add_argument("--forms", type=int, default=FORMS)
    arguments = parser.parse_args()
    fields = measure(kit.load(arguments.bundle, allow_unsigned=True), "validation", arguments.forms, say=print).fields
    read = [field for field in fields if field.kind != "tick"]
    for field in read:
        if not field.right:
            print(f"wrong: {field.font} '{field.truth}' read as '{field.read.text}', {field.read.confidence:.3f}")
    for style in ("print", "hand"):
        of = [field for field in read if field.style == style]
        print(f"{style}: {sum(field.right for field in of)} of {len(of)} right")
    for least in (0.5, 0.6, 0.7, 0.8, 0.9, 0.95):
        accepted = [field for field in read if field.read.confidence >= least]
        bad = sum(not field.right for field in accepted)
        print(f"from {least}: {len(accepted)} of {len(read)} accepted, {bad} of them wrong")
    print(f"accept = {threshold(fields)}")


if __name__ == "__main__":
    main()
