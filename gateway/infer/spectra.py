"""What a window sounds like: tapers, spectra, band energies and figures of a channel. NumPy only.

Windows are float32 [channels, length]. The formulas are in docs/bundle.md; a signal that is constant has all-zero
figures, never a division by zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from gateway.errors import ModelError
from gateway.infer.steps import Array, Float32

Float64 = npt.NDArray[np.float64]
_LEAST = 1e-12
# cosine terms of each taper (Harris 1978), periodic: the form that belongs to a discrete Fourier transform
_TERMS: dict[str, tuple[float, ...]] = {
    "boxcar": (1.0,),
    "hann": (0.5, -0.5),
    "hamming": (0.54, -0.46),
    "blackman": (0.42, -0.5, 0.08),
}


@lru_cache(maxsize=16)
def taper(name: str, length: int) -> Float64:
    """A window function of `length` points, read-only.

    Raises:
        ModelError: there is none of this name.
    """
    if name not in _TERMS:
        raise ModelError(f"there is no taper '{name}'", hint=f"known are: {', '.join(_TERMS)}")
    angle = 2 * np.pi * np.arange(length) / length
    out: Float64 = np.zeros(length)
    for k, term in enumerate(_TERMS[name]):
        out += term * np.cos(k * angle)
    if length == 1:
        out[:] = 1.0  # a periodic taper of one point would be its zero
    out.flags.writeable = False
    return out


def amplitudes(x: Float32, name: str) -> Float32:
    """[channels, length] to its one-sided amplitude spectrum [channels, length // 2 + 1].

    A sine of amplitude A whose period fits the window gives A at its bin, whatever the taper.
    """
    weights = taper(name, x.shape[1])
    out = np.abs(np.fft.rfft(x * weights, axis=1)) / weights.sum()
    out[:, _inner(x.shape[1])] *= 2
    return np.asarray(out, np.float32)


def decibels(x: Float32, floor_db: float) -> Float32:
    """20 log10(x), at least `floor_db`."""
    least = 10.0 ** (floor_db / 20)
    return np.asarray(np.maximum(20 * np.log10(np.maximum(x, least)), floor_db), np.float32)


def _inner(length: int) -> slice:
    """The bins that stand for a negative frequency as well: neither 0 nor, of an even length, the highest."""
    return slice(1, (length + 1) // 2)


def band_energies(x: Float32, rate_hz: float, bands_hz: Sequence[tuple[float, float]], name: str) -> Float32:
    """Mean square [channels, bands] of the part of each band [low, high) Hz, the mean left out."""
    return np.asarray(_energies(_Spectrum(x, rate_hz, name), bands_hz), np.float32)


def _energies(spectrum: _Spectrum, bands_hz: Sequence[tuple[float, float]]) -> Array:
    n = spectrum.length
    power = spectrum.magnitude**2 / (n * float((spectrum.weights**2).sum()))
    power[:, _inner(n)] *= 2
    # sums up to each bin: a band is a difference of two of them, whatever its width
    upto = np.concatenate([np.zeros((len(power), 1)), np.cumsum(power, axis=1)], axis=1)
    edges = np.searchsorted(spectrum.hz, np.asarray(bands_hz, np.float64).reshape(-1, 2), side="left")
    return np.asarray(np.maximum(upto[:, edges[:, 1]] - upto[:, edges[:, 0]], 0))


class _Spectrum:
    """Magnitudes of the tapered window without its mean, and what several figures need of them."""

    def __init__(self, x: Float32, rate_hz: float, name: str) -> None:
        self.length = x.shape[1]
        self.weights = taper(name, self.length)
        centred = x - x.mean(axis=1, dtype=np.float64, keepdims=True)
        self.magnitude = np.abs(np.fft.rfft(centred * self.weights, axis=1))
        # what rounding left of a constant channel is no sound
        loudest = np.abs(x).max(axis=1, initial=0.0).astype(np.float64)
        silent = np.abs(centred).max(axis=1, initial=0.0) <= 1e-6 * loudest
        self.magnitude[silent] = 0.0
        self.hz = np.arange(self.magnitude.shape[1]) * (rate_hz / self.length)
        self.total = np.maximum(self.magnitude.sum(axis=1), _LEAST)
        self.centroid = self.magnitude @ self.hz / self.total

    def moment(self, order: int) -> Array:
        """Of the frequency around the centroid, weighted by magnitude."""
        away = self.hz - self.centroid[:, None]
        return np.asarray((self.magnitude * away**order).sum(axis=1) / self.total)

    def rolloff(self, share: float) -> Array:
        """The lowest frequency at or below which `share` of the magnitude lies."""
        upto = np.cumsum(self.magnitude, axis=1)
        # a share of 1 must be reached although the sums differ in their last bits
        reached = upto >= share * upto[:, -1:] * (1 - 1e-12)
        return np.asarray(self.hz[reached.argmax(axis=1)])


def _kurtosis(x: Float32) -> Array:
    centred = x - x.mean(axis=1, keepdims=True)
    square = centred * centred
    variance = square.mean(axis=1)
    return np.asarray((square * square).mean(axis=1) / np.maximum(variance * variance, _LEAST**2))


def _rms(x: Float32) -> Array:
    return np.asarray(np.sqrt(np.mean(x * x, axis=1)))


_OF_TIME: dict[str, Callable[[Float32], Array]] = {
    "mean": lambda x: x.mean(axis=1),
    "rms": _rms,
    "std": lambda x: x.std(axis=1),
    "min": lambda x: x.min(axis=1),
    "max": lambda x: x.max(axis=1),
    "peak_to_peak": lambda x: np.ptp(x, axis=1),
    "crest": lambda x: np.abs(x).max(axis=1) / np.maximum(_rms(x), _LEAST),
    "kurtosis": _kurtosis,
}
_OF_SPECTRUM: dict[str, Callable[[_Spectrum, float], Array]] = {
    "centroid": lambda s, _: s.centroid,
    "bandwidth": lambda s, _: np.sqrt(s.moment(2)),
    "rolloff": lambda s, share: s.rolloff(share),
    "spectral_kurtosis": lambda s, _: s.moment(4) / np.maximum(s.moment(2) ** 2, _LEAST),
    "spectral_crest": lambda s, _: s.magnitude.max(axis=1) / np.maximum(s.magnitude.mean(axis=1), _LEAST),
}


def features(
    x: Float32,
    names: Sequence[str],
    rate_hz: float = 1.0,
    bands_hz: Sequence[tuple[float, float]] = (),
    taper: str = "hann",
    rolloff: float = 0.85,
) -> Float32:
    """[channels, length] to [channels * (names + bands)]: every figure of the first channel, then of the next.

    Args:
        names: of manifest.FeatureName.
        rate_hz: readings a second; frequencies are in hertz.
        bands_hz: [low, high) of each band whose mean square is wanted.
    """
    spectrum = _Spectrum(x, rate_hz, taper) if bands_hz or any(name in _OF_SPECTRUM for name in names) else None
    columns = []
    for name in names:
        if spectrum is not None and name in _OF_SPECTRUM:
            columns.append(_OF_SPECTRUM[name](spectrum, rolloff))
        else:
            columns.append(_OF_TIME[name](x))
    if spectrum is not None and bands_hz:
        columns += [*_energies(spectrum, bands_hz).T]
    return np.stack(columns, axis=1).astype(np.float32).ravel()
