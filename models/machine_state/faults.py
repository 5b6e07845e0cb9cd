"""Injected faults: SIMULATIONS, of two kinds, put into real normal windows. Read by evaluate.py alone.

Nothing here is used to train, to choose a threshold or to choose among networks (tests/unit/test_model_splits.py).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from models.machine_state.data import LENGTH, RATE_HZ, Windows


def bearing(x: Windows, random: np.random.Generator) -> Windows:
    """A damaged bearing or tooth: impacts 5 to 20 times a second, each ringing at 25 to 60 Hz in the load's current.

    An impact's first swing is 10 to 40 % of the level and dies within 15 to 40 ms; times vary by 2 %.
    """
    out = np.empty_like(x)
    at = np.arange(LENGTH) / RATE_HZ
    for i, window in enumerate(x):
        period, ring = 1 / random.uniform(5.0, 20.0), random.uniform(25.0, 60.0)
        swing, decay = random.uniform(0.10, 0.40), random.uniform(0.015, 0.040)
        ripple = np.zeros(LENGTH)
        begins = random.uniform(-period, 0.0)
        while begins < at[-1]:
            since = np.maximum(at - begins, 0.0)
            ripple += (at >= begins) * swing * np.exp(-since / decay) * np.sin(2 * np.pi * ring * since)
            begins += period * random.normal(1.0, 0.02)
        out[i] = window * np.maximum(1.0 + ripple, 0.0).astype(np.float32)
    return out


def dropouts(x: Windows, random: np.random.Generator) -> Windows:
    """A bad contact or a failing phase control: 4 to 12 gaps a second at irregular times.

    In a gap of 10 to 60 ms current and power fall to 20 to 70 %.
    """
    out = x.copy()
    for window in out:
        gaps = max(1, int(random.poisson(random.uniform(4.0, 12.0) * LENGTH / RATE_HZ)))
        depth = random.uniform(0.2, 0.7)
        for _ in range(gaps):
            n = round(random.uniform(0.010, 0.060) * RATE_HZ)
            start = int(random.integers(0, LENGTH - n + 1))
            window[:, start : start + n] *= depth * random.uniform(0.9, 1.1)
    return out


KINDS: dict[str, Callable[[Windows, np.random.Generator], Windows]] = {"bearing": bearing, "dropouts": dropouts}
