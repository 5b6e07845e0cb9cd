"""How far a window is from the normal ones: reconstruction error, or distance of an embedding. NumPy only.

Scores are in units of the manifest's threshold: 1 is where an anomaly begins.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gateway.errors import ModelError
from gateway.infer.steps import Array

Float64 = npt.NDArray[np.float64]


def reconstruction(x: Array, again: Array, time_axis: int, smooth: int) -> float:
    """Root of the largest moving average, over `smooth` readings, of the squared error averaged over the channels.

    Args:
        x, again: the window and what the model made of it, of one shape; `time_axis` counts readings.
        smooth: 0, or more than there are readings, averages over all: the root mean square error.

    Raises:
        ModelError: the shapes differ.
    """
    if x.size != again.size:
        raise ModelError(
            f"a reconstruction of {list(again.shape)} for an input of {list(x.shape)}",
            hint="mend the anomaly step's output, or the pre steps",
        )
    error = (x.astype(np.float64) - again.reshape(x.shape)) ** 2
    per_reading = np.moveaxis(error, time_axis, 0).reshape(error.shape[time_axis], -1).mean(axis=1)
    n = min(smooth or len(per_reading), len(per_reading))
    upto = np.concatenate([[0.0], np.cumsum(per_reading)])
    return float(np.sqrt(max(0.0, (upto[n:] - upto[:-n]).max() / n)))


def distance(embedding: Array, mean: Float64, whiten: Float64 | None) -> float:
    """Euclidean length of whiten @ (embedding - mean); `whiten` is a square matrix, a diagonal, or None.

    With whiten = inverse of the Cholesky factor of a covariance this is the Mahalanobis distance.

    Raises:
        ModelError: the embedding is not as long as the mean.
    """
    x = embedding.reshape(-1).astype(np.float64)
    if x.shape != mean.shape:
        raise ModelError(
            f"an embedding of {len(x)} numbers, the anomaly step's mean has {len(mean)}",
            hint="mend the anomaly step's output or its constants",
        )
    x = x - mean
    if whiten is not None:
        x = whiten * x if whiten.ndim == 1 else whiten @ x
    return float(np.sqrt(x @ x))


def probability(ratio: float) -> float:
    """0 to 1 of a score in units of the threshold: r / (1 + r), so that the threshold is one half."""
    return ratio / (1 + ratio)


def fit_distance(embeddings: Array, shrink: float = 0.1) -> tuple[Float64, Float64]:
    """`mean` [d] and `whiten` [d, d] of normal embeddings [n, d], for the manifest.

    The covariance is drawn towards a multiple of the identity by `shrink` (Ledoit and Wolf 2004, with a given weight),
    so that few samples, or dimensions that never change, still give a distance.

    Raises:
        ModelError: no two samples, or none that differ.
    """
    x = np.asarray(embeddings, np.float64)
    if x.ndim != 2 or len(x) < 2:
        raise ModelError("a distance needs at least two embeddings", hint="take more normal windows")
    mean = x.mean(axis=0)
    covariance = np.atleast_2d(np.cov(x, rowvar=False, bias=True))
    scale = float(np.trace(covariance)) / len(covariance)
    if scale <= 0:
        raise ModelError("all embeddings are the same", hint="take windows that differ")
    shrunk = (1 - shrink) * covariance + shrink * scale * np.eye(len(covariance))
    return mean, np.linalg.inv(np.linalg.cholesky(shrunk))
