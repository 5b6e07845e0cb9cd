"""Masks: their runs, their bounds, and the planes they are made of, against plain loops."""

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.contract import Inference, Mask, Result
from gateway.errors import ModelError
from gateway.infer import masks
from gateway.infer.manifest import Segment
from gateway.result import MAX_MASK_BYTES, MAX_MASK_CELLS

RNG = np.random.default_rng(2)


@st.composite
def grids(draw: st.DrawFn) -> np.ndarray:
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 40))
    cells = draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width))
    return np.array(cells).reshape(height, width)


@given(grids())
def test_a_mask_comes_back_as_it_was(grid: np.ndarray) -> None:
    mask = masks.pack("a", grid)
    assert (mask.height, mask.width) == grid.shape
    assert list(mask.cells()) == grid.ravel().tolist()


@pytest.mark.parametrize("fill", [False, True])
def test_long_runs(fill: bool) -> None:
    grid = np.full((256, 256), fill)
    mask = masks.pack("a", grid)
    assert mask.cells() == bytes([fill]) * MAX_MASK_CELLS and len(mask.runs) <= 4


@given(st.integers(-1, 300), st.integers(-1, 300), st.binary(max_size=60))
def test_a_strangers_mask_is_whole_or_refused(width: int, height: int, runs: bytes) -> None:
    try:
        cells = Mask("a", width, height, runs).cells()
    except ValueError:
        return
    assert len(cells) == width * height <= MAX_MASK_CELLS and set(cells) <= {0, 1}


@pytest.mark.parametrize(
    "mask",
    [
        Mask("a", 257, 256, b"\x01"),
        Mask("a", 2, 2, b"\x00" * (MAX_MASK_BYTES + 1)),
        Mask("a", 2, 2, b"\x03"),
        Mask("a", 2, 2, b"\x05"),
        Mask("a", 2, 2, b"\x84"),
        Mask("a", 2, 2, b"\x84\x80\x80\x80\x00"),
        Mask("a", 0, 2, b""),
    ],
)
def test_what_is_no_mask(mask: Mask) -> None:
    with pytest.raises(ValueError, match="mask"):
        mask.cells()


def test_a_mask_crosses_json_and_messagepack() -> None:
    result = Result(masks=(masks.pack("person", np.eye(9, dtype=bool)),), values={"person": 1 / 9})
    assert msgspec.json.decode(msgspec.json.encode(result), type=Result) == result
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(result), type=Result) == result


def test_rows_of_an_old_gateway_still_read() -> None:
    old = b'{"label":"a","score":0.5,"detections":[["a",0.5,0,0,1,1]]}'
    assert msgspec.json.decode(old, type=Result).text == ""
    row = (
        b'{"pipeline":"p","stamp":{"boot":"b","mono_ns":1,"wall_ns":null,"uncertainty_ns":0},"model":"m","bundle":"0",'
    )
    row += b'"backend":"onnx","took_us":5,"result":' + old + b',"input_seq":3}'
    assert msgspec.json.decode(row, type=Inference).parent is None


@pytest.mark.parametrize(
    ("shape", "layout", "n"),
    [((1, 3, 4, 5), "nchw", 3), ((1, 4, 5, 3), "nhwc", 3), ((1, 4, 5), "nchw", 1), ((4, 5), "nhwc", 1)],
)
def test_planes_of_each_layout(shape: tuple[int, ...], layout: str, n: int) -> None:
    x = masks.planes(RNG.random(shape), Segment(layout=layout))  # type: ignore[arg-type]
    assert x.shape == (n, 4, 5)
    with pytest.raises(ModelError, match="one plane a class"):
        masks.planes(RNG.random(7), Segment(layout="nchw"))


def test_a_sigmoid_and_the_letterboxs_border() -> None:
    logits = np.full((1, 1, 8, 8), -5.0)
    logits[0, 0, 2:6, :4] = 5.0
    x = masks.planes(logits, Segment(layout="nchw", sigmoid=True))
    assert x[0, 2, 0] == pytest.approx(1 / (1 + np.exp(-5)))
    inner = masks.inner(x, (0.0, 0.25, 1.0, 0.5))  # the picture is the middle half
    assert inner.shape == (1, 4, 8) and masks.shares(inner, 0.5) == [0.5]


@given(
    classes=st.integers(1, 4), height=st.integers(1, 20), width=st.integers(1, 20), side=st.integers(1, 24),
    seed=st.integers(0, 999),
)  # fmt: skip
def test_blocks_are_averaged(classes: int, height: int, width: int, side: int, seed: int) -> None:
    x = np.random.default_rng(seed).random((classes, height, width))
    small = masks.coarse(x, side)
    assert max(small.shape[1:]) <= side
    block = -(-max(height, width) // side)
    for c, row, column in np.ndindex(*small.shape):
        part = x[c, row * block : (row + 1) * block, column * block : (column + 1) * block]
        assert small[c, row, column] == pytest.approx(sum(part.ravel().tolist()) / part.size)


def test_several_classes_share_the_picture() -> None:
    x = RNG.random((3, 30, 40))
    counts = [0, 0, 0]
    for row, column in np.ndindex(30, 40):
        plane = x[:, row, column].tolist()
        counts[plane.index(max(plane))] += 1
    assert masks.shares(x, 0.5) == pytest.approx([n / 1200 for n in counts])
    made = masks.masks(x, ["", "b", "c"], 0.5, 64)
    assert [mask.label for mask in made] == ["b", "c"]
    for mask, index in zip(made, (1, 2), strict=True):
        assert sum(mask.cells()) == counts[index]


def test_a_class_that_covers_nothing_has_no_mask() -> None:
    assert masks.masks(np.zeros((1, 8, 8)), ["a"], 0.5, 8) == ()


def test_a_mask_that_would_be_too_large_gets_coarser() -> None:
    x = (np.indices((256, 256)).sum(axis=0) % 2).astype(float)[None]  # every cell a run of its own
    (mask,) = masks.masks(x, ["a"], 0.5, 256)
    assert mask.width == 128 and len(mask.runs) <= MAX_MASK_BYTES
