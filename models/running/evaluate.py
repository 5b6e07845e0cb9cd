"""What `fine_tune` reaches on SIMULATED machines, by the number of examples: `python -m models.running.evaluate` (extra `train`).

`--split choice` looks through the cameras that settings were chosen by, and writes no card.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from models import kit
from models.classify import fetch
from models.running import data
from sdk.optimise.finetune import fit_ridge, look

README = Path(__file__).resolve().parent / "README.md"
SIZES = (2, 4, 8, 16, 32)  # examples of each state
SHORT = (8,)  # where one sign is missing
EACH = 100  # new pictures of each state and camera
VARIATIONS = 4
BAR = 0.95  # of the new pictures named rightly, from 8 examples of each state


def curve(camera: data.Camera, sizes: Sequence[int]) -> list[tuple[float, float]]:
    """For each number of examples: the share of new pictures named rightly, and what the leaving out had promised."""
    from models.classify.network import Places

    backbone, prepare, most = Places(fetch.network(say=lambda line: None)), fetch.preparing(), max(sizes)
    new = camera.pictures(EACH, day=2)
    given = camera.pictures(most, day=1)
    features = look(backbone, [picture for picture, _ in given], prepare, VARIATIONS, seed=0)
    unseen = look(backbone, [picture for picture, _ in new], prepare, 0, seed=0)[:, 0]
    truth = np.array([data.LABELS.index(label) for _, label in new])
    found = []
    for each in sizes:
        rows = np.r_[0:each, most : most + each]  # the first of both states
        known = np.arange(2).repeat(each)
        fitted = fit_ridge(features[rows], known, 2)
        said = (unseen @ fitted.weights.T + fitted.bias).argmax(axis=1)
        found.append((float((said == truth).mean()), float((fitted.said == known).mean())))
    return found


def rows(split: data.Split) -> list[list[str]]:
    """A row for each sign and number of examples."""
    table = []
    for sign in data.SIGNS:
        sizes = SIZES if sign == "both" else SHORT
        curves = [curve(camera, sizes) for camera in data.cameras(split, sign)]
        for number, each in enumerate(sizes):
            right = [one[number][0] for one in curves]
            promised = float(np.mean([one[number][1] for one in curves]))
            line = [sign, f"{each} + {each}", f"{np.mean(right):.3f}", f"{min(right):.3f}", f"{promised:.3f}"]
            print(" ".join(line), flush=True)
            table.append(line)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description="Fit to simulated examples, judge new pictures, write the figures.")
    parser.add_argument("--split", choices=("choice", "test"), default="test")
    parser.add_argument("--dry", action="store_true", help="print the figures, leave the README as it is")
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    cameras = data.cameras(arguments.split)
    lines = [
        f"Command: `python -m models.running.evaluate`, in the environment of `train`. {len(cameras)} SIMULATED machines before "
        f"photographs, {2 * EACH} new pictures each; {VARIATIONS} variations of each example. The bar: {BAR:g} from 8 + 8.",
        "",
        *kit.table(
            ["told by", "examples", "named rightly", "on the worst machine", "promised by leaving out"],
            rows(arguments.split),
        ),
    ]
    print("\n".join(lines))
    if not arguments.dry and arguments.split == "test":
        kit.write_figures(README, lines)


if __name__ == "__main__":
    main()
