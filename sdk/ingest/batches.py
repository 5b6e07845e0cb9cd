"""What arrives, what it holds, and which of it comes next: pure functions, shared by every store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import msgspec
import zstandard

from gateway.contract import BatchKind, Sample
from gateway.errors import StoreError
from gateway.store.columns import Codec, Header, read_header

MAX_NAME = 200  # bytes of a gateway's or stream's name
MAX_CHANNELS = 400
MAX_SEQ = 1 << 62  # both stores count in signed 64 bits
MAX_GAP_BODY = 1 << 20
MAX_WHY = 200

Key = tuple[str, str, str]  # gateway, epoch (hex), stream


@dataclass(slots=True)
class Counts:
    """What has happened since the consumer was opened.

    Attributes:
        batches: committed.
        rows: readings, inferences and events committed.
        repeated: batches that were there already (dropped by key).
        gaps: batches that came too early (kept aside; the gateway is asked to go back if the hole stays).
        refused: messages that are no batch of ours.
        dropped: readings that the gateway dropped by policy and told so.
        missing: readings that no gateway has any more; given up after a long search.
        shed: batches let go because the store did not take them for too long; the gateway is asked for them again.
    """

    batches: int = 0
    rows: int = 0
    repeated: int = 0
    gaps: int = 0
    refused: int = 0
    dropped: int = 0
    missing: int = 0
    shed: int = 0


class Ack(msgspec.Struct, frozen=True):
    """The consumer's retained word to a gateway; the other end is gateway/sync/backlog.py."""

    session: str
    epoch: str
    next: dict[str, int]


@dataclass(frozen=True, slots=True)
class Arrived:
    """One message of the backlog plane whose header is sound."""

    gateway: str
    header: Header
    blob: bytes

    @property
    def key(self) -> Key:
        return self.gateway, self.header.epoch.hex(), self.header.stream

    @property
    def end(self) -> int:
        return self.header.seq_first + self.header.n


@dataclass(frozen=True, slots=True)
class Parked:
    """A batch that waits in the database."""

    stream: int
    seq_first: int
    n: int


@dataclass(frozen=True, slots=True)
class Gap:
    """A range that the gateway has no more: dropped by its policy, or damaged on its disk.

    Attributes:
        why: the gateway's own words, shortened.
        when_ns: when it was dropped, UTC nanoseconds; None when the gateway did not know.
        kind: what it was.
        there: it is no gap: the rows are in the tables, under the epoch before the gateway's spool was rebuilt.
    """

    why: str
    when_ns: int | None
    kind: BatchKind = BatchKind.SAMPLES
    there: bool = False


Content = Sample | list[bytes] | Gap


class _GapRow(msgspec.Struct):
    """The body of a gap, as far as it is read here; gateway/store/columns.py writes it."""

    why: str = ""
    kind: BatchKind = BatchKind.SAMPLES
    mono_ns: int | None = None
    when_ns: int | None = None


_decode_gap = msgspec.json.Decoder(_GapRow).decode


def arrived(topic: str, payload: bytes, prefix: str) -> Arrived:
    """A message of `<prefix>/<gateway>/up/<stream>` with its header read.

    Raises:
        StoreError: no batch, of a kind or version that is not known, with numbers out of bounds, or of another stream
            than its topic says (who may publish for a gateway is what the broker's access list decides by topic).
    """
    gateway, _, stream = topic.removeprefix(prefix + "/").partition("/up/")
    header, _ = read_header(payload)
    if header.stream != stream:
        raise StoreError(f"batch of {header.stream!r} came on the topic of {stream!r}")
    for name in (gateway, stream):
        if not 0 < len(name.encode()) <= MAX_NAME or not name.isprintable():
            raise StoreError(f"name {name[:MAX_NAME]!r} is empty, too long or not printable")
    if header.seq_first + header.n > MAX_SEQ or header.spec.count(",") >= MAX_CHANNELS:
        raise StoreError(f"batch of {header.stream!r} at {header.seq_first}: numbers out of bounds")
    return Arrived(gateway, header, payload)


def content(codec: Codec, blob: bytes) -> Content:
    """What a batch holds; StoreError when its body is damaged."""
    header, at = read_header(blob)
    if header.kind is BatchKind.GAP:
        return _gap(blob[at:], header.wall_offset_ns)
    if header.kind is BatchKind.SAMPLES:
        return codec.decode_samples(blob)[1]
    return codec.decode_rows(blob)[1]


