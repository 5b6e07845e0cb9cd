"""The batch codec: a run of readings, inferences or events as one compressed blob.

Layout, little-endian::

    "OB" | version u8 = 1 | header length u16 | header (MessagePack array, see Header) | body (one Zstandard frame)

The body of a samples batch holds, after the number of time segments (u32), byte planes (all first bytes, then all
second bytes, ...; the "shuffle" filter of HDF5 and Blosc) of: the segments' first times as differences (i64, ns), their
steps (i64, ns), their counts (u16) and the packed records. Slowly changing numbers share their high bytes, so the
planes compress well, and no type needs code of its own. The body of inferences and events is JSON lines. A gap has the
same key as any batch and stands for `n` readings or rows from `seq_first` on that the spool has no more; its body is
one JSON object (see Gap), whatever `n` is. Several gaps may follow each other, and one that was sent may be sent again
with a greater `n`: a receiver takes what lies beyond what it has, as with any batch.
"""

from __future__ import annotations

import operator
import struct
from array import array
from collections.abc import Iterator, Sequence
from itertools import accumulate

import msgspec
import zstandard

from gateway.contract import BatchKind, Sample, Schema
from gateway.errors import StoreError

MAGIC = b"OB\x01"
MAX_BODY = 64 << 20
MAX_READINGS = 1 << 20
MAX_WAS = 4  # rebuilt spools in a row that a batch remembers
_LENGTH = struct.Struct("<H")
_SEGMENTS = struct.Struct("<I")
_LEVEL = 3


