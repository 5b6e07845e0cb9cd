"""Anomaly scores against plain loops, and the fit against the definition of the Mahalanobis distance."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import ModelError
from gateway.infer import anomaly

RNG = np.random.default_rng(3)


def plain(x: list[list[float]], again: list[list[float]], smooth: int) -> float:
    """Of [channels][readings]."""
    n = len(x[0])
    error = [sum((a[t] - b[t]) ** 2 for a, b in zip(x, again, strict=True)) / len(x) for t in range(n)]
    width = min(smooth or n, n)
    return math.sqrt(max(sum(error[i : i + width]) / width for i in range(n - width + 1)))


@given(st.integers(1, 3), st.integers(1, 20), st.integers(0, 25), st.integers(0, 10_000))
def test_reconstruction(channels: int, n: int, smooth: int, seed: int) -> None:
    x, again = np.random.default_rng(seed).normal(0, 2, (2, channels, n)).astype(np.float32)
    expected = plain(x.tolist(), again.tolist(), smooth)
    assert anomaly.reconstruction(x, again, 1, smooth) == pytest.approx(expected, rel=1e-5)
    assert anomaly.reconstruction(x.T, again.T[None], 0, smooth) == pytest.approx(expected, rel=1e-5)


def test_a_short_fault_is_not_averaged_away() -> None:
    x = np.zeros((1, 100), np.float32)
    x[0, 50:54] = 3.0
    again = np.zeros((1, 1, 100), np.float32)
    assert anomaly.reconstruction(x, again, 1, 4) == pytest.approx(3.0)
    assert anomaly.reconstruction(x, again, 1, 0) == pytest.approx(0.6)
    with pytest.raises(ModelError, match=r"reconstruction of \[1, 99\] for an input of \[1, 100\]"):
        anomaly.reconstruction(x, again[0, :, :99], 1, 0)


def test_distance_is_mahalanobis() -> None:
    samples = RNG.normal(0, 1, (500, 4)) @ RNG.normal(0, 1, (4, 4)) + 5
    mean, whiten = anomaly.fit_distance(samples, shrink=0.0)
    covariance = (samples - samples.mean(axis=0)).T @ (samples - samples.mean(axis=0)) / len(samples)
    for x in samples[:20]:
        away = x - samples.mean(axis=0)
        expected = math.sqrt(away @ np.linalg.solve(covariance, away))
        assert anomaly.distance(x[None].astype(np.float64), mean, whiten) == pytest.approx(expected)
    squares = [anomaly.distance(x, mean, whiten) ** 2 for x in samples]
    assert sum(squares) / len(squares) == pytest.approx(4), "the mean square is the dimension"


def test_distances_without_a_matrix_and_with_a_diagonal() -> None:
    x, mean = np.array([3.0, 4.0]), np.zeros(2)
    assert anomaly.distance(x, mean, None) == 5
    assert anomaly.distance(x, mean, np.array([2.0, 0.0])) == 6
    with pytest.raises(ModelError, match="an embedding of 2 numbers, the anomaly step's mean has 3"):
        anomaly.distance(x, np.zeros(3), None)


def test_a_fit_of_few_samples_or_of_constants() -> None:
    samples = RNG.normal(0, 1, (3, 10))  # fewer samples than dimensions: the covariance alone has no inverse
    samples[:, 0] = 1.0
    mean, whiten = anomaly.fit_distance(samples)
    assert np.isfinite(whiten).all() and anomaly.distance(samples[0], mean, whiten) > 0
    with pytest.raises(ModelError, match="at least two"):
        anomaly.fit_distance(samples[:1])
    with pytest.raises(ModelError, match="all embeddings are the same"):
        anomaly.fit_distance(np.ones((5, 2)))


@given(st.floats(0, 1e9), st.floats(0, 1e9))
def test_the_probability_rises_with_the_score(a: float, b: float) -> None:
    assert 0 <= anomaly.probability(a) <= 1
    assert (a < b) <= (anomaly.probability(a) <= anomaly.probability(b))
    assert anomaly.probability(1.0) == 0.5
