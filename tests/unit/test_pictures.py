"""Pictures from outside: bounded before they are decoded, and only ever refused by name."""

import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import ModelError
from gateway.infer import pictures

RNG = np.random.default_rng(3)


def picture(width: int = 60, height: int = 40) -> np.ndarray:
    small = RNG.integers(0, 256, (4, 6, 3)).astype(np.uint8)
    return np.asarray(cv2.resize(small, (width, height)))


def encoded(kind: str, array: np.ndarray) -> bytes:
    return bytes(cv2.imencode(kind, array)[1].tobytes())


JPEG, PNG = encoded(".jpg", picture()), encoded(".png", picture())


@pytest.mark.parametrize("kind", [".jpg", ".png"])
def test_size_is_read_from_the_header(kind: str) -> None:
    data = encoded(kind, picture(61, 43))
    assert pictures.size(data) == (61, 43)
    assert pictures.decode(memoryview(data), 10_000).shape == (43, 61, 3)


def test_png_comes_back_exactly_and_grey_has_three_colours() -> None:
    original = picture()
    assert np.array_equal(pictures.decode(encoded(".png", original), 10_000), original)
    assert pictures.decode(encoded(".png", original[:, :, 0]), 10_000).shape == (40, 60, 3)


def test_a_picture_that_is_too_large_is_refused_undecoded() -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    with pytest.raises(ModelError, match="60000 x 60000"):
        pictures.decode(bomb, 1 << 25)


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"\xff\xd8", b"\xff\xd8\xff\xc0", b"\x89PNG\r\n\x1a\n", b"\0" * 99])
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(ModelError, match="not a picture"):
        pictures.decode(data, 1 << 25)


@pytest.mark.parametrize("data", [JPEG, PNG])
def test_a_picture_cut_short_is_refused(data: bytes) -> None:
    with pytest.raises(ModelError, match="cut short"):
        pictures.decode(data[: len(data) * 2 // 3], 10_000)


@given(
    good=st.sampled_from([JPEG, PNG]),
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_damage_gives_a_picture_or_a_model_error(good: bytes, edits: list[tuple[float, int]]) -> None:
    data = bytearray(good)
    for where, value in edits:
        data[int(where * len(data))] = value
    try:
        assert pictures.decode(bytes(data), 10_000).shape[2] == 3
    except ModelError as error:
        assert "picture" in str(error)


def test_stretch_against_plain_bilinear() -> None:
    source = picture(7, 5).astype(float)
    out = pictures.stretch(source.astype(np.uint8), 11, 8)
    for y in range(8):
        for x in range(11):
            sx = min(max((x + 0.5) * 7 / 11 - 0.5, 0), 6)
            sy = min(max((y + 0.5) * 5 / 8 - 0.5, 0), 4)
            x0, y0 = min(int(sx), 5), min(int(sy), 3)
            fx, fy = sx - x0, sy - y0
            top = source[y0, x0] * (1 - fx) + source[y0, x0 + 1] * fx
            bottom = source[y0 + 1, x0] * (1 - fx) + source[y0 + 1, x0 + 1] * fx
            assert out[y, x].tolist() == pytest.approx((top * (1 - fy) + bottom * fy).tolist(), abs=1.01)


def test_area_is_the_mean_of_what_it_covers() -> None:
    source = picture(8, 8)
    out = pictures.stretch(source, 4, 4, "area")
    mean = source.reshape(4, 2, 4, 2, 3).mean(axis=(1, 3))
    assert np.abs(out - mean).max() <= 0.51


@pytest.mark.parametrize(("width", "height"), [(60, 40), (40, 60), (50, 50), (1000, 2)])
def test_letterbox_keeps_the_aspect_ratio(width: int, height: int) -> None:
    out, place = pictures.letterbox(np.zeros((height, width, 3), np.uint8), 96, 96, fill=114)
    assert out.shape == (96, 96, 3)
    rows, columns = np.nonzero((out == 0).all(axis=2))
    assert (columns.min(), rows.min()) == (round(place.x * 96), round(place.y * 96))
    assert (columns.max() + 1 - columns.min()) == round(place.width * 96)
    assert (
        (rows.max() + 1 - rows.min())
        == round(place.height * 96)
        == max(1, round(min(96 / width, 96 / height) * height))
    )
    assert (out[(out != 0).any(axis=2)] == 114).all()


def test_swap_colours() -> None:
    assert pictures.swap_colours(np.array([[[1, 2, 3]]], np.uint8)).tolist() == [[[3, 2, 1]]]