class Header(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a reader must know before it unpacks.

    Attributes:
        epoch: 16 random bytes, made with the spool; with stream, seq_first and n the key of the batch.
        spec: the schema's compact text for samples, empty else.
        boot: the boot id that the monotonic times belong to.
        wall_offset_ns: UTC minus monotonic time at commit, None while the wall clock is not known.
        wall_error_ns: how wrong that offset may be.
        was: of a batch that was saved from a damaged spool: epoch and seq_first that it had there, newest first. A
            receiver that has these numbers of that epoch has this batch (sdk/ingest/rebuilt.py).
    """

    epoch: bytes
    stream: str
    seq_first: int
    n: int
    kind: BatchKind
    spec: str
    boot: str
    wall_offset_ns: int | None
    wall_error_ns: int
    was: tuple[tuple[bytes, int], ...] = ()


class Gap(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why readings or rows of a stream are no more.

    Attributes:
        why: `full` (the drop policy made room), `damaged` (the file was), `age` or `bytes` (a limit of its own),
            `packet` (a single reading or row is larger than what the broker takes).
        kind: what they were.
        boot, mono_ns: when they were deleted; with the header's offset that is a time of day.
    """

    why: str
    kind: BatchKind
    boot: str
    mono_ns: int


_pack_gap, _unpack_gap = msgspec.json.Encoder().encode, msgspec.json.Decoder(Gap).decode
_pack_header = msgspec.msgpack.Encoder().encode
_unpack_header = msgspec.msgpack.Decoder(Header).decode


class Codec:
    """One compressor and one decompressor, to be used by one thread."""

    def __init__(self) -> None:
        self._compress = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compress
        self._decompress = zstandard.ZstdDecompressor().decompress

    def encode_samples(self, header: Header, samples: Sequence[Sample]) -> bytes:
        """Encode samples of one stream and schema, in order; `header.n` must be their sum."""
        run = samples[0] if len(samples) == 1 else joined(samples)
        differences = array("q", run.firsts[:1])
        differences.extend(map(operator.sub, run.firsts[1:], run.firsts))
        body = b"".join(
            (
                _SEGMENTS.pack(len(run.firsts)),
                _planes(differences.tobytes(), 8),
                _planes(run.steps.tobytes(), 8),
                _planes(run.counts.tobytes(), 2),
                _planes(run.data, run.schema.record_size),
            )
        )
        return self._blob(header, body)

    def encode_rows(self, header: Header, rows: Sequence[bytes]) -> bytes:
        """Encode JSON texts, one a row."""
        return self._blob(header, b"\n".join(rows))

    def encode_gap(self, header: Header, gap: Gap) -> bytes:
        """Encode that `header.n` readings or rows are no more."""
        return self._blob(header, _pack_gap(gap))

    def _blob(self, header: Header, body: bytes) -> bytes:
        head = _pack_header(header)
        return b"".join((MAGIC, _LENGTH.pack(len(head)), head, self._compress(body)))

    def decode_samples(self, blob: bytes) -> tuple[Header, Sample]:
        """The inverse of `encode_samples`; StoreError for a blob that is not a whole samples batch."""
        header, body = self._open(blob)
        try:
            schema = Schema.parse(header.spec)
            (segments,) = _SEGMENTS.unpack_from(body)
            at = _SEGMENTS.size
            parts = []
            for size, count in ((8, segments), (8, segments), (2, segments), (schema.record_size, header.n)):
                parts.append(_rows(body[at : at + size * count], size, count))
                at += size * count
        except (ValueError, struct.error) as error:
            raise StoreError(f"batch of {header.stream!r} at {header.seq_first} is damaged: {error}") from error
        differences, steps, counts = array("q", parts[0]), array("q", parts[1]), array("H", parts[2])
        if at != len(body) or sum(counts) != header.n:
            raise StoreError(f"batch of {header.stream!r} at {header.seq_first} is damaged: counts differ")
        firsts = array("q", accumulate(differences))
        return header, Sample(header.stream, schema, firsts, steps, counts, parts[3])

    def decode_rows(self, blob: bytes) -> tuple[Header, list[bytes]]:
        """The JSON texts of a batch of inferences or events."""
        header, body = self._open(blob)
        rows = body.split(b"\n")
        if len(rows) != header.n:
            raise StoreError(f"batch of {header.stream!r} at {header.seq_first} is damaged: counts differ")
        return header, rows

    def decode_gap(self, blob: bytes) -> tuple[Header, Gap]:
        """The inverse of `encode_gap`."""
        header, body = self._open(blob)
        try:
            return header, _unpack_gap(body)
        except msgspec.DecodeError as error:
            raise StoreError(f"gap of {header.stream!r} at {header.seq_first} is damaged: {error}") from error

    def check(self, blob: bytes) -> Header:
        """The header of a whole blob: its checksum is right. StoreError for a damaged one."""
        return self._open(blob)[0]

    def _open(self, blob: bytes) -> tuple[Header, bytes]:
        header, at = read_header(blob)
        try:
            size = zstandard.frame_content_size(blob[at : at + 18])
            if not 0 <= size <= MAX_BODY:
                raise StoreError(f"batch of {header.stream!r} at {header.seq_first}: size {size} out of bounds")
            return header, self._decompress(blob[at:], max_output_size=MAX_BODY)
        except zstandard.ZstdError as error:
            raise StoreError(f"batch of {header.stream!r} at {header.seq_first} is damaged: {error}") from error


def read_header(blob: bytes) -> tuple[Header, int]:
    """The header of a blob and where its body starts; StoreError when it is not a batch of ours."""
    try:
        if blob[:3] != MAGIC:
            raise ValueError("no batch, or of a newer version")
        (length,) = _LENGTH.unpack_from(blob, 3)
        header = _unpack_header(blob[5 : 5 + length])
        if not (0 < header.n <= MAX_READINGS and header.seq_first >= 0 and len(header.epoch) == 16):
            raise ValueError("numbers out of bounds")
        if len(header.was) > MAX_WAS or any(len(epoch) != 16 or first < 0 for epoch, first in header.was):
            raise ValueError("what it was is out of bounds")
    except (ValueError, struct.error) as error:  # msgspec's errors are ValueErrors
        raise StoreError(f"not a batch: {error}") from error
    return header, 5 + length


def with_header(blob: bytes, header: Header) -> bytes:
    """The same body under another header."""
    _, at = read_header(blob)
    head = _pack_header(header)
    return b"".join((MAGIC, _LENGTH.pack(len(head)), head, blob[at:]))


def joined(samples: Sequence[Sample]) -> Sample:
    """Runs of one stream and schema, in order, as one."""
    firsts, steps, counts = array("q"), array("q"), array("H")
    for sample in samples:
        firsts += sample.firsts
        steps += sample.steps
        counts += sample.counts
    return Sample(
        samples[0].stream, samples[0].schema, firsts, steps, counts, b"".join([sample.data for sample in samples])
    )


def expand(sample: Sample) -> Iterator[tuple[int, tuple[float, ...]]]:
    """Each reading as (monotonic ns, channel values), in order."""
    times = (
        first + i * step
        for first, step, count in zip(sample.firsts, sample.steps, sample.counts, strict=True)
        for i in range(count)
    )
    return zip(times, struct.iter_unpack(sample.schema.format, sample.data), strict=True)


def _planes(data: bytes, size: int) -> bytes:
    return b"".join([data[k::size] for k in range(size)])


def _rows(planes: bytes, size: int, count: int) -> bytes:
    if len(planes) != size * count:
        raise ValueError("cut short")
    data = bytearray(size * count)
    for k in range(size):
        data[k::size] = planes[k * count : (k + 1) * count]
    return bytes(data)
