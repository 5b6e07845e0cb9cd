"""Where the bytes and pictures of the running sources pass by, whether or not somebody records them.

`octogate record` asks for a recording over the control socket and keeps asking how it goes; when it does so no more, the
recording is ended.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

import gateway
from gateway.acquire.through import through
from gateway.clock import Clock
from gateway.config import Config, SourceTable
from gateway.contract import Frame, Mark, Sample, Severity, Sink, Source
from gateway.errors import ControlError, SourceError
from gateway.recorder import Recorder
from gateway.recording import (
    AGE,
    EVENT,
    FRAME,
    GONE,
    HEARD,
    OPENED,
    REFUSED,
    SAID,
    FrameHead,
    Meta,
    Recorded,
    Refusal,
    Told,
    frame_body,
)  # fmt: skip

if TYPE_CHECKING:
    from gateway.acquire.port import SerialPort

LEASE_S = 15.0  # without a word from who asked for it, a recording ends
PORTS = ("node", "modbus", "text")  # kinds of source whose bytes are recorded; of others the pictures and events


def kind_of(table: SourceTable) -> str:
    """The kind of a source as its table names it."""
    return str(getattr(table, "of", table.__struct_config__.tag))


class Runner(Protocol):
    """Runs one source as its task."""

    async def run(self, source: Source, sink: Sink) -> None: ...


class RecordStatus(msgspec.Struct, frozen=True):
    """How a recording goes.

    Attributes:
        running: it goes on.
        records, bytes: taken, and the file's size.
        lost: records that found no room in the buffer.
        error: why it ended by itself.
    """

    running: bool
    path: str = ""
    records: int = 0
    bytes: int = 0
    lost: int = 0
    error: str = ""


class Tap:
    """One source's; see `gateway.acquire.through` for `open`, `heard`, `said` and `gone`."""

    def __init__(self, source: Source, kind: str) -> None:
        self.source = source
        self.kind = kind
        self._device = ""  # of the open port
        self._recorder: Recorder | None = None
        self._number = 0

    def start(self, recorder: Recorder, number: int) -> None:
        """Record from now on; a node says who it is, for without that its bytes say nothing."""
        self._recorder, self._number = recorder, number
        if self._device:
            recorder.put(OPENED, number, self._device.encode())
        introduce: Callable[[], None] | None = getattr(self.source, "introduce", None)
        if introduce is not None:
            introduce()

    def stop(self) -> None:
        self._recorder = None

    def open(self, device: str, make: Callable[[], SerialPort]) -> SerialPort:
        try:
            port = make()
        except SourceError as error:
            self._put(REFUSED, msgspec.json.encode(Refusal(error.what, error.hint)))
            raise
        port.ear = self
        self._device = port.device
        self._put(OPENED, port.device.encode())
        return port

    def heard(self, data: bytes, since: float) -> None:
        if self._recorder is not None:
            now = time.monotonic_ns()
            age = max(0, now - int(since * 1e9))
            self._recorder.put(HEARD, self._number, AGE.pack(age) + data, now)

    def said(self, data: bytes) -> None:
        self._put(SAID, data)

    def gone(self, reason: str) -> None:
        self._device = ""
        self._put(GONE, reason.encode())

    def frame(self, frame: Frame) -> None:
        if self._recorder is not None and self.kind not in PORTS:
            head = FrameHead(frame.seq, frame.stamp, frame.media)
            self._put(FRAME, frame_body(head, frame.data))

    def event(self, name: str, state: str, severity: Severity, message: str, detail: dict[str, Any]) -> None:
        if self._recorder is not None and self.kind not in PORTS:
            self._put(EVENT, msgspec.json.encode(Told(name, state, severity, message, detail)))

    def _put(self, kind: int, body: bytes) -> None:
        if self._recorder is not None:
            self._recorder.put(kind, self._number, body)


