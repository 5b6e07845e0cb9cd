"""The daemon: ties the rooms together. Only it and `gateway.sources` name concrete classes."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

import gateway
from gateway import control, snapshot
from gateway.analyse.rules import Change, Rules
from gateway.clock import Clock
from gateway.clockwatch import ClockWatch
from gateway.config import Config
from gateway.contract import (
    EVENTS_STREAM,
    Batch,
    BatchKind,
    Event,
    Frame,
    GatewayStatus,
    Inference,
    Mark,
    Sample,
    Severity,
    Source,
    SourceState,
    Stamp,
    UplinkStatus,
)  # fmt: skip
from gateway.errors import ControlError, StoreError
from gateway.notify import ServiceManager
from gateway.panel import process as panel_process
from gateway.pipelines import Pipelines
from gateway.remote import Remote
from gateway.sources import make_source
from gateway.store.pictures import Pictures
from gateway.store.settings import spool_settings
from gateway.store.spool import Spool
from gateway.sync.desired import Desired
from gateway.sync.uplink import Uplink
from gateway.taps import Runner, Taps
from gateway.unmodelled import NoModels
from gateway.writes import Writes

if TYPE_CHECKING:
    from gateway.infer.engine import Engine
    from gateway.infer.thumbnails import Thumbnails
    from gateway.inference import Models

log = logging.getLogger("octogate")
_LEVEL = {Severity.INFO: logging.INFO, Severity.WARNING: logging.WARNING, Severity.ALARM: logging.ERROR}
NEWEST_EVENTS = 50
LEAVE_S = 0.5  # a disk that takes longer does not hold up an end
_encode = msgspec.json.Encoder().encode


class _Stopped(Exception):
    """Raised inside the task tree to end it; never leaves `run`."""


async def run(
    config: Config, stop: asyncio.Event, ready: Callable[[], None] = lambda: None, desired: Desired | None = None
) -> None:
    """Run the gateway until `stop` is set; then everything taken is on disk and every task has ended.

    `desired` is the file that the config came from; a command may set it and ask to be started `again`.

    Raises:
        StoreError: the spool cannot be opened.
        ControlError: another daemon runs on the same data_dir.
        ConfigError: a model's bundle does not fit its pipeline.
    """
    config.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    manager = ServiceManager.of(os.environ)
    async with AsyncExitStack() as stack:
        app = App(config, Clock(), taps := Taps(config))
        stack.callback(taps.close)
        app.spool = await stack.enter_async_context(
            Spool.open(
                config.spool_path,
                app.clock,
                notify=partial(app.notify, "spool"),
                **spool_settings(config.store, tuple(table.name for table in config.uplink)),
            )
        )
        remote = Remote(app, desired, stop)
        app.build(remote)
        handlers: dict[str, control.Handler] = {
            "ping": lambda _: app.clock.mono_ns(),
            "status": lambda _: app.status(),
            "watermarks": lambda _: app.spool.watermarks(),
            "picture": app.picture,
            "command": remote.control,
            "placed": app.models.placed,
            "models": lambda _: app.models.list(),
            "record": taps.control,
        }
        await stack.enter_async_context(control.serve(config.control_path, handlers))
        stack.enter_context(app.watch.watching())
        app.notify("gateway", "gateway.started", "point", Severity.INFO, f"Octogate {gateway.__version__} started")
        try:
            async with asyncio.TaskGroup() as tasks:
                app.start(tasks)
                tasks.create_task(remote.run(), name="remote")
                if manager.watchdog_s:
                    tasks.create_task(manager.watch(_writer_lives), name="watchdog")
                ready()
                manager.tell("READY=1")
                await stop.wait()
                manager.tell("STOPPING=1")
                await app.leave()
                raise _Stopped
        except* _Stopped:
            log.info("stopping: storing what is still open")


def _writer_lives() -> bool:
    """The spool's thread has not died; that anybody asks says that the loop runs."""
    return any(thread.name == "spool" for thread in threading.enumerate())


