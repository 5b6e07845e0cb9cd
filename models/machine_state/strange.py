"""Normal windows, damaged at random: what the one-class head learns to tell from whole ones (after CutPaste, Li et al.
2021, and NSA, Schlüter et al. 2022). No fault is simulated here: `faults.py` does that, for evaluate.py alone.
"""

from __future__ import annotations

import numpy as np

from models.machine_state.data import LENGTH, Windows
from sdk.recordings import Floats

SHORTEST, LONGEST = 8, LENGTH
SHARE = 0.15  # of the damages are exchanged pieces


def damage(x: Windows, random: np.random.Generator) -> Windows:
    """A copy of windows [n, 2, LENGTH], relative to the rating, each with one piece exchanged or made uneven."""
    out = x.copy()
    donors = random.permutation(len(x))
    for window, donor in zip(out, donors, strict=True):
        if random.random() < SHARE:
            _exchange(window, x[donor], random)
        else:
            _uneven(window, random)
    return out


def _piece(random: np.random.Generator) -> slice:
    n = int(np.exp(random.uniform(np.log(SHORTEST), np.log(LONGEST))))
    start = int(random.integers(0, LENGTH - n + 1))
    return slice(start, start + n)


def _exchange(window: Windows, donor: Windows, random: np.random.Generator) -> None:
    """A piece of another window, at the level of what it takes the place of."""
    there = _piece(random)
    n = there.stop - there.start
    start = int(random.integers(0, LENGTH - n + 1))
    piece = donor[:, start : start + n]
    level = window[:, there].mean(axis=1, keepdims=True) / np.maximum(piece.mean(axis=1, keepdims=True), 1e-3)
    faded = _edges(n)
    window[:, there] = window[:, there] * (1 - faded) + piece * np.clip(level, 0.05, 20.0) * faded


def _uneven(window: Windows, random: np.random.Generator) -> None:
    """A piece, or all of it, times exp(noise): the noise of any band, on both channels or on one."""
    there = _piece(random) if random.random() < 0.3 else slice(0, LENGTH)
    spectrum = np.fft.rfft(random.normal(size=LENGTH))
    passed = np.zeros(len(spectrum), bool)
    for _ in range(int(random.integers(1, 3))):
        # as many bands in each octave, narrow ones and wide ones
        low = int(np.exp(random.uniform(0.0, np.log(100.0))))
        passed[low : low + max(1, int(low * np.exp(random.uniform(np.log(0.02), np.log(4.0)))))] = True
    spectrum[~passed] = 0
    noise: Floats = np.fft.irfft(spectrum, LENGTH)
    noise = (noise / max(float(noise.std()), 1e-9))[: there.stop - there.start]
    amount = np.exp(random.uniform(np.log(0.08), np.log(0.6)))
    channels = slice(0, 2) if random.random() < 0.7 else slice(int(random.integers(0, 2)), None, 2)
    window[channels, there] *= np.exp(amount * noise * _edges(len(noise))).astype(np.float32)


def _edges(n: int) -> Windows:
    """[n], 1 but for its ends, where it comes and goes: a damage without steps, or each switching would look like one."""
    rise = np.minimum(np.arange(1, n + 1), np.arange(n, 0, -1)) / max(1.0, min(n, 64) / 4)
    return np.asarray(np.sin(np.minimum(rise, 1.0) * np.pi / 2) ** 2, np.float32)
