"""Normal windows, damaged at random: what the one-class head learns to tell from whole ones (after CutPaste, Li et al.
2021, and NSA, Schlüter et al. 2022). No fault is simulated here: `faults.py` does that, for evaluate.py alone.
"""

from __future__ import annotations

import numpy as np

from models.machine_state.data import LENGTH, Windows
from sdk.recordings import Floats

SHORTEST, LONGEST = 8, LENGTH


def damage(x: Windows, random: np.random.Generator) -> Windows:
    """A copy of windows [n, 2, LENGTH], relative to the rating, each with one piece exchanged or made uneven."""
    out = x.copy()
    donors = random.permutation(len(x))
    for window, donor in zip(out, donors, strict=True):
        if random.random() < 0.4:
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
    window[:, there] = piece * np.clip(level, 0.05, 20.0)


def _uneven(window: Windows, random: np.random.Generator) -> None:
    """A piece, or all of it, times exp(noise): the noise of any band, on both channels or on one."""
    there = _piece(random) if random.random() < 0.6 else slice(0, LENGTH)
    spectrum = np.fft.rfft(random.normal(size=LENGTH))
    low = int(random.integers(0, len(spectrum) - 8))
    high = int(random.integers(low + 4, len(spectrum)))
    spectrum[:low] = 0
    spectrum[high:] = 0
    noise: Floats = np.fft.irfft(spectrum, LENGTH)[: there.stop - there.start]
    noise /= max(float(noise.std()), 1e-9)
    amount = np.exp(random.uniform(np.log(0.05), np.log(0.5)))
    channels = slice(0, 2) if random.random() < 0.7 else slice(int(random.integers(0, 2)), None, 2)
    window[channels, there] *= np.exp(amount * noise).astype(np.float32)