class App:
    """What is running, and how it hangs together."""

    spool: Spool
    models: Models | NoModels
    _pipelines: Pipelines

    def __init__(self, config: Config, clock: Clock, sources: Runner) -> None:
        self.config, self.clock, self._runner = config, clock, sources
        self.watch = ClockWatch(self.clock, partial(self.notify, "clock"), self._clock_turned)
        self._started = time.monotonic()
        self._sources: list[Source] = []
        self._engines: dict[str, Engine] = {}
        self._uplinks: list[Uplink] = []
        self._newest: dict[str, Sample] = {}
        self._frames: dict[str, Frame] = {}  # source -> newest picture that was looked at, or simply newest
        self._seen: dict[str, Inference] = {}  # source -> what was seen on that picture
        self._events: deque[Event] = deque(maxlen=NEWEST_EVENTS)
        self._rules = Rules(config.rule, self._changed)
        self._pictures = Pictures(config.data_dir / "pictures", config.store.pictures_max_mib << 20)
        self._thumbnails: Thumbnails | None = None
        self._keep: deque[tuple[Frame, Change]] = deque()
        self._keep_wake = asyncio.Event()
        self._frame_of_change: Frame | None = None

    # --- building and starting --------------------------------------------------------------------------------

    def build(self, remote: Remote) -> None:
        """Make every part; nothing runs yet."""
        config = self.config
        self.models = self.make_models()
        self._engines = self.models.engines
        self._pipelines = Pipelines(
            config, self._engines, self.clock, self._inferred, self._looked, lambda name: partial(self.notify, name)
        )
        for source in config.source:
            mark, newest = self.spool.mark(source.name), self.spool.newest(source.name)
            self._sources.append(make_source(source, config, mark, self.clock, newest))
        self._writes = Writes({source.name: source for source in self._sources}, partial(self.notify, "commands"))
        self._uplinks = [
            Uplink(
                config,
                table,
                self.spool.uplink(table.name),
                self._writes.put,
                self._writes.refuse,
                remote.commands,
                clock=self.clock,
            )
            for table in config.uplink
        ]
        if any(table.pictures == "thumbnails" for table in config.uplink):
            from gateway.infer.thumbnails import Thumbnails

            folder = config.data_dir
            notify = partial(self.notify, "pictures")
            self._thumbnails = Thumbnails(folder / "pictures", folder / "thumbnails", self._picture_kept, notify)
        self.spool.on_commit = self._committed
        self.spool.listening = lambda: any(uplink.up for uplink in self._uplinks)

    def make_models(self) -> Models | NoModels:
        """What computes; a replay has its own."""
        if not self.config.model:
            return NoModels()
        from gateway.inference import Models

        return Models(self.config, self.announce)

    def start(self, tasks: asyncio.TaskGroup) -> None:
        """Start every part as a named task of `tasks`."""
        for source in self._sources:
            tasks.create_task(self._runner.run(source, SourceSink(self, source.name)), name=f"source {source.name}")
        for name, engine in self._engines.items():
            tasks.create_task(engine.supervise(), name=f"model {name}")
        tasks.create_task(self.models.run(), name="models")
        for pipeline in self._pipelines.running:
            tasks.create_task(pipeline.run(), name=f"pipeline {pipeline.name}")
        tasks.create_task(self._keep_pictures(), name="pictures")
        if self._thumbnails is not None:
            tasks.create_task(self._thumbnails.run(), name="thumbnails")
        tasks.create_task(self._writes.run(), name="writes")
        for uplink in self._uplinks:
            tasks.create_task(uplink.run(), name=f"uplink {uplink.name}")
        if self.config.panel is not None:
            notify = partial(self.notify, "panel")
            tasks.create_task(panel_process.supervise(self.config, self.config.panel, notify), name="panel")

    async def leave(self) -> None:
        """Said before the tasks are cancelled; goes out with whatever is on disk by then."""
        message = "stopping in good order"
        event = Event("gateway.stopping", "gateway", "point", Severity.INFO, self.clock.now(), message)
        await asyncio.wait([self._event(event)], timeout=LEAVE_S)
        for uplink in self._uplinks:
            uplink.leave()

    # --- the way of a reading, a picture, an inference --------------------------------------------------------

    def samples(self, samples: Sequence[Sample], mark: Mark | None, since: float | None = None) -> asyncio.Future[None]:
        """From a source: stored, looked at by rules, cut into windows, shown live."""
        done = self.spool.append_samples(samples, mark, since)
        for sample in samples:
            for camera in self._pipelines.by_source.get(sample.stream, ()):
                camera.mistaken()
            self._newest[sample.stream] = sample
            self._rules.sample(sample)
            for pipeline in self._pipelines.by_stream.get(sample.stream, ()):
                pipeline.sample(sample)
            for uplink in self._uplinks:
                uplink.sample(sample)
        return done

    def _committed(self, batches: Sequence[Batch]) -> None:
        self.watch.look()
        for uplink in self._uplinks:
            uplink.committed(batches)

    def _clock_turned(self) -> None:
        for uplink in self._uplinks:
            uplink.clock_turned()

    def frame(self, frame: Frame) -> None:
        """From a camera: handed to its pipelines; without one it is only shown."""
        pipelines = self._pipelines.by_source.get(frame.source, ())
        for pipeline in pipelines:
            pipeline.frame(frame)
        if not pipelines and not frame.media.startswith("image/x-"):  # a raw one becomes a JPEG only by a model
            self._frames[frame.source] = frame
        for uplink in self._uplinks:
            uplink.source(frame.source.partition("/")[0], SourceState.OK)

    def source_turned(self, name: str) -> None:
        """Something happened to a source: the live plane is told how it is now."""
        source = next(source for source in self._sources if source.name == name)
        for uplink in self._uplinks:
            status = source.status()
            uplink.source(name, status.state, status.stale)

    def _inferred(self, inference: Inference, frame: Frame | None) -> None:
        self.spool.append_row(inference.pipeline, BatchKind.INFERENCES, _encode(inference))
        if inference.parent is None:
            if frame is not None:
                self._frames[frame.source], self._seen[frame.source] = frame, inference
            self._frame_of_change = frame
            self._rules.inference(inference)
            if inference.result.fields:
                self._reviewed(inference)
        for uplink in self._uplinks:
            uplink.inference(inference)

    def _reviewed(self, inference: Inference) -> None:
        from gateway.analyse import workorder  # few gateways read forms

        for change in workorder.changes(inference):
            self._changed(change)

    def _looked(self, pipeline: str, stamp: Stamp, inferences: Sequence[Inference], frame: Frame) -> None:
        """All regions of a picture were looked at: rules judge the picture, not one region after the other."""
        self._frame_of_change = frame
        self._rules.regions(pipeline, stamp, inferences)

    def _changed(self, change: Change) -> None:
        if change.keep_picture and self._frame_of_change is not None:
            self._keep.append((self._frame_of_change, change))
            self._keep_wake.set()
            return
        self._record(change)

    def _record(self, change: Change, **more: Any) -> None:
        state = "point" if change.point else "raised" if change.raised else "cleared"
        stamp = self.clock.at(change.mono_ns)
        self._event(
            Event(change.rule, change.origin, state, change.severity, stamp, change.message, {**change.detail, **more})
        )

    async def _keep_pictures(self) -> None:
        """Store the pictures of events, then the events that name them."""
        while True:
            await self._keep_wake.wait()
            self._keep_wake.clear()
            while self._keep:
                frame, change = self._keep.popleft()
                try:
                    name, digest = await asyncio.to_thread(self._pictures.keep, frame)
                except StoreError as error:
                    self._record(change, picture_lost=str(error))
                else:
                    self._record(change, picture=name, sha256=digest)
                    self._picture_kept()
                    if self._thumbnails is not None:
                        self._thumbnails.kept()

    def _picture_kept(self) -> None:
        for uplink in self._uplinks:
            uplink.picture_kept()

    def notify(self, origin: str, name: str, state: str, severity: Severity, message: str, **detail: Any) -> None:
        """An event about the gateway itself."""
        self.announce(origin, name, state, severity, message, **detail)

    def announce(
        self, origin: str, name: str, state: str, severity: Severity, message: str, **detail: Any
    ) -> asyncio.Future[None]:
        """The same; done when it is on disk."""
        return self._event(Event(name, origin, state, severity, self.clock.now(), message, detail))

    def _event(self, event: Event) -> asyncio.Future[None]:
        about = "" if event.message.startswith(event.origin) else f"{event.origin}: "
        log.log(_LEVEL[event.severity], "%s %s: %s%s", event.name, event.state, about, event.message)
        self._events.appendleft(event)
        for uplink in self._uplinks:
            uplink.event(event)
        return self.spool.append_row(EVENTS_STREAM, BatchKind.EVENTS, _encode(event))

    # --- what others see --------------------------------------------------------------------------------------

    def status(self) -> GatewayStatus:
        uplinks = tuple(uplink.status() for uplink in self._uplinks)
        sources = {source.name: source.status() for source in self._sources}
        allow_unsigned = self.config.trust.allow_unsigned
        return GatewayStatus(
            gateway=self.config.gateway.id,
            version=gateway.__version__,
            boot=self.clock.boot,
            process=snapshot.process(self._started),
            sources=tuple(sources.values()),
            streams=tuple(
                snapshot.stream(
                    name, self.spool.kind(name), seq, self.spool.delivered(name), self._newest.get(name), sources
                )
                for name, seq in sorted(self.spool.next_seq().items())
            ),
            models=tuple(engine.status() for engine in self._engines.values()),
            pipelines=tuple(pipeline.status() for pipeline in self._pipelines.all),
            spool=self.spool.status(),
            uplink=uplinks[0] if uplinks else UplinkStatus("off", "", 0, 0, 0, 0, 0),
            uplinks=uplinks,
            events=tuple(self._events),
            pictures={name: frame.seq for name, frame in self._frames.items()},
            warnings=("trust.allow_unsigned is on: unsigned models are run",) if allow_unsigned else (),
        )

    async def write(self, source: str, metric: str, value: bool | int | float | str) -> None:
        """A command to a source, answered: see `Writes.now`."""
        await self._writes.now(source, metric, value)

    def picture(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """The newest picture of a source, with what was seen on it; `data` is base64 in the JSON answer."""
        name = args.get("source")
        if name not in self._frames:
            raise ControlError(f"no picture of {name!r} yet", hint=f"there are: {', '.join(self._frames) or 'none'}")
        frame = self._frames[name]
        return {"seq": frame.seq, "media": frame.media, "data": frame.data, "inference": self._seen.get(name)}


class SourceSink:
    """One source's way into the gateway."""

    def __init__(self, app: App, source: str) -> None:
        self._app = app
        self._source = source
        self.wait_s = app.config.store.commit_ms / 1000
        self.samples = app.samples
        self.frame = app.frame

    def event(self, name: str, state: str, severity: Severity, message: str, **detail: Any) -> None:
        self._app.notify(self._source, name, state, severity, message, **detail)
        # some sources turn only after they have said so
        asyncio.get_running_loop().call_soon(self._app.source_turned, self._source)
