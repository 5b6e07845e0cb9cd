"""What the engine and its worker say to each other: packets of a SOCK_SEQPACKET pair, sans-I/O.

A job is a header, its media text and, when small, its bytes; larger bytes lie in a slot of the shared memory. An
answer is a header and a payload in MessagePack. Each packet is whole: the kernel keeps the boundaries.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

import msgspec

INLINE_MAX = 32 << 10  # larger inputs go through shared memory
PACKET_MAX = 128 << 10
PICTURE_MAX = 112 << 10  # of a JPEG in an answer
NO_SLOT = 255

_JOB = struct.Struct("<IIHB")  # job number, bytes of data, bytes of media, slot
_LENGTH = struct.Struct("<I")
_ANSWER = struct.Struct("<IIB")  # job number, microseconds in the worker, kind


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """The worker's command line argument, as JSON."""

    name: str
    bundle: str
    backend: str
    threads: int
    nice: int
    keys: tuple[str, ...]
    allow_unsigned: bool
    parent: int  # the process id that must live
    socket: int  # descriptors
    memory: int
    slot_bytes: int


class Ready(msgspec.Struct, frozen=True):
    """The worker's first answer: loaded, verified, right on the golden samples."""

    pid: int
    backend: str
    digest: str
    signed_by: str
    rejected: tuple[str, ...] = ()  # the variants that were preferred and why they were not taken


class Fault(msgspec.Struct, frozen=True):
    """An error with its name and hint."""

    what: str
    hint: str = ""


class Kind(IntEnum):
    READY = 1  # payload: Ready
    UNUSABLE = 2  # payload: Fault; the bundle or every runtime is, and the worker ends
    RESULT = 3  # payload: Result
    REFUSED = 4  # payload: Fault; this input is not usable, the worker goes on
    PICTURED = 5  # payload: u32 bytes of the Result, Result, the JPEG that was made of an uncompressed picture


_KINDS = {int(kind): kind for kind in Kind}  # an enum's own look-up takes a microsecond


class Job(NamedTuple):
    number: int
    media: str
    slot: int  # NO_SLOT: the data is inline
    size: int
    inline: memoryview


class Answer(NamedTuple):
    number: int
    took_us: int
    kind: Kind
    payload: bytes


class Mismatch(ValueError):
    """A packet that this version does not send."""


def pack_job(number: int, media: bytes, slot: int, size: int) -> bytes:
    """The header of a job; media and inline data follow it in the same packet."""
    return _JOB.pack(number & 0xFFFFFFFF, size, len(media), slot)


def unpack_job(packet: memoryview) -> Job:
    """Raises `Mismatch`."""
    if len(packet) < _JOB.size:
        raise Mismatch(f"a job of {len(packet)} bytes")
    number, size, n_media, slot = _JOB.unpack_from(packet)
    data = packet[_JOB.size + n_media :]
    inline_size = size if slot == NO_SLOT else 0
    if len(packet) < _JOB.size + n_media or len(data) != inline_size:
        raise Mismatch(f"a job of {len(packet)} bytes that says {size}")
    try:
        media = str(packet[_JOB.size : _JOB.size + n_media], "ascii")
    except UnicodeDecodeError as error:
        raise Mismatch("a media text that is not ASCII") from error
    return Job(number, media, slot, size, data)


def pack_answer(number: int, took_us: int, kind: Kind, payload: bytes) -> bytes:
    """A whole packet."""
    return _ANSWER.pack(number, min(took_us, 0xFFFFFFFF), kind) + payload


def pack_pictured(result: bytes, picture: bytes) -> bytes:
    """The payload of PICTURED."""
    return _LENGTH.pack(len(result)) + result + picture


def unpack_pictured(payload: bytes) -> tuple[bytes, bytes]:
    """Result and picture; whatever the payload is."""
    if len(payload) < _LENGTH.size:
        return payload, b""
    end = _LENGTH.size + _LENGTH.unpack_from(payload)[0]
    return payload[_LENGTH.size : end], payload[end:]


def unpack_answer(packet: bytes | memoryview) -> Answer:
    """Raises `Mismatch`."""
    if len(packet) < _ANSWER.size:
        raise Mismatch(f"an answer of {len(packet)} bytes")
    number, took_us, code = _ANSWER.unpack_from(packet)
    kind = _KINDS.get(code)
    if kind is None:
        raise Mismatch(f"an answer of kind {code}")
    return Answer(number, took_us, kind, bytes(packet[_ANSWER.size :]))
