"""From real recordings to labelled windows: splits, offline segmentation, and the machine they are played into.

What is real: the shapes of current (PLAID, ACSF1) and of power (ACSF1), switching included.
What is derived: the labels (`segment`, which sees the whole recording, both sides of each reading).
What is simulated: the rating (every recording is scaled to a machine of about 10 A, because PLAID has no scale and
factories no phone chargers), the time (an ACSF1 hour is played in seconds: 10 s become 50 to 200 ms), how long a
state is held before and after a PLAID recording, PLAID's power factor, the sensor's noise and offset.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sdk.recordings import Floats, Recording

LABELS = ("off", "idle", "running")
OFF, IDLE, RUNNING = range(3)

RATE_HZ = 200.0
LENGTH = 256  # readings a window: 1.28 s
HOP = 128
RATED_A = 10.0
RATED_W = 2300.0
VOLTS = 230.0

OFF_BELOW = 0.015  # of the recording's own running level; the recordings leave a gap from 1.5 to 5 %
RUNNING_FROM = 0.33
SHORTEST_S = 0.1  # a state that is shorter belongs to its neighbour

Split = Literal["train", "validation", "test"]
SALT = "octogate machine_state 2"
# The four kinds that 1.0.0 was tested on have been looked at: two are for validation now and two to train on. The test's
# were drawn from the other thirteen, the first by hash: two of PLAID's with an idle state, one without, one of ACS-F1's.
TEST_KINDS = frozenset({"air conditioner", "compact fluorescent lamp", "hairdryer", "phone charger"})
VALIDATION_KINDS = frozenset({"fan", "microwave"})
# what sdk/demo_data.py replays; it shall not have been learned, nor be in the test
SHOWN = frozenset({"plaid/4e3589911989", "plaid/2180d33c9fcd", "acsf1/de996c9d8a37"})

Windows = NDArray[np.float32]  # [n, 2, LENGTH], amps and watts
Labels = NDArray[np.int64]


class Trace(NamedTuple):
    """A machine as the node reports it: amps, watts and the true state, each [n], RATE_HZ a second."""

    current: Floats
    power: Floats
    state: Labels


@dataclass(frozen=True)
class Labelled:
    """Windows with what is needed to say where a figure comes from.

    Attributes:
        x: [n, 2, LENGTH], amps and watts.
        y: [n], the state that holds for most of the window.
        share: [n], the part of the window for which it holds.
        kind: [n], index into `kinds`.
        kinds: names of what was recorded.
        states: [n, LENGTH], the state of each reading.
        plaid: [n], whether it is of PLAID.
    """

    x: Windows
    y: Labels
    states: NDArray[np.int8]
    plaid: NDArray[np.bool_]
    share: Floats
    kind: Labels
    kinds: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.y)

    def of(self, kinds: Collection[str]) -> NDArray[np.bool_]:
        """[n], whether it is of one of these kinds."""
        return np.isin(self.kind, [at for at, kind in enumerate(self.kinds) if kind in kinds])


# --- splits -------------------------------------------------------------------------------------------------------


def _draw(text: str) -> float:
    """A number in [0, 1) that depends on the text only."""
    return int.from_bytes(hashlib.sha256(f"{SALT}/{text}".encode()).digest()[:8], "big") / (1 << 64)


def split_of(recording: Recording) -> Split:
    """By kind where the kind is held out, else by hash: 70 % train, 15 % validation, 15 % test."""
    if recording.kind in TEST_KINDS:
        return "test"
    if recording.kind in VALIDATION_KINDS or recording.id in SHOWN:
        return "validation"
    draw = _draw(recording.id)
    return "train" if draw < 0.7 else "validation" if draw < 0.85 else "test"


def select(recordings: list[Recording], split: Split) -> list[Recording]:
    """The recordings of one split. `test` is for evaluate.py only."""
    return [recording for recording in recordings if split_of(recording) == split]


# --- offline segmentation -----------------------------------------------------------------------------------------


def running_level(recording: Recording) -> float:
    """The recording's own rating, in its own unit: what it draws when it works.

    PLAID recordings end in steady operation: the median of their last quarter. ACSF1: the median of what is above
    30 % of the highest, single readings (a compressor's start) not counted.
    """
    current = recording.current
    if recording.archive == "plaid":
        return float(np.median(current[-(len(current) // 4) :]))
    steady = _median(current, 3)
    return float(np.median(steady[steady >= 0.3 * steady.max()]))


def segment(relative: Floats, shortest: int) -> Labels:
    """The state of each reading, from the whole recording.

    Args:
        relative: [n], current relative to `running_level`.
        shortest: readings; a shorter run takes the state of the longer of its neighbours.
    """
    level = _median(relative, 2 * (shortest // 4) + 1)
    state = np.full(len(level), IDLE, dtype=np.int64)
    state[level < OFF_BELOW] = OFF
    state[level >= RUNNING_FROM] = RUNNING
    return _without_short(state, shortest)


def _median(values: Floats, width: int) -> Floats:
    """Centred running median; the ends are repeated."""
    if width < 2:
        return values
    padded = np.pad(values, width // 2, mode="edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, width), axis=1)


def _without_short(state: Labels, shortest: int) -> Labels:
    """The shortest run goes first, until none is shorter than `shortest` or one is left."""
    while True:
        edges = np.flatnonzero(np.diff(state)) + 1
        bounds = np.concatenate([[0], edges, [len(state)]])
        lengths = np.diff(bounds)
        if len(lengths) == 1 or lengths.min() >= shortest:
            return state
        at = int(lengths.argmin())
        before = lengths[at - 1] if at else -1
        after = lengths[at + 1] if at + 1 < len(lengths) else -1
        state[bounds[at] : bounds[at + 1]] = state[bounds[at] - 1] if before >= after else state[bounds[at + 1]]


# --- playing a recording into a machine ---------------------------------------------------------------------------


def play(recording: Recording, random: np.random.Generator, varied: bool = False) -> Trace:
    """One recording as a machine of about RATED_A, as the node reports it. The same generator, the same trace.

    Args:
        varied: also with levels below full load, pauses and power factors that were not recorded: to train with. The
            labels are made afterwards, so they are right for what comes out.
    """
    relative, factor = _plaid(recording, random, varied) if recording.power is None else _acsf1(recording, random)
    if varied:
        relative, factor = _vary(relative, factor, random)
    state = segment(relative, int(SHORTEST_S * RATE_HZ))
    amps = relative * RATED_A * random.uniform(0.8, 1.25)
    watts = amps * VOLTS * factor
    n = len(amps)
    noise = RATED_A * random.uniform(0.0002, 0.001)
    amps = np.maximum(amps + random.normal(0.0, noise, n) + RATED_A * random.uniform(-0.001, 0.001), 0.0)
    watts = np.maximum(watts + random.normal(0.0, noise * VOLTS, n) + RATED_W * random.uniform(-0.001, 0.001), 0.0)
    return Trace(amps, watts, state)


def _vary(relative: Floats, factor: Floats, random: np.random.Generator) -> tuple[Floats, Floats]:
    """Half of the traces with another depth of their lower levels; full load stays full load."""
    if random.random() < 0.5:
        bent = relative ** np.exp(random.uniform(-0.6, 0.6))
        relative = np.where(relative < 1.0, bent, relative)
    return relative, np.clip(factor * random.uniform(0.6, 1.4), 0.05, 1.0)


def _plaid(recording: Recording, random: np.random.Generator, varied: bool = False) -> tuple[Floats, Floats]:
    """Relative current and power factor, with the first and last state held, and half of them switched off."""
    seconds = len(recording.current) * recording.step_s
    at = np.arange(0.0, seconds, 1 / RATE_HZ)
    grid = np.arange(len(recording.current)) * recording.step_s
    relative = np.interp(at, grid, recording.current) / running_level(recording)
    head, tail = relative[: int(0.1 * RATE_HZ)], relative[-int(0.25 * RATE_HZ) :]
    parts = [_held(head, random.uniform(0.3, 1.5)), relative, _held(tail, random.uniform(0.5, 2.5))]
    if random.random() < 0.5:
        parts.append(np.zeros(int(random.uniform(0.3, 2.0) * RATE_HZ)))
    if varied:
        parts = [*_pause(tail, random), *parts, *_pause(tail, random)]
    relative = np.concatenate(parts)
    full, light = random.uniform(0.6, 1.0), random.uniform(0.3, 1.0)
    load = np.clip(relative / RUNNING_FROM, 0.0, 1.0)
    return relative, light + (full - light) * load


def _pause(tail: Floats, random: np.random.Generator) -> list[Floats]:
    """With a chance of a half: a while at a level between 0.3 and 60 % of the load, with the load's own ripple."""
    if random.random() < 0.5:
        return []
    return [_held(tail, random.uniform(0.3, 2.0)) * np.exp(random.uniform(np.log(0.003), np.log(0.6)))]


def _held(steady: Floats, seconds: float) -> Floats:
    """A piece of signal to and fro, for so long."""
    n = int(seconds * RATE_HZ)
    there_and_back = np.concatenate([steady, steady[::-1]])
    return np.resize(there_and_back, n)


def _acsf1(recording: Recording, random: np.random.Generator) -> tuple[Floats, Floats]:
    """Relative current and real power factor, an hour in 18 to 73 s, edges of four readings, ripple of 1 to 4 %."""
    assert recording.power is not None
    each = int(random.integers(10, 41))
    apparent = np.maximum(recording.current * recording.volts, 1e-6)
    factor = np.clip(recording.power / apparent, 0.0, 1.0)
    smooth = np.full(4, 0.25)
    relative = np.convolve(np.repeat(recording.current / running_level(recording), each), smooth, "same")
    ripple = 1.0 + random.normal(0.0, random.uniform(0.01, 0.04), len(relative))
    return np.maximum(relative * ripple, 0.0), np.repeat(factor, each)


# --- windows ------------------------------------------------------------------------------------------------------


def windows(recordings: list[Recording], seed: int, plays: int = 1, hop: int = HOP, varied: bool = False) -> Labelled:
    """Every window of every recording, each recording played `plays` times.

    A recording's own id and the seed decide how it is played, so that its windows do not depend on the others.
    """
    kinds = tuple(sorted({recording.kind for recording in recordings}))
    x: list[Windows] = []
    states: list[Labels] = []
    kind: list[int] = []
    plaid: list[bool] = []
    for recording in recordings:
        for turn in range(plays):
            key = hashlib.sha256(f"{recording.id}/{seed}/{turn}".encode()).digest()[:8]
            trace = play(recording, np.random.default_rng(int.from_bytes(key, "big")), varied)
            both = np.stack([trace.current, trace.power]).astype(np.float32)
            start = int.from_bytes(key[:1], "big") % max(1, min(hop, both.shape[1] - LENGTH + 1))
            for at in range(start, both.shape[1] - LENGTH + 1, hop):
                x.append(both[:, at : at + LENGTH])
                states.append(trace.state[at : at + LENGTH])
                kind.append(kinds.index(recording.kind))
                plaid.append(recording.archive == "plaid")
    dense = np.stack(states).astype(np.int8)
    counts = np.stack([(dense == label).sum(axis=1) for label in range(len(LABELS))], axis=1)
    return Labelled(
        x=np.stack(x), y=counts.argmax(axis=1), states=dense, plaid=np.array(plaid),
        share=counts.max(axis=1) / LENGTH, kind=np.array(kind, dtype=np.int64), kinds=kinds,
    )  # fmt: skip


def joined(parts: Sequence[Labelled]) -> Labelled:
    """All their windows, one part after the other."""
    kinds = tuple(sorted({kind for part in parts for kind in part.kinds}))
    moved = [np.array([kinds.index(kind) for kind in part.kinds], dtype=np.int64)[part.kind] for part in parts]
    rows = {
        name: np.concatenate([getattr(part, name) for part in parts]) for name in ("x", "y", "states", "plaid", "share")
    }
    return Labelled(**rows, kind=np.concatenate(moved), kinds=kinds)


# --- figures ------------------------------------------------------------------------------------------------------


def confusion(truth: Labels, said: Labels) -> Labels:
    """[true, said] counts."""
    table = np.zeros((len(LABELS), len(LABELS)), dtype=np.int64)
    np.add.at(table, (truth, said), 1)
    return table


def relative(x: Windows) -> Windows:
    """Amps and watts to shares of the rating, as the bundle's `normalise` step does it."""
    return np.asarray(x / np.array([RATED_A, RATED_W], np.float32)[:, None], np.float32)


def f1(table: Labels) -> Floats:
    """F1 of each class, from a confusion table; 0 for a class that neither occurs nor is said."""
    hits = np.diag(table).astype(np.float64)
    return np.asarray(2 * hits / np.maximum(table.sum(axis=0) + table.sum(axis=1), 1))


def auroc(normal: Floats, odd: Floats) -> float:
    """The chance that an odd one scores above a normal one; ties count half."""
    both = np.concatenate([normal, odd])
    _, place, counts = np.unique(both, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[place]
    n, m = len(normal), len(odd)
    return float((rank[n:].sum() - m * (m + 1) / 2) / (n * m))


def macro(truth: Labels, said: Labels) -> float:
    """Macro F1 of the three states."""
    return float(f1(confusion(truth, said)).mean())