def _gap(body: bytes, wall_offset_ns: int | None) -> Gap:
    """The reason in the first row; a gap whose reason cannot be read is a gap all the same."""
    try:
        size = zstandard.frame_content_size(body)
        if not 0 < size <= MAX_GAP_BODY:
            raise ValueError("size out of bounds")
        text = zstandard.ZstdDecompressor().decompress(body, max_output_size=MAX_GAP_BODY)
        row = _decode_gap(text.partition(b"\n")[0])
    except (ValueError, zstandard.ZstdError):  # msgspec's errors are ValueErrors
        return Gap("reason unreadable", None)
    when = row.when_ns
    if when is None and row.mono_ns is not None and wall_offset_ns is not None:
        when = row.mono_ns + wall_offset_ns
    if when is not None and not 0 <= when < MAX_SEQ:
        when = None
    return Gap("".join(c for c in row.why[:MAX_WHY] if c.isprintable()), when, row.kind)


class Offer(Protocol):
    """A run of sequence numbers of a stream, from the network or parked earlier."""

    @property
    def stream(self) -> int: ...
    @property
    def seq_first(self) -> int: ...
    @property
    def n(self) -> int: ...


T = TypeVar("T", bound=Offer)


@dataclass(slots=True)
class Plan(Generic[T]):
    """What to do with offers.

    Attributes:
        takes: in order of sequence within a stream, with how many of their first readings are there already.
        early: what leaves a hole before it.
        repeated: what is there already.
        next: the sequence number that each touched stream expects afterwards.
    """

    takes: list[tuple[T, int]] = field(default_factory=list)
    early: list[T] = field(default_factory=list)
    repeated: list[T] = field(default_factory=list)
    next: dict[int, int] = field(default_factory=dict)


def plan(expected: Mapping[int, int], offers: Iterable[T]) -> Plan[T]:
    """Sort offers into what continues its stream, what comes too early and what is there; takes each number once."""
    made: Plan[T] = Plan(next=dict(expected))
    for offer in sorted(offers, key=lambda o: (o.stream, o.seq_first)):
        following = made.next.get(offer.stream, 0)
        if offer.seq_first + offer.n <= following:
            made.repeated.append(offer)
        elif offer.seq_first > following:
            made.early.append(offer)
        else:
            made.takes.append((offer, following - offer.seq_first))
            made.next[offer.stream] = offer.seq_first + offer.n
    return made


@dataclass(frozen=True, slots=True)
class Take:
    """A batch that continues its stream, ready to be written.

    Attributes:
        first: the first sequence number that is new; before it come `skip` readings that are there already.
    """

    stream: int
    key: Key
    header: Header
    content: Content
    skip: int

    @property
    def first(self) -> int:
        return self.header.seq_first + self.skip

    @property
    def end(self) -> int:
        return self.header.seq_first + self.header.n


@dataclass(frozen=True, slots=True)
class Span:
    """A run of sequence numbers of one fate: `taken`, `dropped` by the gateway's policy, `missing`, or `there`
    under an epoch before."""

    stream: int
    first: int
    end: int
    state: str
    boot: str = ""
    why: str = ""
    when_ns: int | None = None

    @property
    def tag(self) -> str:
        """Runs of the same tag that touch are one run."""
        return "\n".join((self.state, self.boot, self.why))


@dataclass(frozen=True, slots=True)
class StreamLedger:
    """What became of one stream, counted in readings or rows.

    Attributes:
        next_seq: the watermark: everything before it is committed, dropped, missing or there.
        there: committed under another epoch, before the gateway's spool was damaged and rebuilt.
        waiting: readings that came but wait for a hole to be filled.
        hole: first and end of that hole; None when nothing waits.
        rows: rows really in the tables; None unless they were counted.
    """

    gateway: str
    epoch: str
    stream: str
    kind: str
    next_seq: int
    committed: int
    there: int
    dropped: int
    missing: int
    waiting: int
    hole: tuple[int, int] | None
    rows: int | None
    runs: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where a stream stands: its next sequence number, and the run that it would continue."""

    next_seq: int
    span_first: int = 0
    span_tag: str = ""


def spans(cursor: Cursor, runs: Sequence[Span]) -> tuple[list[Span], Cursor]:
    """Join consecutive runs of one stream with each other and with the run that is open; the last one stays open."""
    joined: list[Span] = []
    first, tag = cursor.span_first, cursor.span_tag
    following = cursor.next_seq
    for run in runs:
        begins = first if run.tag == tag and run.first == following else run.first
        whole = Span(run.stream, begins, run.end, run.state, run.boot, run.why, run.when_ns)
        if joined and joined[-1].first == begins:
            joined[-1] = whole
        else:
            joined.append(whole)
        first, tag, following = begins, run.tag, run.end
    return joined, Cursor(following, first, tag)
