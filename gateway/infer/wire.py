"""What the engine and its worker say to each other: packets of a SOCK_SEQPACKET pair, sans-I/O.

A packet of the engine holds one or more jobs, one of the worker one or more answers, each answer with its own job's
number. A job is a header, its media text and, when small, its bytes; larger bytes lie in a slot of the shared memory.
An answer is a header and a payload in MessagePack. Each packet is whole: the kernel keeps the boundaries.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

import msgspec

from gateway.infer.candidate import Candidate
from gateway.infer.manifest import Limits

INLINE_MAX = 32 << 10  # larger inputs go through shared memory
PACKET_MAX = 128 << 10
PICTURE_MAX = 112 << 10  # of a JPEG in an answer; what is left is for the result
NO_SLOT = 255
CHECK = "check"  # instead of a media type: reproduce the golden samples

_JOB = struct.Struct("<IIHBB")  # job number, bytes of data, bytes of media, tenant, slot
_LENGTH = struct.Struct("<I")
_ANSWER = struct.Struct("<IIHBI")  # job number, microseconds in the worker, resident MiB, kind, bytes of payload


class Tenant(msgspec.Struct, frozen=True, kw_only=True):
    """One model of a worker."""

    name: str
    bundle: str
    candidates: tuple[Candidate, ...]  # the first that loads and is right serves; empty takes the bundle's own order
    backend: str  # for that order: see candidate.defaults
    threads: int
    keys: tuple[str, ...]
    allow_unsigned: bool


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """The worker's command line argument, as JSON."""

    tenants: tuple[Tenant, ...]
    nice: int
    gentle: bool  # nice from the start: nobody waits for this worker
    recheck_s: float  # of work between two looks at the golden samples
    parent: int  # the process id that must live
    socket: int  # descriptors
    memory: int
    slot_bytes: int


class Fault(msgspec.Struct, frozen=True, tag=True):
    """An error with its name and hint."""

    what: str
    hint: str = ""
    tenant: int = 0

    def __str__(self) -> str:
        return f"{self.what} ({self.hint})" if self.hint else self.what


class Loaded(msgspec.Struct, frozen=True, tag=True):
    """A model that is loaded, verified, right on the golden samples."""

    candidate: Candidate
    backend: str  # its runner's description: what really computes
    digest: str
    signed_by: str
    limits: Limits
    rejected: tuple[tuple[Candidate, str], ...] = ()  # who was preferred, and why it was not taken


class Trying(msgspec.Struct, frozen=True):
    """About to load a candidate: if the worker dies now, this one did it."""

    tenant: int
    order: tuple[Candidate, ...]
    at: int  # in the order


class Ready(msgspec.Struct, frozen=True):
    """Everything that can be loaded is; by tenant."""

    pid: int
    tenants: tuple[Loaded | Fault, ...]


class Kind(IntEnum):
    READY = 1  # payload: Ready; the worker ends when there is nothing but faults in it
    TRYING = 2  # payload: Trying; before READY
    RESULT = 3  # payload: Result
    REFUSED = 4  # payload: Fault; this input is not usable, the worker goes on
    FAILED = 5  # payload: Fault; the runtime or its device failed or is wrong (job 0: seen after its answer)
    PICTURED = 6  # payload: u32 bytes of the Result, Result, the JPEG that was made of an uncompressed picture


_KINDS = {int(kind): kind for kind in Kind}  # an enum's own look-up takes a microsecond


class Job(NamedTuple):
    number: int
    tenant: int
    media: str
    slot: int  # NO_SLOT: the data is inline
    size: int
    inline: memoryview


class Answer(NamedTuple):
    number: int
    took_us: int
    rss_mib: int
    kind: Kind
    payload: memoryview  # of PICTURED the Result alone
    picture: memoryview = memoryview(b"")


class Mismatch(ValueError):
    """A packet that this version does not send."""


def pack_job(number: int, tenant: int, media: bytes, slot: int, size: int) -> bytes:
    """The header of a job; media and inline data follow it in the same packet."""
    return _JOB.pack(number & 0xFFFFFFFF, size, len(media), tenant, slot)


def unpack_jobs(packet: memoryview) -> list[Job]:
    """Raises `Mismatch`."""
    jobs: list[Job] = []
    at = 0
    while at < len(packet) or not jobs:
        if len(packet) - at < _JOB.size:
            raise Mismatch(f"a job of {len(packet) - at} bytes")
        number, size, n_media, tenant, slot = _JOB.unpack_from(packet, at)
        start = at + _JOB.size + n_media
        end = start + (size if slot == NO_SLOT else 0)
        if end > len(packet):
            raise Mismatch(f"a job of {len(packet) - at} bytes that says {size}")
        try:
            media = str(packet[start - n_media : start], "ascii")
        except UnicodeDecodeError as error:
            raise Mismatch("a media text that is not ASCII") from error
        jobs.append(Job(number, tenant, media, slot, size, packet[start:end]))
        at = end
    return jobs


def pack_answer(number: int, took_us: int, rss_mib: int, kind: Kind, payload: bytes) -> bytes:
    """One answer; a packet is one or more of them."""
    return _ANSWER.pack(number, min(took_us, 0xFFFFFFFF), min(rss_mib, 0xFFFF), kind, len(payload)) + payload


def room_for_picture(result: bytes) -> int:
    """Bytes of a JPEG that may go with this result; 0 or less when none may."""
    return PACKET_MAX - _ANSWER.size - _LENGTH.size - len(result)


def pack_pictured(result: bytes, picture: bytes) -> bytes:
    """The payload of PICTURED."""
    return _LENGTH.pack(len(result)) + result + picture


def unpack_pictured(payload: memoryview) -> tuple[memoryview, memoryview]:
    """Result and picture. Raises `Mismatch`."""
    if len(payload) < _LENGTH.size:
        raise Mismatch(f"a result with a picture of {len(payload)} bytes")
    end = _LENGTH.size + int(_LENGTH.unpack_from(payload)[0])
    if end > len(payload):
        raise Mismatch(f"a result with a picture of {len(payload)} bytes that says {end}")
    return payload[_LENGTH.size : end], payload[end:]


def unpack_answers(packet: memoryview) -> list[Answer]:
    """Raises `Mismatch`. The payloads are views of the packet."""
    answers: list[Answer] = []
    at = 0
    while at < len(packet) or not answers:
        if len(packet) - at < _ANSWER.size:
            raise Mismatch(f"an answer of {len(packet) - at} bytes")
        number, took_us, rss_mib, code, size = _ANSWER.unpack_from(packet, at)
        start = at + _ANSWER.size
        kind = _KINDS.get(code)
        if kind is None:
            raise Mismatch(f"an answer of kind {code}")
        if start + size > len(packet):
            raise Mismatch(f"an answer of {len(packet) - start} bytes that says {size}")
        at = start + size
        parts = unpack_pictured(packet[start:at]) if kind is Kind.PICTURED else (packet[start:at],)
        answers.append(Answer(number, took_us, rss_mib, kind, *parts))
    return answers
