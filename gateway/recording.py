"""The file of a recording, `.octorec`, version 1: what passed between the ports and the parsers, with its times.

Little-endian::

    file    "OCTOREC" version u8 = 1 | block ...
    block   "OBLK" | raw length u32 | packed length u32 | CRC-32 of the packed bytes and both lengths u32
            | packed: one Zstandard frame, which holds whole records
    record  kind u8 | source u16 | monotonic ns u64 | length u32 | body

The first record is META (JSON); `source` counts from 0 in its list. Bodies:

    OPENED  the device (UTF-8)                        GONE   why (UTF-8)
    REFUSED {"what", "hint"}: a port could not be opened
    HEARD   age u64: ns since the oldest of the bytes may have come | the bytes, as one read handed them to the parser
    SAID    the bytes that were written to the port
    FRAME   head length u16 | head (JSON: seq, stamp, media) | the picture's file
    EVENT   {"name", "state", "severity", "message", "detail"} of a source without a port
    LOST    records u64 | bytes u64 that found no room before this one
    END     nothing: the recording was ended in good order

A block is on disk as a whole or not at all; a file that was cut off reads up to its last whole block.
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import msgspec
import zstandard

from gateway.contract import Stamp
from gateway.errors import StoreError

MAGIC = b"OCTOREC\x01"
META, OPENED, REFUSED, HEARD, SAID, GONE, FRAME, EVENT, LOST, END = range(10)
MAX_BODY = 17 << 20  # a picture has at most 16 MiB
MAX_BLOCK = MAX_BODY + (1 << 20)
MAX_SOURCES = 1024
MAX_SPAN_NS = 31 * 86_400 * 10**9  # of one recording
MEDIA = ("image/jpeg", "image/png")
_MAX_NS = 1 << 62
_BOOT = re.compile(r"[0-9A-Za-z-]{1,64}")  # becomes part of file names
AGE = struct.Struct("<Q")
LOSS = struct.Struct("<QQ")
_SYNC = b"OBLK"
_BLOCK = struct.Struct("<4sIII")
_LENGTHS = struct.Struct("<II")
_HEAD = struct.Struct("<BHQI")
HEAD_SIZE = _HEAD.size
_FRAME = struct.Struct("<H")


class RecordingError(StoreError):
    """A recording cannot be read or written."""


class Record(msgspec.Struct, frozen=True, gc=False):
    """One thing that happened to a source; see the module."""

    kind: int
    source: int
    mono_ns: int
    body: bytes = b""


class Recorded(msgspec.Struct, frozen=True):
    """A source of a recording: its name and the kind of its table."""

    name: str
    kind: str


class Meta(msgspec.Struct, frozen=True):
    """What was recorded, where, and how its clock stood.

    Attributes:
        boot, mono_ns: when it began.
        wall_offset_ns, wall_error_ns: UTC minus monotonic time then, and how wrong that may be; None while not known.
    """

    octogate: str
    gateway: str
    boot: str
    mono_ns: int
    wall_offset_ns: int | None
    wall_error_ns: int
    sources: tuple[Recorded, ...]


class Refusal(msgspec.Struct, frozen=True):
    what: str
    hint: str = ""


class FrameHead(msgspec.Struct, frozen=True):
    seq: int
    stamp: Stamp
    media: str


class Told(msgspec.Struct, frozen=True):
    """An event of a source without a port."""

    name: str
    state: str
    severity: str
    message: str
    detail: dict[str, Any] = {}


def frame_body(head: FrameHead, data: bytes) -> bytes:
    packed = msgspec.json.encode(head)
    return _FRAME.pack(len(packed)) + packed + data


def parse_frame(body: bytes) -> tuple[FrameHead, bytes]:
    """RecordingError when it is none."""
    try:
        (length,) = _FRAME.unpack_from(body)
        at = _FRAME.size + length
        if at > len(body):
            raise RecordingError("a frame that is cut off")
        head = msgspec.json.decode(body[_FRAME.size : at], type=FrameHead)
    except (struct.error, msgspec.DecodeError) as error:
        raise RecordingError(f"not a frame: {error}") from error
    if head.media not in MEDIA:
        raise RecordingError(f"a frame of {head.media!r}: no kind of picture that is known here")
    return head, body[at:]


# --- writing --------------------------------------------------------------------------------------------------------


def pack_block(records: Iterable[Record]) -> bytes:
    """Records as one block; together at most MAX_BLOCK bytes."""
    raw = b"".join(_HEAD.pack(r.kind, r.source, r.mono_ns, len(r.body)) + r.body for r in records)
    packed = zstandard.ZstdCompressor(level=1).compress(raw)
    lengths = _LENGTHS.pack(len(raw), len(packed))
    return _BLOCK.pack(_SYNC, len(raw), len(packed), zlib.crc32(packed, zlib.crc32(lengths))) + packed


def meta_record(meta: Meta) -> Record:
    return Record(META, 0, meta.mono_ns, msgspec.json.encode(meta))


# --- reading --------------------------------------------------------------------------------------------------------


class Reading:
    """A recording opened for reading, one block in memory at a time.

    Attributes:
        meta: what it holds.
        meta_bytes: the same as it stands in the file.
        ended, end_ns: END was read, so that nothing is missing at its end; and its time.
        unread: bytes at its end that are no whole block; known when `records` is through.

    Raises:
        RecordingError: there is no such file, it is no recording, or its beginning is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.ended, self.end_ns = False, 0
        self.unread = 0
        try:
            self._file: IO[bytes] = path.open("rb")
        except OSError as error:
            raise RecordingError(f"{path}: cannot read it: {error.strerror}", hint="name a .octorec file") from error
        with contextlib.ExitStack() as failed:
            failed.callback(self._file.close)
            self._size = os.fstat(self._file.fileno()).st_size
            magic = self._file.read(len(MAGIC))
            if magic != MAGIC:
                other = magic[:7] == MAGIC[:7] and len(magic) == 8
                what = f"a recording of version {magic[7]}, this is Octogate for version 1" if other else "no recording"
                raise RecordingError(f"{path}: {what}", hint="update Octogate" if other else "name a .octorec file")
            self._first = self._block()
            self.meta, self.meta_bytes = self._meta()
            failed.pop_all()

    def __enter__(self) -> Reading:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def records(self) -> Iterator[Record]:
        """All but META, in order, up to the first block that is not whole; once.

        Raises:
            RecordingError: a record is of another time than the recording.
        """
        block, known = self._first[1:], len(self.meta.sources)
        begin, end = self.meta.mono_ns, self.meta.mono_ns + MAX_SPAN_NS
        while True:
            for record in block:
                if not begin <= record.mono_ns <= end:
                    away = (record.mono_ns - begin) / 1e9
                    raise RecordingError(f"{self._path}: a record {away:.0f} s from its begin")
                if record.kind == END:
                    self.ended, self.end_ns = True, record.mono_ns
                elif record.source < known:
                    yield record
            block = self._block()
            if not block:
                return

    def _meta(self) -> tuple[Meta, bytes]:
        if not self._first or self._first[0].kind != META:
            raise RecordingError(f"{self._path}: its beginning is missing or damaged")
        body = self._first[0].body
        try:
            meta = msgspec.json.decode(body, type=Meta)
        except msgspec.DecodeError as error:
            raise RecordingError(f"{self._path}: its beginning is damaged: {error}") from error
        if not (0 <= meta.mono_ns < _MAX_NS and abs(meta.wall_offset_ns or 0) < _MAX_NS and meta.wall_error_ns >= 0):
            raise RecordingError(f"{self._path}: its times make no sense")
        if not _BOOT.fullmatch(meta.boot):
            raise RecordingError(f"{self._path}: {meta.boot!r} is no boot id")
        if len(meta.sources) > MAX_SOURCES:
            raise RecordingError(f"{self._path}: {len(meta.sources)} sources, at most {MAX_SOURCES} are taken")
        return meta, body

    def _block(self) -> list[Record]:
        """The records of the next block; empty at the end and where the file is damaged."""
        at = self._file.tell()
        found = unpack_block(self._file)
        if not found:
            self.unread = self._size - at
        return found


def unpack_block(file: IO[bytes]) -> list[Record]:
    """The records of the block that begins here; empty when it is not whole or not right."""
    head = file.read(_BLOCK.size)
    if len(head) < _BLOCK.size:
        return []
    sync, raw_size, size, crc = _BLOCK.unpack(head)
    if sync != _SYNC or raw_size > MAX_BLOCK or size > MAX_BLOCK:
        return []
    packed = file.read(size)
    if len(packed) < size or zlib.crc32(packed, zlib.crc32(_LENGTHS.pack(raw_size, size))) != crc:
        return []
    try:
        if zstandard.frame_content_size(packed) != raw_size:  # also bounds what is unpacked
            return []
        raw = zstandard.ZstdDecompressor().decompress(packed)
    except zstandard.ZstdError:
        return []
    return _records(raw)


def _records(raw: bytes) -> list[Record]:
    found, at = [], 0
    while at + HEAD_SIZE <= len(raw):
        kind, source, mono_ns, length = _HEAD.unpack_from(raw, at)
        at += HEAD_SIZE
        if length > MAX_BODY or at + length > len(raw):
            return []
        found.append(Record(kind, source, mono_ns, raw[at : at + length]))
        at += length
    return found if at == len(raw) else []
