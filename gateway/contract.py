"""What crosses rooms: the values that sources, models, rules, the spool and the uplink hand to each other.

Everything here is frozen and cheap: the hot path makes one `Sample` per chunk of bytes, not one per reading.
Names of streams: `<source>/<node stream>` for readings, `<pipeline>` for inferences, `events` for events.
"""

from __future__ import annotations

import asyncio
import enum
import struct
from array import array
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from gateway.result import Detection as Detection
from gateway.result import Field as Field
from gateway.result import Mask as Mask
from gateway.result import Region as Region
from gateway.result import Result as Result

EVENTS_STREAM = "events"
AUDIT_STREAM = "audit"  # rows about commands, before and after each
TOPIC_ROOT = "octo/v1"

# struct codes a channel may have (little-endian), and the Sparkplug B datatype each maps to
CHANNEL_TYPES = "bBhHiIqQfd"


def topic_up(gateway: str, stream: str, prefix: str = TOPIC_ROOT) -> str:
    """The backlog topic of one stream."""
    return f"{prefix}/{gateway}/up/{stream}"


def topic_ack(gateway: str, prefix: str = TOPIC_ROOT) -> str:
    """Where the consumer retains its committed watermark."""
    return f"{prefix}/{gateway}/ack"


class Stamp(msgspec.Struct, frozen=True, gc=False):
    """When something happened, and how far that can be trusted (design.md, "Time").

    Attributes:
        boot: the kernel's boot id; monotonic times of different boots cannot be compared.
        mono_ns: CLOCK_MONOTONIC, nanoseconds.
        wall_ns: UTC since 1970, nanoseconds, or None while the wall clock is not known to be right.
        uncertainty_ns: half width of the interval around the time that holds the event.
    """

    boot: str
    mono_ns: int
    wall_ns: int | None
    uncertainty_ns: int


class Channel(msgspec.Struct, frozen=True):
    """One column of a record: name, struct code (see CHANNEL_TYPES), unit (UCUM, may be empty)."""

    name: str
    type: str
    unit: str = ""


class Schema(msgspec.Struct, frozen=True):
    """How the packed records of a stream read: little-endian, no padding, channels in order."""

    channels: tuple[Channel, ...]

    @property
    def format(self) -> str:
        """The `struct` format of one record."""
        return "<" + "".join(channel.type for channel in self.channels)

    @property
    def record_size(self) -> int:
        """Bytes per record."""
        return struct.calcsize(self.format)

    def offset(self, channel: str) -> tuple[int, str]:
        """Byte offset in the record and struct code of one channel; KeyError when there is none."""
        at = 0
        for candidate in self.channels:
            if candidate.name == channel:
                return at, candidate.type
            at += struct.calcsize("<" + candidate.type)
        raise KeyError(channel)

    def spec(self) -> str:
        """Compact text, `name:type:unit,...`, as it stands in batch headers."""
        return ",".join(f"{c.name}:{c.type}:{c.unit}" for c in self.channels)

    @classmethod
    def parse(cls, spec: str) -> Schema:
        """The inverse of `spec`; ValueError for anything else."""
        channels = []
        for part in spec.split(","):
            name, code, unit = part.split(":")
            if not name or len(code) != 1 or code not in CHANNEL_TYPES:
                raise ValueError(f"not a channel: {part!r}")
            channels.append(Channel(name, code, unit))
        return cls(tuple(channels))


class Sample(msgspec.Struct, frozen=True, gc=False):
    """A run of consecutive readings of one stream, as the packed records that came off the wire.

    The times are run-length coded: segment i holds `counts[i]` readings, the first at `firsts[i]` (monotonic
    ns), each next one `steps[i]` ns later. `data` holds sum(counts) records of `schema.record_size` bytes.
    """

    stream: str
    schema: Schema
    firsts: array[int]  # 'q'
    steps: array[int]  # 'q'
    counts: array[int]  # 'H'
    data: bytes

    @property
    def n(self) -> int:
        return sum(self.counts)

    def newest(self) -> dict[str, float]:
        """The last reading, channel -> value."""
        schema = self.schema
        values = struct.unpack_from(schema.format, self.data, len(self.data) - schema.record_size)
        return {channel.name: value for channel, value in zip(schema.channels, values, strict=True)}


