"""Frames of the node link: `00 COBS(version type seq16 ticks32 payload crc32) 00`, little-endian (docs/link.md).

`Deframer` turns chunks of bytes, cut anywhere, into checked frames. What is not a frame is text (a print or a
traceback between frames), which is kept as lines, or garbage, which is counted.
"""

from __future__ import annotations

import enum
import struct
from collections import deque
from zlib import crc32

from cobs import cobs

VERSION = 1
MAX_ENCODED = 4096  # bytes between two zeros; more is garbage
HEADER = struct.Struct("<BBHI")  # version, type, seq, ticks
MIN_FRAME = HEADER.size + 4  # header and crc
MAX_FRAME = MAX_ENCODED - (MAX_ENCODED + 254) // 255  # decoded, so that it never encodes to more
MAX_PAYLOAD = MAX_FRAME - MIN_FRAME

# crc32 over a message followed by its own crc32 is this constant: one call checks, nothing is sliced
_RESIDUE = 0x2144DF1C
_CRC = struct.Struct("<I")
_LINES_KEPT = 64
_LINE_MAX = 240
_TEXT_MIN = 8  # in a piece that holds other bytes too, shorter runs are taken for chance


class Type(enum.IntEnum):
    """The type byte of a frame, node to host."""

    HELLO = 1
    DATA = 2
    BLOB = 3
    PONG = 4
    RESUME = 5
    LOG = 6
    REPLY = 7


def encode(kind: int, seq: int, ticks: int, payload: bytes) -> bytes:
    """One frame as it goes over the wire, both zeros included; seq and ticks are wrapped here.

    Raises:
        ValueError: the payload is longer than MAX_PAYLOAD.
    """
    if len(payload) > MAX_PAYLOAD:
        raise ValueError(f"a payload of {len(payload)} bytes; a frame takes {MAX_PAYLOAD}")
    raw = HEADER.pack(VERSION, kind, seq & 0xFFFF, ticks & 0xFFFFFFFF) + payload
    stuffed: bytes = cobs.encode(raw + _CRC.pack(crc32(raw)))
    return b"\0" + stuffed + b"\0"


class Deframer:
    """Cuts a byte stream into frames.

    Attributes:
        bad: pieces that were neither a frame nor text.
        lines: the newest lines of text that came between frames.
        said: how many of them there were in all.
    """

    def __init__(self) -> None:
        self.bad = self.said = 0
        self.lines: deque[str] = deque(maxlen=_LINES_KEPT)
        self._tail = b""
        self._overlong = False  # the tail was already refused; skip to the next zero

    def feed(self, chunk: bytes) -> list[bytes]:
        """The frames that `chunk` completes, decoded and checked, header and crc included."""
        pieces = (self._tail + chunk).split(b"\0")
        tail = pieces.pop()
        if self._overlong and pieces:
            self._overlong = False
            del pieces[0]
        if len(tail) > MAX_ENCODED:
            if not self._overlong:
                self._noise(tail)
            self._overlong, tail = True, b""
        self._tail = b"" if self._overlong else tail
        if not pieces:
            return []
        try:  # the whole chunk in C; anything odd in it is found again one by one
            frames = list(map(cobs.decode, filter(None, pieces)))
        except cobs.DecodeError:
            return self._one_by_one(pieces)
        if not frames:
            return frames
        lengths = list(map(len, frames))
        if (
            list(map(crc32, frames)).count(_RESIDUE) == len(frames)
            and min(lengths) >= MIN_FRAME
            and max(lengths) <= MAX_FRAME
        ):
            return frames
        return self._one_by_one(pieces)

    def rest(self) -> str:
        """Text after the last zero, such as the traceback of a node that has stopped; empty if there is none."""
        text = _printable(self._tail)
        return text.strip() if text else ""

    def clear(self) -> None:
        """Forget the unfinished piece: the line was cut."""
        self._tail = b""
        self._overlong = False

    def _one_by_one(self, pieces: list[bytes]) -> list[bytes]:
        frames = []
        for piece in filter(None, pieces):
            try:
                frame = cobs.decode(piece)
            except cobs.DecodeError:
                self._noise(piece)
                continue
            if crc32(frame) == _RESIDUE and MIN_FRAME <= len(frame) <= MAX_FRAME:
                frames.append(frame)
            else:
                self._noise(piece)
        return frames

    def _noise(self, piece: bytes) -> None:
        piece = piece[:MAX_ENCODED]  # so that it does not matter where the chunks were cut
        whole = _printable(piece)
        if whole is None:
            self.bad += 1
        for line in piece.split(b"\n"):
            text = _printable(line)
            if text and (text := text.strip()) and (whole is not None or len(text) >= _TEXT_MIN):
                self.lines.append(text[:_LINE_MAX])
                self.said += 1


def _printable(piece: bytes) -> str | None:
    """The text of `piece`, or None when it holds anything that is not."""
    try:
        text = piece.decode()
    except UnicodeDecodeError:
        return None
    return text if all(c.isprintable() or c.isspace() for c in text) else None
