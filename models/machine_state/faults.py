"""Injected faults: SIMULATIONS, of two kinds, put into real normal windows of a running machine. evaluate.py reads them.

Nothing is trained on them; their kinds and severities were fixed before a network was measured on them.

What the node reports are effective values over a mains cycle, 200 a second: at 50 Hz two readings a half-cycle, and a
reading holds two half-cycles. That limits what a fault looks like, and is simulated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from models.machine_state.data import LENGTH, RATE_HZ, Windows

HALF = 2  # readings a half-cycle of 50 Hz mains


def arcing(x: Windows, random: np.random.Generator, halves: float) -> Windows:
    """A loose contact or broken strand in series: half-cycles in which the arc does not light, or lights late.

    They come in bursts of 1 to 4 at irregular times. Such a half-cycle passes 0 to 40 % of its energy; the effective
    current falls with the root of the energy, the power with the energy.

    Args:
        halves: half-cycles an average half second. Eight within half a second are what UL 1699 (arc-fault interrupters)
            counts as a hazardous arc.
    """
    out = x.copy()
    n = LENGTH // HALF + 1
    for window in out:
        wanted = int(random.poisson(halves * LENGTH / RATE_HZ / 0.5))
        energy = np.ones(n)
        while wanted > 0:
            burst = min(int(random.integers(1, 5)), wanted)
            start = int(random.integers(0, n))
            energy[start : start + burst] = random.uniform(0.0, 0.4, len(energy[start : start + burst]))
            wanted -= burst
        each = np.repeat(energy, HALF)
        cycle = np.convolve(each, np.full(2 * HALF, 0.5 / HALF), "valid")[:LENGTH]
        cycle = np.pad(cycle, (0, LENGTH - len(cycle)), mode="edge")
        window[0] *= np.sqrt(cycle).astype(np.float32)
        window[1] *= cycle.astype(np.float32)
    return out


def pulsation(x: Windows, random: np.random.Generator, swing: float) -> Windows:
    """A load torque that swings with the shaft: a broken tooth or coupling, a lost valve of a compressor, unbalance.

    Current and power swing 2 to 20 times a second, with a second harmonic of up to a half and turns uneven by 3 %.

    Args:
        swing: largest less smallest, of the level. NEMA MG 1 limits it to 66 % for motors that drive reciprocating
            compressors, API 618 to 40 %.
    """
    out = x.copy()
    for window in out:
        turns = random.uniform(2.0, 20.0) / RATE_HZ * random.normal(1.0, 0.03, LENGTH)
        phase = 2 * np.pi * (np.cumsum(turns) + random.random())
        wave = np.sin(phase) + random.uniform(0.0, 0.5) * np.sin(2 * phase + random.uniform(0, 2 * np.pi))
        wave -= wave.mean()
        window *= np.maximum(1.0 + swing * wave / np.ptp(wave), 0.0).astype(np.float32)
    return out


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    Attributes:
        inject: windows, generator, severity -> faulty windows.
        severity: what its number means.
        bar: of the faults that the bar is about, each with its own severity, evenly drawn from this range.
        curve: severities that are measured one by one.
    """

    inject: Callable[[Windows, np.random.Generator, float], Windows]
    severity: str
    bar: tuple[float, float]
    curve: tuple[float, ...]

    def put(self, x: Windows, random: np.random.Generator) -> Windows:
        """Faults as the bar is about: a copy of windows [n, 2, LENGTH]."""
        return np.concatenate([self.inject(x[i : i + 1], random, random.uniform(*self.bar)) for i in range(len(x))])


KINDS = {
    "arcing": Kind(arcing, "half-cycles lost in half a second", (8.0, 20.0), (1, 2, 4, 8, 12, 20)),
    "pulsation": Kind(pulsation, "swing of the current, of its level", (0.4, 1.0), (0.1, 0.2, 0.3, 0.4, 0.66, 1.0)),
}