class Mark(msgspec.Struct, frozen=True, gc=False):
    """How far a source has been taken: stored in the same transaction as the readings themselves."""

    source: str
    session: int  # random, made by the node at its boot
    next_seq: int  # the frame (unwrapped) that is expected next


class Frame(msgspec.Struct, frozen=True, gc=False):
    """One picture of a camera, still encoded (JPEG or PNG), or raw as `image/x-yuyv;<width>;<height>;<stride>`.

    A raw one becomes a JPEG in the worker of the model that looks at it.
    """

    source: str
    seq: int
    stamp: Stamp
    data: bytes
    media: str = "image/jpeg"


class Parent(msgspec.Struct, frozen=True, gc=False):
    """Which detection of another pipeline an inference looked closer at, on the same picture (same `input_seq`, stamp)."""

    pipeline: str
    detection: int  # its index among all that the parent detected on the picture, in the order of its inferences
    label: str
    region: Region  # what was looked at: the box, widened by the margin
    box: Region  # the detection's own box


class Inference(msgspec.Struct, frozen=True):
    """A result with its origin; stored as one row of the pipeline's stream."""

    pipeline: str
    stamp: Stamp
    model: str
    bundle: str  # the first 12 hex digits of the bundle's digest
    backend: str
    took_us: int  # from handing over to having the result, queueing included
    result: Result
    input_seq: int = -1  # the frame's number, or the first reading of the window
    parent: Parent | None = None  # of a pipeline that looks `after` another


class Severity(enum.StrEnum):
    INFO = "info"
    WARNING = "warning"
    ALARM = "alarm"


class Event(msgspec.Struct, frozen=True):
    """Something a person or a machine may want to react to.

    Attributes:
        name: the rule's name, or `source.lost`, `model.restarted`, `store.full` and the like.
        origin: the source, pipeline, model or room that it is about.
        state: `raised`, `cleared`, or `point` for something without duration.
    """

    name: str
    origin: str
    state: str
    severity: Severity
    stamp: Stamp
    message: str
    detail: dict[str, Any] = {}


class BatchKind(enum.StrEnum):
    SAMPLES = "samples"
    INFERENCES = "inferences"
    EVENTS = "events"
    GAP = "gap"  # stands for readings or rows that were deleted: gateway.store.columns.Gap


class Batch(msgspec.Struct, frozen=True, gc=False):
    """An encoded run of a stream, exactly as it is stored and as it is sent.

    The key (gateway, epoch, stream, seq_first, n) never changes once the batch is on disk.
    """

    id: int  # order of commitment within the spool
    stream: str
    seq_first: int
    n: int
    blob: bytes


class Sink(Protocol):
    """Where a source pours what it reads. Calls never block; the future is done when it is on disk.

    Attributes:
        wait_s: how long a reading may wait for its commit, seconds. A source may use it up by reading a line that is
            never quiet only so often, and then says `since` when the oldest of the readings may have come (loop time).
    """

    wait_s: float

    def samples(
        self, samples: Sequence[Sample], mark: Mark | None, since: float | None = None
    ) -> asyncio.Future[None]: ...

    def frame(self, frame: Frame) -> None: ...

    def event(self, name: str, state: str, severity: Severity, message: str, **detail: Any) -> None: ...


class SourceState(enum.StrEnum):
    STARTING = "starting"
    OK = "ok"
    SILENT = "silent"
    LOST = "lost"
    FAILING = "failing"


class Source(Protocol):
    """A sensor or camera. `run` ends only by cancellation: it reopens by itself what went away."""

    name: str

    async def run(self, sink: Sink) -> None: ...

    def status(self) -> SourceStatus: ...


class WritableSource(Source, Protocol):
    """A source that can be commanded, for example by a Sparkplug host (DCMD)."""

    async def write(self, metric: str, value: bool | int | float | str) -> None:
        """Set one of its metrics, named as in its birth; returns when the device has confirmed it.

        Raises:
            SourceError: it is not there, refused, or has no such metric.
        """


# --- what `octogate status`, the panel, the demo and the SDK see -------------------------------------------------


