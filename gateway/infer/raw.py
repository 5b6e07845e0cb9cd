"""Uncompressed pictures of cameras without MJPEG: turned into JPEG, in the worker. OpenCV, loaded at import.

From there on they are pictures as any other: the model, the event's file and the page see the same bytes.
"""

from __future__ import annotations

import cv2
import numpy as np

from gateway.errors import ModelError
from gateway.infer.steps import Buffer

PREFIX = "image/x-yuyv;"  # then width;height;bytes a row: V4L2_PIX_FMT_YUYV
MAX_PIXELS = 64 << 20
_QUALITIES = (90, 75, 50, 25)
_HINT = "does the camera deliver whole pictures? format = 'mjpeg' asks for compressed ones"


def to_jpeg(data: Buffer, media: str, max_bytes: int) -> bytes:
    """A JPEG of at most `max_bytes`, in the best of four qualities that fits.

    Raises:
        ModelError: the bytes are not what `media` says, or too much.
    """
    try:
        width, height, stride = map(int, media.removeprefix(PREFIX).split(";"))
    except ValueError as error:
        raise ModelError(f"not the shape of a picture: {media[:60]}", hint=_HINT) from error
    if not (0 < width * height <= MAX_PIXELS and width > 1 and height > 0 and stride >= width * 2):
        raise ModelError(f"a picture of {width} x {height} pixels, {stride} bytes a row", hint=_HINT)
    if len(data) != stride * height:
        raise ModelError(f"a picture of {len(data)} bytes instead of {stride * height}", hint=_HINT)
    rows = np.frombuffer(data, np.uint8).reshape(height, stride)[:, : width // 2 * 4]
    picture = cv2.cvtColor(np.ascontiguousarray(rows).reshape(height, -1, 2), cv2.COLOR_YUV2BGR_YUY2)
    for quality in _QUALITIES:
        _, encoded = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])
        if encoded.size <= max_bytes:
            return encoded.tobytes()
    raise ModelError(
        f"a picture of {width} x {height} that takes {encoded.size} bytes as JPEG", hint="take smaller ones"
    )
