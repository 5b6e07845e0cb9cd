"""Each step against the plainest code that computes the same."""

import math
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.contract import CHANNEL_TYPES, Channel, Schema
from gateway.errors import ModelError
from gateway.infer import spectra, steps

RNG = np.random.default_rng(8)
RANGES = {"b": 7, "B": 8, "h": 15, "H": 16, "i": 31, "I": 32, "q": 63, "Q": 64}


@given(data=st.data())
def test_records_reads_what_struct_reads(data: st.DataObject) -> None:
    codes = data.draw(st.lists(st.sampled_from(CHANNEL_TYPES), min_size=1, max_size=6))
    schema = Schema(tuple(Channel(f"c{i}", code) for i, code in enumerate(codes)))
    order = data.draw(st.permutations(range(len(codes))))[: data.draw(st.integers(1, len(codes)))]
    n = data.draw(st.integers(0, 5))
    value = {code: st.floats(width=32, allow_nan=False) for code in "fd"}
    for code, bits in RANGES.items():
        value[code] = st.integers(0 if code.isupper() else -(2**bits), 2**bits - 1)
    rows = [tuple(data.draw(value[code]) for code in codes) for _ in range(n)]
    packed = b"".join(struct.pack(schema.format, *row) for row in rows)
    window = steps.records(schema, [f"c{i}" for i in order])(packed)
    assert window.dtype == np.float32 and window.shape == (len(order), n)
    assert window.tolist() == [[float(np.float32(row[i])) for row in rows] for i in order]


def test_records_refuses_a_missing_channel_and_half_a_record() -> None:
    schema = Schema((Channel("a", "h"), Channel("b", "f")))
    with pytest.raises(ModelError, match="needs the channel 'c', the stream has a, b"):
        steps.records(schema, ["c"])
    with pytest.raises(ModelError, match="7 bytes are no whole records of 6"):
        steps.records(schema, ["a"])(b"1234567")


@pytest.mark.parametrize(("shape", "axis_last"), [((5, 4, 3), True), ((3, 16), False)])
def test_normalise(shape: tuple[int, ...], axis_last: bool) -> None:
    x = RNG.integers(0, 256, shape).astype(np.uint8)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    out = steps.normalise(1 / 255, mean, std, axis_last)(x)
    assert out.dtype == np.float32
    for index in np.ndindex(*shape):
        c = index[-1] if axis_last else index[0]
        assert out[index] == pytest.approx((x[index] / 255 - mean[c]) / std[c], abs=2e-6)
    with pytest.raises(ModelError, match="std of 0"):
        steps.normalise(1, (0,), (0,), True)


def test_standardise_and_its_floor() -> None:
    x = RNG.normal(5, 3, (2, 64)).astype(np.float32)
    x[1] = 7.0
    out = steps.standardise(x, 1e-6)
    mean = sum(x[0].tolist()) / 64
    std = math.sqrt(sum((v - mean) ** 2 for v in x[0].tolist()) / 64)
    assert out[0].tolist() == pytest.approx([(v - mean) / std for v in x[0].tolist()], abs=1e-4)
    assert out[1].tolist() == [0.0] * 64, "a constant channel is 0, not a division by zero"


def test_features() -> None:
    x = RNG.normal(0, 2, (3, 50)).astype(np.float32)
    names = ("mean", "rms", "std", "min", "max", "peak_to_peak", "crest")
    expected = []
    for row in x.astype(float).tolist():
        mean, rms = sum(row) / 50, math.sqrt(sum(v * v for v in row) / 50)
        std = math.sqrt(sum((v - mean) ** 2 for v in row) / 50)
        low, high = min(row), max(row)
        expected += [mean, rms, std, low, high, high - low, max(abs(low), abs(high)) / rms]
    assert spectra.features(x, names).tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert spectra.features(np.zeros((1, 4), np.float32), ["crest"]).tolist() == [0.0]


def test_tensor_layouts() -> None:
    picture = RNG.integers(0, 255, (2, 4, 3)).astype(np.float32)
    planes = steps.tensor(picture, "nchw", "float32")
    assert planes.shape == (1, 3, 2, 4) and planes.flags.c_contiguous
    assert planes[0, 2, 1, 3] == picture[1, 3, 2]
    assert steps.tensor(picture, "nhwc", "uint8").dtype == np.uint8
    window = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert steps.tensor(window, "nlc", "float32").tolist() == [[[0, 3], [1, 4], [2, 5]]]
    assert steps.tensor(window, "ncl", "float32").shape == (1, 2, 3)
    assert steps.tensor(window, "flat", "float32").tolist() == [[0, 1, 2, 3, 4, 5]]
    assert steps.tensor(np.array([[-3.0, 1.6, 300.0]]), "ncl", "uint8").tolist() == [[[0, 2, 255]]]


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=20))
def test_softmax(logits: list[float]) -> None:
    out = steps.softmax(np.array([logits], np.float32))[0].tolist()
    raised = [math.exp(v - max(logits)) for v in logits]
    assert out == pytest.approx([v / sum(raised) for v in raised], abs=1e-5)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20), st.integers(1, 25))
def test_top_k(scores: list[int], k: int) -> None:
    expected = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k]
    assert steps.top_k(np.array(scores, np.float32), k).tolist() == expected
