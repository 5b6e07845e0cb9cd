"""What the daemon and the child that reads a video say to each other: packets of a SOCK_SEQPACKET pair, sans-I/O.

The child writes a picture into a slot of the shared memory and names the slot; the daemon copies it out and gives the
slot back. A child without a free slot passes pictures over, so that the newest wins and nothing piles up.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

import msgspec

PACKET_MAX = 4096
SLOTS = 2
_HEAD = struct.Struct("<BBIqII")


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """The first packet, to the child, as JSON: not on its command line, since `url` may hold a password."""

    url: str
    fps: float
    transport: str
    loop: bool
    parent: int  # the process id that must live
    memory: int  # descriptor of SLOTS * slot_bytes of shared memory
    slot_bytes: int


class Kind(IntEnum):
    OPENED = 1  # text: what it is
    PICTURE = 2  # in a slot
    ALIVE = 3  # the stream goes on although no picture was wanted
    ENDED = 4  # the file is through
    FAULT = 5  # text: why there is none; the child ends
    UNUSABLE = 6  # text: why there cannot be any; the child ends


class Told(NamedTuple):
    """A packet of the child.

    Attributes:
        size: bytes of the picture in the slot.
        mono_ns: when it came.
        dropped, bad: pictures passed over for want of a slot, and broken ones, since the child began.
    """

    kind: Kind
    slot: int = 0
    size: int = 0
    mono_ns: int = 0
    dropped: int = 0
    bad: int = 0
    text: str = ""


class Mismatch(ValueError):
    """A packet that this version does not send."""


def pack(told: Told) -> bytes:
    """A whole packet."""
    head = _HEAD.pack(told.kind, told.slot, told.size, told.mono_ns, told.dropped & 0xFFFFFFFF, told.bad & 0xFFFFFFFF)
    return head + told.text.encode()[: PACKET_MAX - _HEAD.size]


def unpack(packet: bytes, slot_bytes: int) -> Told:
    """Raises `Mismatch`: also for a slot that there is not, or a picture larger than it."""
    if len(packet) < _HEAD.size:
        raise Mismatch(f"a packet of {len(packet)} bytes")
    kind, slot, size, mono_ns, dropped, bad = _HEAD.unpack_from(packet)
    try:
        known = Kind(kind)
    except ValueError as error:
        raise Mismatch(f"a packet of kind {kind}") from error
    if slot >= SLOTS or size > slot_bytes:
        raise Mismatch(f"a picture of {size} bytes in slot {slot}")
    return Told(known, slot, size, mono_ns, dropped, bad, packet[_HEAD.size :].decode(errors="replace"))
