"""Uncompressed pictures: what comes out is the same picture as JPEG, and it is carried back with the result."""

from __future__ import annotations

import contextlib

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.contract import Result
from gateway.errors import ModelError
from gateway.infer import raw, wire, worker


def yuyv(colours: list[tuple[int, int, int]], width: int, height: int, padding: int = 0) -> bytes:
    """Upright stripes of Y, U, V, with `padding` bytes behind each row."""
    pairs = [colours[column * 2 * len(colours) // width] for column in range(width // 2)]
    row = b"".join(bytes((y, u, y, v)) for y, u, v in pairs)
    return (row + bytes(padding)) * height


@pytest.mark.parametrize("padding", [0, 64])
def test_colours_and_places_are_kept(padding: int) -> None:
    stripes = [(82, 90, 240), (145, 54, 34), (41, 240, 110)]  # red, green, blue of BT.601
    data = yuyv(stripes, 96, 48, padding)
    jpeg = raw.to_jpeg(data, f"{raw.PREFIX}96;48;{192 + padding}", 1 << 20)
    picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None and picture.shape == (48, 96, 3)
    for at, strongest in ((16, 2), (48, 1), (80, 0)):
        blue_green_red = picture[24, at].astype(int)
        assert blue_green_red[strongest] > 200 and np.delete(blue_green_red, strongest).max() < 60


def test_the_quality_goes_down_until_it_fits() -> None:
    noise = np.random.default_rng(1).integers(0, 255, 320 * 240 * 2, np.uint8).tobytes()
    media = f"{raw.PREFIX}320;240;640"
    best = raw.to_jpeg(noise, media, 1 << 20)
    smaller = raw.to_jpeg(noise, media, len(best) - 1)
    assert len(smaller) < len(best)
    with pytest.raises(ModelError, match="take smaller ones"):
        raw.to_jpeg(noise, media, 100)


@given(
    media=st.one_of(st.text(max_size=20), st.tuples(*[st.integers(-2, 40)] * 3).map(lambda t: ";".join(map(str, t)))),
    data=st.binary(max_size=400),
)
def test_nonsense_is_refused(media: str, data: bytes) -> None:
    try:
        jpeg = raw.to_jpeg(data, raw.PREFIX + media, 1 << 16)
    except ModelError:
        return
    width, height, stride = map(int, media.split(";"))
    assert len(data) == height * stride and stride >= 2 * width
    assert jpeg.startswith(b"\xff\xd8")


@given(result=st.binary(max_size=50), picture=st.binary(max_size=50), noise=st.binary(max_size=12))
def test_result_and_picture_travel_together(result: bytes, picture: bytes, noise: bytes) -> None:
    packet = wire.pack_answer(7, 8, 9, wire.Kind.PICTURED, wire.pack_pictured(result, picture))
    (answer,) = wire.unpack_answers(memoryview(packet))
    assert (answer.number, answer.kind) == (7, wire.Kind.PICTURED)
    assert [bytes(answer.payload), bytes(answer.picture)] == [result, picture]
    with contextlib.suppress(wire.Mismatch):
        assert sum(map(len, wire.unpack_pictured(memoryview(noise)))) == len(noise) - 4


def test_a_picture_makes_room_for_a_large_result() -> None:
    noise = np.random.default_rng(1).integers(0, 255, 320 * 240 * 2, np.uint8).tobytes()
    media = f"{raw.PREFIX}320;240;640"
    best = raw.to_jpeg(noise, media, wire.PICTURE_MAX)

    class Large:
        """A model whose results leave less room than the best JPEG takes."""

        def __init__(self, left: int) -> None:
            self.text = "x" * (wire.PACKET_MAX - left)
            self.seen: list[bytes] = []

        def answer(self, data: memoryview, media: str) -> Result:
            assert media == "image/jpeg"
            self.seen.append(bytes(data))
            return Result(text=self.text)

    model = Large(len(best))
    payload = worker._pictured(model.answer, memoryview(noise), media)
    packet = wire.pack_answer(1, 2, 3, wire.Kind.PICTURED, payload)
    assert len(packet) <= wire.PACKET_MAX
    (answer,) = wire.unpack_answers(memoryview(packet))
    assert [len(model.seen), model.seen[0]] == [2, best]
    assert bytes(answer.picture) == model.seen[1], "what is shown is what the model saw last"
    with pytest.raises(ModelError, match="take smaller ones"):
        worker._pictured(Large(-10).answer, memoryview(noise), media)