class SourceStatus(msgspec.Struct, frozen=True):
    name: str
    kind: str
    state: SourceState
    detail: str  # the last error, or which node this is
    readings: int = 0  # taken from the wire, in order, this run
    frames: int = 0  # pictures of a camera; frames of bytes of a node
    dropped: int = 0  # pictures that a newer one replaced; readings a node's ring overwrote
    bad: int = 0  # frames of bytes refused (checksum, length, type)
    resent: int = 0  # frames that came again and were already taken
    gaps: int = 0  # times a frame was missing and was asked for again
    stale: tuple[str, ...] = ()  # its streams that get no readings although others do: a dead device on a bus
    bad_lines: tuple[str, ...] = ()  # of a sensor that sends text: the newest that could not be used, and why


class StreamStatus(msgspec.Struct, frozen=True):
    name: str
    kind: BatchKind
    next_seq: int  # readings or rows on disk
    delivered_seq: int  # the consumer's committed watermark
    values: dict[str, float] = {}  # newest reading by channel
    units: dict[str, str] = {}
    stale: bool = False  # who gives it is silent, lost or failing: the values may be old


class BreakerStatus(msgspec.Struct, frozen=True):
    candidate: str
    state: str  # closed, open (failed, will be tried again), absent (cannot be loaded here)
    why: str = ""


class ModelStatus(msgspec.Struct, frozen=True):
    name: str
    state: str  # starting, ready, restarting, failed
    backend: str  # "onnx fp32 x1", empty until ready
    bundle: str
    signed: bool
    pid: int
    runs: int
    restarts: int
    p50_ms: float
    p99_ms: float
    detail: str = ""
    workers: int = 1
    rss_mib: int = 0  # of all its workers
    standby: str = ""  # what would take over at once, as `backend`
    failed_over: bool = False  # not computed by whom it should be
    breakers: tuple[BreakerStatus, ...] = ()  # the candidates, the best first


class PipelineStatus(msgspec.Struct, frozen=True):
    name: str
    source: str
    model: str
    inferences: int
    skipped: (
        int  # pictures replaced by a newer one, windows or regions that no model answered, regions beyond the limit
    )
    newest: Inference | None = None
    thinned: int = 0  # pictures not looked at because of `max_fps`
    after: str = ""  # the pipeline whose detections this one looks closer at


class SpoolStatus(msgspec.Struct, frozen=True):
    path: str
    epoch: str
    state: str  # ok, full, failing
    bytes: int
    batches: int
    backlog: int  # readings and rows not yet confirmed by the consumer
    commits: int
    commit_p50_ms: float
    commit_p99_ms: float
    detail: str = ""
    dropped: int = 0  # readings and rows deleted before every uplink had them; `octogate ledger` says which and why
    damaged: int = 0  # of these, lost to a damaged file
    written_mb_day: float = 0.0  # to the disk, at the pace of this run; 0 until a minute of it has passed
    written_mb: float = 0.0  # in all, as far as this spool has seen
    card_years: float | None = None  # until the declared card (store.card_tbw) is worn at that pace


class LiveStatus(msgspec.Struct, frozen=True):
    """The Sparkplug edge node of an uplink."""

    state: str  # down; waiting for the primary host; born
    bd_seq: int
    devices: int  # that are born
    sent: int  # messages this run, births and deaths included
    primary_host: str = ""


class UplinkStatus(msgspec.Struct, frozen=True):
    state: str  # off, connecting, up, down
    broker: str
    since_s: float
    inflight: int
    sent: int  # batches published, rewinds included
    reconnects: int
    rewinds: int
    detail: str = ""
    live: LiveStatus | None = None
    name: str = "main"
    pictures: int = 0  # that the receiver has confirmed


class ProcessStatus(msgspec.Struct, frozen=True):
    pid: int
    uptime_s: float
    cpu_s: float
    rss_bytes: int


class GatewayStatus(msgspec.Struct, frozen=True):
    gateway: str
    version: str
    boot: str
    process: ProcessStatus
    sources: tuple[SourceStatus, ...]
    streams: tuple[StreamStatus, ...]
    models: tuple[ModelStatus, ...]
    pipelines: tuple[PipelineStatus, ...]
    spool: SpoolStatus
    uplink: UplinkStatus
    events: tuple[Event, ...]  # the newest, newest first
    uplinks: tuple[UplinkStatus, ...] = ()  # all of them; `uplink` is the first
    pictures: dict[str, int] = {}  # number of the newest by camera; one on a node is `<source>/<camera>`
    warnings: tuple[str, ...] = ()  # unsafe settings that are on, for example allow_unsigned
