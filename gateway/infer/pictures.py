"""Pictures: from JPEG or PNG bytes to an array of the size that a model wants. OpenCV, loaded at import.

Arrays are uint8 [height, width, 3]. A picture comes from outside: its size is read from its header and bounded
before anything is decoded.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from gateway.contract import Region
from gateway.errors import ModelError
from gateway.infer.steps import Array, Buffer

_PNG = b"\x89PNG\r\n\x1a\n"
_NO_SIZE = frozenset({0xC4, 0xC8, 0xCC})  # DHT, JPG, DAC: within the range of the SOF markers, but none
_HINT = "a JPEG or PNG picture is wanted; does the camera deliver whole ones?"
_REDUCED = {
    1: cv2.IMREAD_COLOR, 2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8
}  # fmt: skip
_INTERPOLATIONS = {"linear": cv2.INTER_LINEAR, "area": cv2.INTER_AREA}


class Placement(NamedTuple):
    """Where a picture lies on the model's input: fraction on the input = offset + scale * fraction of the picture."""

    x: float = 0.0
    y: float = 0.0
    width: float = 1.0
    height: float = 1.0


WHOLE = Placement()


def size(data: Buffer) -> tuple[int, int]:
    """Width and height from the header of a JPEG (ISO 10918-1, B.2.2) or PNG (11.2.2).

    Raises:
        ModelError: neither of them, or cut short.
    """
    head = bytes(data[:24])
    if head.startswith(_PNG) and len(head) == 24:
        width, height = struct.unpack_from(">II", head, 16)
        return width, height
    if not head.startswith(b"\xff\xd8"):
        raise ModelError("not a picture: neither JPEG nor PNG", hint=_HINT)
    at, end = 2, len(data)
    while at + 9 <= end and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in _NO_SIZE:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return width, height
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    raise ModelError("not a picture: a JPEG without a size", hint=_HINT)


def decode(data: Buffer, max_pixels: int, reduce: int = 1) -> Array:
    """Bytes to uint8 [height, width, 3], colours blue, green, red; turned as its EXIF orientation says.

    Args:
        reduce: 2, 4 or 8 gives the picture at that fraction of its size, which a JPEG decoder does while it decodes.

    Raises:
        ModelError: not a JPEG or PNG, damaged, or of more than `max_pixels`.
    """
    width, height = size(data)
    if not 0 < width * height <= max_pixels:
        raise ModelError(
            f"a picture of {width} x {height} pixels; the model takes up to {max_pixels}",
            hint="set the camera to a lower resolution",
        )
    # a decoder fills up what is missing with grey: a frame cut short would be looked at as if it were whole
    if (b"IEND" if data[0] == _PNG[0] else b"\xff\xd9") not in bytes(data[-4096:]):
        raise ModelError("a picture that is cut short", hint=_HINT)
    try:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), _REDUCED[reduce])
    except cv2.error as error:
        raise ModelError(f"cannot decode a picture: {error.err}", hint=_HINT) from error
    if picture is None:
        raise ModelError("cannot decode a picture: its data is damaged", hint=_HINT)
    return np.asarray(picture)


def reduction(data: Buffer, regions: Sequence[Region], width: int, height: int) -> int:
    """How far a picture may be reduced while it is decoded, so that every region still fills width x height.

    1 without regions, and for what is no JPEG: nothing would be saved.
    """
    if not regions or bytes(data[:2]) != b"\xff\xd8":
        return 1
    sides = size(data)
    enough = 8.0
    for x0, y0, x1, y1 in regions:
        # an EXIF orientation may turn the picture: both ways must be enough
        for wide, high in (sides, sides[::-1]):
            enough = min(enough, wide * (x1 - x0) / width, high * (y1 - y0) / height)
    return next(k for k in (8, 4, 2, 1) if k <= max(enough, 1))


def pixels(picture: Array, region: Region) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of a region, widened to whole pixels; the ends are not included."""
    rows, columns = picture.shape[:2]
    left, top = min(int(region[0] * columns), columns - 1), min(int(region[1] * rows), rows - 1)
    return left, top, min(columns, math.ceil(region[2] * columns)), min(rows, math.ceil(region[3] * rows))


def crop(picture: Array, at: tuple[int, int, int, int]) -> Array:
    """A part of a picture, not copied."""
    return picture[at[1] : at[3], at[0] : at[2]]


def stretch(picture: Array, width: int, height: int, interpolation: str = "linear") -> Array:
    """To width x height, ignoring the aspect ratio."""
    if picture.shape[:2] == (height, width):
        return picture
    return np.asarray(cv2.resize(picture, (width, height), interpolation=_INTERPOLATIONS[interpolation]))


def letterbox(
    picture: Array, width: int, height: int, fill: int, interpolation: str = "linear", align: str = "centre"
) -> tuple[Array, Placement]:
    """To width x height with its aspect ratio kept, the rest filled with the grey `fill`.

    Args:
        align: `centre`, or `start` for the top left.
    """
    rows, columns = picture.shape[:2]
    scale = min(width / columns, height / rows)
    inner_width = max(1, round(columns * scale))
    inner_height = max(1, round(rows * scale))
    left, top = ((width - inner_width) // 2, (height - inner_height) // 2) if align == "centre" else (0, 0)
    out = np.full((height, width, 3), fill, np.uint8)
    out[top : top + inner_height, left : left + inner_width] = stretch(
        picture, inner_width, inner_height, interpolation
    )
    return out, Placement(left / width, top / height, inner_width / width, inner_height / height)


def middle(picture: Array, at: Placement, width: int, height: int, fill: int) -> tuple[Array, Placement]:
    """What was fitted to a smaller input, in the middle of one of width x height; the rest is the grey `fill`.

    Args:
        at: where the picture lies on the smaller one.
    """
    rows, columns = picture.shape[:2]
    left, top = (width - columns) // 2, (height - rows) // 2
    out = np.full((height, width, 3), fill, np.uint8)
    out[top : top + rows, left : left + columns] = picture
    return out, Placement(
        (left + at.x * columns) / width,
        (top + at.y * rows) / height,
        at.width * columns / width,
        at.height * rows / height,
    )


def swap_colours(picture: Array) -> Array:
    """Blue, green, red to red, green, blue, or back."""
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))


def set_threads(n: int) -> None:
    """How many threads OpenCV may use; 1 means none beside the caller's."""
    cv2.setNumThreads(n if n > 1 else 0)


def thumbnail(data: Buffer, longest: int, quality: int, max_pixels: int) -> bytes:
    """A JPEG of which no side is longer than `longest` pixels; a small picture is not made larger.

    Raises:
        ModelError: as `decode`.
    """
    picture = decode(data, max_pixels)
    rows, columns = picture.shape[:2]
    scale = min(1.0, longest / max(rows, columns))
    small = stretch(picture, max(1, round(columns * scale)), max(1, round(rows * scale)), "area")
    done, encoded = cv2.imencode(".jpg", small, (cv2.IMWRITE_JPEG_QUALITY, quality))
    if not done:
        raise ModelError("cannot encode a thumbnail", hint=_HINT)
    return bytes(encoded)
