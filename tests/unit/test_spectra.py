"""Spectra and features against their definitions: plain sums, no FFT, no NumPy in the reference."""

import cmath
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import ModelError
from gateway.infer import spectra

TAPERS = ("boxcar", "hann", "hamming", "blackman")
RATE = 50.0
RNG = np.random.default_rng(12)

signals = st.lists(st.integers(-1000, 1000).map(lambda n: n / 8), min_size=2, max_size=40)


def plain_taper(name: str, n: int) -> list[float]:
    def at(i: int) -> float:
        a = 2 * math.pi * i / n
        return {
            "boxcar": 1.0,
            "hann": math.sin(a / 2) ** 2,
            "hamming": 0.54 - 0.46 * math.cos(a),
            "blackman": 0.42 - 0.5 * math.cos(a) + 0.08 * math.cos(2 * a),
        }[name]

    return [at(i) for i in range(n)]


def plain_dft(x: list[float]) -> list[complex]:
    n = len(x)
    return [sum(v * cmath.exp(-2j * math.pi * k * i / n) for i, v in enumerate(x)) for k in range(n // 2 + 1)]


def tapered(x: list[float], name: str) -> list[float]:
    mean = sum(x) / len(x)
    return [(v - mean) * w for v, w in zip(x, plain_taper(name, len(x)), strict=True)]


def row(x: list[float]) -> "np.ndarray[tuple[int, int], np.dtype[np.float32]]":
    return np.array([x], np.float32)


@pytest.mark.parametrize("name", TAPERS)
@pytest.mark.parametrize("n", [1, 2, 7, 16])
def test_tapers(name: str, n: int) -> None:
    expected = plain_taper(name, n) if n > 1 else [1.0]
    assert spectra.taper(name, n).tolist() == pytest.approx(expected, abs=1e-12)


def test_an_unknown_taper_is_named() -> None:
    with pytest.raises(ModelError, match=r"no taper 'kaiser' \(known are: boxcar, hann"):
        spectra.taper("kaiser", 8)


@given(signals, st.sampled_from(TAPERS))
def test_amplitudes(x: list[float], name: str) -> None:
    n, weights = len(x), plain_taper(name, len(x))
    said = plain_dft([v * w for v, w in zip(x, weights, strict=True)])
    twice = [1 if k == 0 or 2 * k == n else 2 for k in range(len(said))]
    expected = [t * abs(c) / sum(weights) for t, c in zip(twice, said, strict=True)]
    assert spectra.amplitudes(row(x), name)[0].tolist() == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("name", TAPERS)
def test_a_sine_shows_its_amplitude(name: str) -> None:
    t = np.arange(64) / 64
    window = np.stack([3 * np.sin(2 * np.pi * 8 * t), 0.5 * np.cos(2 * np.pi * 20 * t)]).astype(np.float32)
    out = spectra.amplitudes(window, name)
    assert out.shape == (2, 33) and out.dtype == np.float32
    assert [out[0, 8], out[1, 20]] == pytest.approx([3, 0.5], rel=1e-5)
    assert spectra.decibels(out, -60)[0, 8] == pytest.approx(20 * math.log10(3), abs=1e-4)
    assert spectra.decibels(np.zeros((1, 2), np.float32), -60).tolist() == [[-60, -60]]


@given(signals, st.sampled_from(TAPERS), st.lists(st.integers(0, 30), min_size=2, max_size=2))
def test_band_energies(x: list[float], name: str, edges: list[int]) -> None:
    low, high = float(min(edges)), float(max(edges))
    n, said = len(x), plain_dft(tapered(x, name))
    scale = n * sum(w * w for w in plain_taper(name, n))
    expected = sum(
        abs(c) ** 2 * (1 if k == 0 or 2 * k == n else 2) / scale
        for k, c in enumerate(said)
        if low <= k * (RATE / n) < high
    )
    got = spectra.band_energies(row(x), RATE, [(low, high)], name)
    assert got.shape == (1, 1)
    assert got[0, 0] == pytest.approx(expected, rel=1e-3, abs=1e-3)


@given(signals)
def test_all_bands_together_are_the_variance(x: list[float]) -> None:
    mean = sum(x) / len(x)
    variance = sum((v - mean) ** 2 for v in x) / len(x)
    got = spectra.band_energies(row(x), RATE, [(0, 5), (5, 11), (11, 1000)], "boxcar")
    assert got.sum() == pytest.approx(variance, rel=1e-4, abs=1e-4)


def plain_spectral(x: list[float], share: float) -> list[float]:
    """Centroid, bandwidth, roll-off, kurtosis, crest."""
    said = [abs(c) for c in plain_dft(tapered(x, "hann"))]
    hz = [k * RATE / len(x) for k in range(len(said))]
    total = sum(said)
    centroid = sum(f * a for f, a in zip(hz, said, strict=True)) / total
    second = sum(a * (f - centroid) ** 2 for f, a in zip(hz, said, strict=True)) / total
    fourth = sum(a * (f - centroid) ** 4 for f, a in zip(hz, said, strict=True)) / total
    rolloff = next(f for k, f in enumerate(hz) if sum(said[: k + 1]) >= share * total)
    return [centroid, math.sqrt(second), rolloff, fourth / second**2, max(said) / (total / len(said))]


SPECTRAL = ("centroid", "bandwidth", "rolloff", "spectral_kurtosis", "spectral_crest")


@pytest.mark.parametrize("n", [8, 31, 64])
def test_spectral_features(n: int) -> None:
    x = RNG.normal(3, 2, (2, n)).astype(np.float32)
    got = spectra.features(x, SPECTRAL, RATE, rolloff=0.7)
    expected = [value for channel in x.astype(float).tolist() for value in plain_spectral(channel, 0.7)]
    assert got.tolist() == pytest.approx(expected, rel=1e-4)


def test_kurtosis_is_three_for_a_normal_and_known_for_a_short_signal() -> None:
    x = [1.0, 2.0, 3.0, 10.0]
    second, fourth = (sum((v - 4) ** k for v in x) / 4 for k in (2, 4))
    assert spectra.features(row(x), ["kurtosis"])[0] == pytest.approx(fourth / second**2)
    noise = RNG.normal(0, 1, (1, 100_000)).astype(np.float32)
    assert spectra.features(noise, ["kurtosis"])[0] == pytest.approx(3, abs=0.1)


def test_bands_follow_the_names_of_each_channel() -> None:
    x = RNG.normal(0, 1, (3, 32)).astype(np.float32)
    bands = [(0.0, 10.0), (10.0, 25.0)]
    got = spectra.features(x, ["rms", "centroid"], RATE, bands).reshape(3, 4)
    assert got[:, 2:].tolist() == spectra.band_energies(x, RATE, bands, "hann").tolist()
    assert got[:, 0].tolist() == pytest.approx(np.sqrt((x * x).mean(axis=1)).tolist())


@given(
    value=st.floats(-1e6, 1e6, width=32),
    n=st.integers(1, 64),
    name=st.sampled_from(TAPERS),
)
def test_a_constant_channel_has_finite_figures_and_no_spectrum(value: float, n: int, name: str) -> None:
    x = np.full((1, n), value, np.float32)
    names = ("mean", "rms", "std", "crest", "kurtosis", *SPECTRAL)
    got = spectra.features(x, names, RATE, [(0, 1000)], name)
    assert np.isfinite(got).all()
    assert got[-6:].tolist() == [0] * 6, "five spectral figures and the band"


@given(st.integers(1, 3), st.integers(1, 50), st.sampled_from(TAPERS), st.data())
def test_shapes_and_bounds(channels: int, n: int, name: str, data: st.DataObject) -> None:
    numbers = data.draw(st.lists(st.floats(-1e4, 1e4, width=32), min_size=channels * n, max_size=channels * n))
    x = np.array(numbers, np.float32).reshape(channels, n)
    assert spectra.amplitudes(x, name).shape == (channels, n // 2 + 1)
    got = spectra.features(x, SPECTRAL, RATE, taper=name).reshape(channels, 5)
    assert np.isfinite(got).all()
    for column in (0, 1, 2):  # frequencies
        assert (got[:, column] >= 0).all() and (got[:, column] <= RATE / 2 + 1e-3).all()