class TappedSink:
    """A sink that lets pictures and events by."""

    def __init__(self, sink: Sink, tap: Tap) -> None:
        self._sink = sink
        self._tap = tap
        self.wait_s = sink.wait_s

    def samples(self, samples: Sequence[Sample], mark: Mark | None, since: float | None = None) -> asyncio.Future[None]:
        return self._sink.samples(samples, mark, since)

    def frame(self, frame: Frame) -> None:
        self._tap.frame(frame)
        self._sink.frame(frame)

    def event(self, name: str, state: str, severity: Severity, message: str, **detail: Any) -> None:
        self._tap.event(name, state, severity, message, detail)
        self._sink.event(name, state, severity, message, **detail)


class Taps:
    """The taps of all sources of a config, and the one recording that may be under way."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._taps: dict[str, Tap] = {}
        self._recorder: Recorder | None = None
        self._names: list[str] = []  # that it records
        self._ended = RecordStatus(False)
        self._lease: asyncio.TimerHandle | None = None

    async def run(self, source: Source, sink: Sink) -> None:
        """Run a source so that it can be recorded; a recording under way begins with it."""
        kind = next(kind_of(table) for table in self._config.source if table.name == source.name)
        tap = self._taps[source.name] = Tap(source, kind)
        if self._recorder is not None and source.name in self._names:
            tap.start(self._recorder, self._names.index(source.name))
        through.set(tap)
        await source.run(TappedSink(sink, tap))

    async def control(self, args: Mapping[str, Any]) -> RecordStatus:
        """The operation `record` of the control socket: do = start, status or stop."""
        do = args.get("do")
        if do == "start":
            path, sources = args.get("path"), args.get("sources")
            if not isinstance(path, str) or not isinstance(sources, list):
                raise ControlError("record: path and sources are missing")
            self.start(Path(path), [str(name) for name in sources])
        elif do == "stop":
            await asyncio.to_thread(self._end, self._let_go())
        elif do != "status":
            raise ControlError(f"record: {do!r} is not start, status or stop")
        self._renew()
        return self.status()

    def start(self, path: Path, sources: Sequence[str], on_disk: Callable[[int], None] = lambda _: None) -> None:
        """Begin to record these sources, all when none is named.

        Raises:
            ControlError: one is under way, or there is no such source.
            RecordingError: the file cannot be made.
        """
        if self._recorder is not None:
            raise ControlError(
                f"a recording is under way already: {self._recorder.path}", hint="wait until it has ended"
            )
        tables = {table.name: table for table in self._config.source}
        if unknown := [name for name in sources if name not in tables]:
            raise ControlError(f"there is no source '{unknown[0]}'", hint=f"declared are {', '.join(tables) or 'none'}")
        names = self._names = list(dict.fromkeys(sources)) or list(tables)
        clock = Clock()
        offset, error = clock.wall()
        recorded = tuple(Recorded(name, kind_of(tables[name])) for name in names)
        id, version = self._config.gateway.id, gateway.__version__
        meta = Meta(version, id, clock.boot, clock.mono_ns(), offset, error, recorded)
        self._recorder = recorder = Recorder(path, meta, on_disk)
        for number, name in enumerate(names):
            if (tap := self._taps.get(name)) is not None:
                tap.start(recorder, number)

    def status(self) -> RecordStatus:
        return self._ended if self._recorder is None else _status(self._recorder, running=not self._recorder.error)

    def close(self) -> None:
        """End the recording, if one is under way; blocks until it is on disk."""
        self._end(self._let_go())

    def _let_go(self) -> Recorder | None:
        """Nothing is recorded from here on."""
        if self._lease is not None:
            self._lease.cancel()
            self._lease = None
        for tap in self._taps.values():
            tap.stop()
        recorder, self._recorder = self._recorder, None
        return recorder

    def _end(self, recorder: Recorder | None) -> None:
        if recorder is not None:
            recorder.close()
            self._ended = _status(recorder, running=False)

    def _renew(self) -> None:
        if self._lease is not None:
            self._lease.cancel()
            self._lease = None
        if self._recorder is not None:
            self._lease = asyncio.get_running_loop().call_later(LEASE_S, self.close)


def _status(recorder: Recorder, *, running: bool) -> RecordStatus:
    return RecordStatus(running, str(recorder.path), recorder.records, recorder.bytes, recorder.lost, recorder.error)
