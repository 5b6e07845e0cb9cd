"""Real recordings of machines being switched and working: PLAID and ACSF1, out of the package `sktime`.

PLAID (Gao et al. 2014): current of 11 kinds of appliances, recorded at 30 kHz, a few seconds around a state change.
The archive's copy (Schaefer, Leser 2017) is reduced to one value per 1/300 s: its ripple repeats every five values,
which is read as one cycle of the 60 Hz mains. Its amplitude differs by six orders of magnitude between recordings of
like appliances, so only the shape counts: values are dimensionless.

ACSF1 (Gisler et al. 2013): one reading every 10 s for an hour, 10 kinds. The archive gives 1460 z-normalised numbers;
they are 365 readings of (reactive power, power, voltage, current), and the normalisation can be undone, because the
meter resolved 0.1 W: the lattice of the power values gives the scale, and S = U*I against hypot(P, Q) the zero. The
mains voltage that comes out, 211 to 233 V for each of the 100 recordings, was not put in and confirms it.

Only the train files are read. The data's own terms are not stated in the package: it is fetched when it is needed
and never part of the repository, of a bundle's training data, or of the image.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sdk.registry import CACHE, Member, Package, RegistryError, Say, fetch, quiet

Floats = NDArray[np.float64]

PACKAGE = Package("pypi", "sktime", "1.2.0")
PLAID = Member(
    "sktime/datasets/data/PLAID/PLAID_TRAIN.ts",
    1491100,
    "40deb3bc6bd1e1aa0e6db6e6bfd3cecc4a23bf57f6a6d6ab90fb75e4a2c72344",
)
ACSF1 = Member(
    "sktime/datasets/data/ACSF1/ACSF1_TRAIN.ts",
    1658422,
    "0646b90dc4843e02baed6b2ba345c5601a4991b6796565489cef1b2d92a7537b",
)
PLAID_HZ = 300.0
ACSF1_STEP_S = 10.0
METER_STEP_W = 0.1  # what the ACS-F1 meter resolved

# Kinds by class number. PLAID's are those of its header; ACSF1's header lists ten kinds without saying which number
# is which: they were told apart by the watts that come out.
PLAID_KINDS = (
    "air conditioner", "compact fluorescent lamp", "fan", "fridge", "hairdryer", "heater",
    "incandescent lamp", "laptop", "microwave", "vacuum cleaner", "washing machine",
)  # fmt: skip
ACSF1_KINDS = (
    "fridge", "television", "laptop", "coffee machine", "computer",
    "compact fluorescent lamp", "hi-fi", "printer", "microwave", "phone charger",
)  # fmt: skip


@dataclass(frozen=True)
class Recording:
    """One recording.

    Attributes:
        id: `<archive>/<first 12 hex digits of the sha256 of its row>`.
        kind: what was recorded, the same word in both archives.
        step_s: seconds between readings.
        current: [n]; amps (ACSF1) or of unknown scale (PLAID), not below 0.
        power: [n] watts, or None where it was not recorded.
        volts: the mains voltage, median; 0 where it was not recorded.
    """

    id: str
    archive: Literal["plaid", "acsf1"]
    kind: str
    step_s: float
    current: Floats
    power: Floats | None
    volts: float


def load(cache: Path = CACHE, say: Say = quiet) -> list[Recording]:
    """Both archives, fetched at most once, in the order of their files.

    Raises:
        RegistryError: they cannot be fetched, or are not in the form this reads.
    """
    files = fetch(PACKAGE, (PLAID, ACSF1), cache=cache, say=say)
    found = [_plaid(row, label) for row, label in _rows(files[PLAID.path])]
    return found + [_acsf1(row, label) for row, label in _rows(files[ACSF1.path])]


def _rows(path: Path) -> list[tuple[str, int]]:
    """The lines after `@data` of a .ts file: numbers with commas, and the class number."""
    _, found, data = path.read_text(encoding="utf-8").partition("@data\n")
    if not found:
        raise RegistryError(f"{path}: no @data in it", hint="delete it, it is fetched again")
    rows = [line.rpartition(":") for line in data.splitlines() if line.strip()]
    return [(values, int(label)) for values, _, label in rows]


def _id(archive: str, row: str) -> str:
    return f"{archive}/{hashlib.sha256(row.encode()).hexdigest()[:12]}"


def _plaid(row: str, label: int) -> Recording:
    """The effective current over one mains cycle (five values), as a node would report it."""
    values = np.array(row.split(","), dtype=np.float64)[:-3]  # the last values fall to zero where the cut was made
    cycle = np.sqrt(np.convolve(np.square(np.maximum(values, 0.0)), np.full(5, 0.2), "valid"))
    return Recording(_id("plaid", row), "plaid", PLAID_KINDS[label], 1 / PLAID_HZ, cycle, None, 0.0)


def _acsf1(row: str, label: int) -> Recording:
    """Volts, amps and watts from a z-normalised row."""
    table = np.array(row.split(","), dtype=np.float64).reshape(-1, 4)
    reactive, power, volts, current = table.T
    step = _lattice(np.concatenate([power, reactive]), power)
    scale = METER_STEP_W / step
    zero = _zero(reactive, power, volts, current, step)
    return Recording(
        _id("acsf1", row), "acsf1", ACSF1_KINDS[label], ACSF1_STEP_S,
        np.maximum((current - zero) * scale, 0.0), np.maximum((power - zero) * scale, 0.0),
        float(np.median(volts - zero) * scale),
    )  # fmt: skip


def _lattice(values: Floats, power: Floats) -> float:
    """The step of which all distances between the values are multiples: 0.1 W in normalised units."""
    gaps = np.diff(np.unique(values.round(8)))
    gaps = gaps[gaps > 1e-4]  # less is rounding of the file's eight digits
    step = float(np.median(gaps[gaps < 1.5 * gaps.min()]))
    above = power - power.min()
    for _ in range(5):  # each round trusts longer distances
        n = np.round(above / step)
        near = (np.abs(above / step - n) < 0.2) & (n > 0)
        if near.any():
            step = float((above[near] * n[near]).sum() / np.square(n[near]).sum())
    return step


def _zero(reactive: Floats, power: Floats, volts: Floats, current: Floats, step: float) -> float:
    """Where 0 W lies: the point of the lattice at which U*I agrees best with hypot(P, Q)."""
    lowest = min(current.min(), power.min())
    reach = int((power.min() - lowest) / step) + 40
    candidates = power.min() + np.arange(5, -reach, -1) * step
    scale = METER_STEP_W / step

    def disagreement(zero: float) -> float:
        apparent = np.hypot(power - zero, reactive - zero) * scale
        product = (volts - zero) * (current - zero) * scale * scale
        return float(np.median(np.abs(apparent - product) / (apparent + 0.5)))

    return float(min(candidates, key=disagreement))
