"""The arithmetic around a model: windows and tensors before it, scores and values after it.

The same functions serve training and the device. NumPy only; spectra and features are in `spectra.py`, boxes in
`boxes.py` and `ssd.py`, text in `ctc.py`, masks in `masks.py`, anomalies in `anomaly.py`, pictures in `pictures.py`;
`recipe.py` and `answers.py` string together what a manifest declares.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gateway.contract import Schema
from gateway.errors import ModelError

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]
Buffer = bytes | bytearray | memoryview


def records(schema: Schema, channels: Sequence[str]) -> Callable[[Buffer], Float32]:
    """A reader of packed records: bytes -> float32 [channels, n], the channels by name and in this order.

    Raises:
        ModelError: the schema has no such channel; the reader raises it when bytes are no whole records.
    """
    names = [c.name for c in schema.channels]
    for channel in channels:
        if channel not in names:
            raise ModelError(
                f"the model needs the channel '{channel}', the stream has {', '.join(names)}",
                hint="choose another stream, or name the node's channel as the model does",
            )
    # by position: a stream may carry one name twice, a NumPy type may not
    columns = [names.index(channel) for channel in channels]
    codes = [c.type for c in schema.channels]
    dtype = np.dtype([(f"f{i}", "<" + code) for i, code in enumerate(codes)])
    plain = np.dtype("<" + codes[0]) if len(set(codes)) == 1 else None
    width = len(codes)
    # neighbours are sliced: choosing them one by one costs more than the copy
    wanted: slice | list[int] = columns
    if columns == list(range(columns[0], columns[0] + len(columns))):
        wanted = slice(columns[0], columns[0] + len(columns))

    def read(data: Buffer) -> Float32:
        if len(data) % dtype.itemsize:
            raise ModelError(f"{len(data)} bytes are no whole records of {dtype.itemsize} bytes")
        if plain is not None:  # one type throughout: one strided copy
            table = np.frombuffer(data, plain).reshape(-1, width)
            # always a copy: the bytes may lie unaligned in a packet that the next one overwrites
            return np.array(table[:, wanted].T, np.float32, order="C")
        rows = np.frombuffer(data, dtype)
        window = np.empty((len(columns), len(rows)), np.float32)
        for i, column in enumerate(columns):
            window[i] = rows[f"f{column}"]
        return window

    return read


def normalise(scale: float, mean: Sequence[float], std: Sequence[float], axis_last: bool) -> Callable[[Array], Float32]:
    """x -> (x * scale - mean) / std as float32, along the last axis (pictures) or the first (windows)."""
    divisor = np.asarray(std, np.float64)
    if not divisor.all():
        raise ModelError("the normalise step divides by a std of 0", hint="mend the manifest")
    factor = np.asarray(scale / divisor, np.float32)
    offset = np.asarray(-np.asarray(mean, np.float64) / divisor, np.float32)
    if not axis_last:
        factor, offset = factor[:, None], offset[:, None]

    def apply(x: Array) -> Float32:
        out = np.multiply(x, factor, dtype=np.float32)
        out += offset
        return out

    return apply


def standardise(x: Float32, floor: float) -> Float32:
    """Each row of [channels, length] to mean 0 and standard deviation 1 (population); `floor` bounds the divisor."""
    centred = x - x.mean(axis=1, keepdims=True)
    deviation = np.sqrt(np.mean(centred * centred, axis=1, keepdims=True))
    return np.asarray(centred / np.maximum(deviation, floor), np.float32)


def tensor(x: Array, layout: str, dtype: str) -> Array:
    """To the model's memory order and type, contiguous, with a leading batch axis of 1.

    `nchw` takes [h, w, c]; `nlc` takes [c, l]; `nhwc`, `ncl` and `flat` keep the order of their input.
    """
    if layout == "nchw":
        x = x.transpose(2, 0, 1)
    elif layout == "nlc":
        x = x.T
    elif layout == "flat":
        x = x.ravel()
    if dtype == "uint8" and x.dtype != np.uint8:
        x = np.clip(np.rint(x), 0, 255)
    return np.ascontiguousarray(x[None], np.dtype(dtype))


def softmax(logits: Array) -> Float32:
    """Over the last axis; subtracting the maximum first keeps large logits finite."""
    raised = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=-1, keepdims=True), np.float32)


def top_k(scores: Array, k: int) -> Array:
    """Indices of the `k` largest of a 1-D array, best first; of equal ones the first in front."""
    return np.argsort(-scores, kind="stable")[:k]
