"""Pictures on their way: blocks of a file, each saying which file it is of, and the receiver's word on how far it is.

A block is published at `<prefix>/<gateway>/pic/<name>/<number>`; its payload is, little-endian::

    "OP" | version u8 = 2 | SHA-256 of the whole file (32 bytes) | size of the file u32 | the bytes of this block

Every block but the last holds `BLOCK` bytes. The receiver retains a `PictureAck` (JSON) at `<prefix>/<gateway>/picack`.
"""

from __future__ import annotations

import re
import struct

import msgspec

from gateway.contract import TOPIC_ROOT

BLOCK = 16 << 10  # fits the smallest limit that is common, 20 kB
MAX_PICTURE = 8 << 20  # a camera's JPEG has 0.05 to 3 MiB
MAGIC = b"OP\x02"
_HEAD = struct.Struct("<3s32sI")
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,127}\.(jpg|png)")  # also a safe file name


class PictureAck(msgspec.Struct, frozen=True):
    """What the receiver has of the picture it was sent last.

    Attributes:
        name, sha256: which one (hex).
        next: the first block that it lacks; the number of blocks when it has all.
        done: the whole file has this digest and is on disk.
        refused: all blocks were there, and the digest was another: from the start.
    """

    name: str
    sha256: str
    next: int
    done: bool = False
    refused: bool = False


decode_ack = msgspec.json.Decoder(PictureAck).decode


class Block(msgspec.Struct, frozen=True):
    """One block; `sha256` and `size` are the whole file's."""

    name: str
    number: int
    sha256: bytes
    size: int
    data: bytes

    def to_payload(self) -> bytes:
        return _HEAD.pack(MAGIC, self.sha256, self.size) + self.data


def count(size: int) -> int:
    """How many blocks a file of `size` bytes makes."""
    return -(-size // BLOCK)


def topic_block(gateway: str, name: str, number: int, prefix: str = TOPIC_ROOT) -> str:
    return f"{prefix}/{gateway}/pic/{name}/{number}"


def topic_picture_ack(gateway: str, prefix: str = TOPIC_ROOT) -> str:
    """Where the receiver retains what it has."""
    return f"{prefix}/{gateway}/picack"


def parse(name: str, number: str, payload: bytes) -> Block:
    """A block from the last two levels of its topic and its payload.

    Raises:
        ValueError: it is none; says why.
    """
    if not NAME.fullmatch(name):
        raise ValueError(f"not a picture's name: {name[:80]!r}")
    if not (number.isascii() and number.isdigit() and len(number) <= 4):
        raise ValueError(f"not a block's number: {number[:80]!r}")
    if len(payload) < _HEAD.size:
        raise ValueError(f"{name}: {len(payload)} bytes are no block")
    magic, sha256, size = _HEAD.unpack_from(payload)
    if magic != MAGIC:
        raise ValueError(f"{name}: not a block, or of a newer version")
    if not 0 < size <= MAX_PICTURE:
        raise ValueError(f"{name}: a picture of {size} bytes")
    k, data = int(number), payload[_HEAD.size :]
    if k >= count(size) or len(data) != min(BLOCK, size - k * BLOCK):
        raise ValueError(f"{name}: block {k} with {len(data)} bytes does not fit {size} bytes")
    return Block(name, k, sha256, size, data)
