"""Plays a recording back through the same sources, pipelines, rules and spool, on a clock of its own.

Nothing in it depends on when or how fast it runs: times and the boot are the recording's, commits are made when the
recording's time says so, and a model takes no time at all. So the same recording with the same config and bundles gives
the same spool, byte for byte.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import msgspec

from gateway.acquire.recorded import RecordedLine
from gateway.acquire.through import through
from gateway.app import App
from gateway.clock import Clock
from gateway.config import Config
from gateway.contract import Frame, ModelStatus, Severity, Sink, Source
from gateway.errors import ConfigError, StoreError
from gateway.infer.engine import Answer, Engine
from gateway.infer.seat import NOBODYS, Input
from gateway.inference import Announce, Models
from gateway.recording import EVENT, FRAME, LOSS, LOST, Reading, Record, RecordingError, Told, parse_frame
from gateway.remote import Remote
from gateway.store.inline import InlineSpool, digest, prepare, settle
from gateway.store.settings import spool_settings
from gateway.taps import PORTS, kind_of
from gateway.virtual import VirtualLoop

log = logging.getLogger("octogate")
AHEAD_NS = 10 * 10**9  # so much of the recording is in memory
_DEADLINE_MS = 600_000  # of a model: how long it takes says nothing here, only that it does not hang


class Replayed(msgspec.Struct, frozen=True):
    """What a replay was.

    Attributes:
        seconds: of the recording.
        lost, lost_bytes: records that had found no room when it was made.
        whole: it was ended in good order; else its end is missing, `unread` bytes of it are damaged.
        digest: SHA-256 of the spool's batches in order; `file` that of the spool's file.
    """

    spool: str
    seconds: float
    records: int
    lost: int
    lost_bytes: int
    whole: bool
    unread: int
    streams: dict[str, int]
    digest: str
    file: str


class Player:
    """A `gateway.taps.Runner` that gives each source what was recorded of it."""

    def __init__(self, reading: Reading, config: Config, clock: Clock) -> None:
        self._reading = reading
        self._records = reading.records()
        self._last_ns = reading.meta.mono_ns
        self._clock = clock
        self.records = self.lost = self.lost_bytes = 0
        kinds = {table.name: kind_of(table) for table in config.source}
        for source in reading.meta.sources:
            if kinds.get(source.name, source.kind) != source.kind:
                what = f"source '{source.name}' is of kind {kinds[source.name]}, it was recorded as {source.kind}"
                raise ConfigError(what, hint="replay with a config that fits")
        if not any(source.name in kinds for source in reading.meta.sources):
            names = ", ".join(source.name for source in reading.meta.sources)
            raise ConfigError(f"none of the recorded sources ({names}) is in the config")
        self._lines = [RecordedLine(s.name, clock, answers=s.kind == "modbus") for s in reading.meta.sources]
        self._wanted = [source.name in kinds for source in reading.meta.sources]
        self._kinds = [source.kind for source in reading.meta.sources]
        self._sinks: dict[str, Sink] = {}

    async def run(self, source: Source, sink: Sink) -> None:
        """A source that was not recorded does nothing; pictures are poured without the source that took them."""
        for line, kind in zip(self._lines, self._kinds, strict=True):
            if line.name == source.name and kind in PORTS:
                through.set(line)
                await source.run(sink)
            elif line.name == source.name:
                self._sinks[source.name] = sink

    def begin(self) -> None:
        """Hand out the first seconds, before the sources open their ports."""
        until = self._reading.meta.mono_ns + AHEAD_NS
        for record in self._records:
            self._hand_out(record)
            if record.mono_ns > until:
                break

    async def feed(self) -> int:
        """Hand out the rest, a little ahead of its time; ends with the recording: the time of its last record."""
        for record in self._records:
            if (wait := record.mono_ns - AHEAD_NS - self._clock.mono_ns()) > 0:
                await asyncio.sleep(wait / 1e9)
            self._hand_out(record)
        self._last_ns = max(self._last_ns, self._reading.end_ns)
        await asyncio.sleep(max(0, self._last_ns - self._clock.mono_ns()) / 1e9 + 0.001)
        return self._last_ns

    def _hand_out(self, record: Record) -> None:
        self.records += 1
        self._last_ns = max(self._last_ns, record.mono_ns)
        if record.kind == LOST:
            lost, size = LOSS.unpack_from(record.body) if len(record.body) >= LOSS.size else (1, 0)
            self.lost, self.lost_bytes = self.lost + lost, self.lost_bytes + size
        elif not self._wanted[record.source]:
            return
        elif self._kinds[record.source] in PORTS:
            self._lines[record.source].put(record)
        else:
            self._show(self._lines[record.source].name, record)

    def _show(self, name: str, record: Record) -> None:
        at = asyncio.get_running_loop().call_at
        if record.kind == FRAME:
            head, data = parse_frame(record.body)
            stamp = msgspec.structs.replace(head.stamp, boot=self._clock.boot)
            frame = Frame(name, head.seq, stamp, data, head.media)
            at(record.mono_ns / 1e9, lambda: self._sinks[name].frame(frame))
        elif record.kind == EVENT:
            try:
                told = msgspec.json.decode(record.body, type=Told)
                severity = Severity(told.severity)
            except ValueError as error:  # msgspec's errors are ValueErrors, too
                raise RecordingError(f"not an event of '{name}': {error}") from error

            def tell() -> None:
                self._sinks[name].event(told.name, told.state, severity, told.message, **told.detail)

            at(record.mono_ns / 1e9, tell)


class ReplayApp(App):
    """The daemon's parts, without what reaches outside."""

    room: asyncio.AbstractEventLoop

    def make_models(self) -> Models:
        return PromptModels(self.config, self.announce, self.room)

    def announce(
        self, origin: str, name: str, state: str, severity: Severity, message: str, **detail: Any
    ) -> asyncio.Future[None]:
        if threading.current_thread() is threading.main_thread():
            return super().announce(origin, name, state, severity, message, **detail)
        log.warning("%s %s: %s", name, state, message)  # a worker, about this machine
        done = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done


class PromptModels(Models):
    """The config's bundles on the first candidate that works: nothing is measured, swapped or kept on standby here."""

    def __init__(self, config: Config, announce: Announce, room: asyncio.AbstractEventLoop) -> None:
        patient = tuple(msgspec.structs.replace(table, deadline_ms=_DEADLINE_MS) for table in config.model)
        alone = msgspec.structs.replace(config.inference, standby_mib=0)
        super().__init__(msgspec.structs.replace(config, model=patient, inference=alone), announce)
        self.engines = {name: cast(Engine, PromptEngine(engine, room)) for name, engine in self.engines.items()}

    async def run(self) -> None:
        """Until cancelled."""
        await asyncio.get_running_loop().create_future()


class PromptEngine:
    """An engine in an event loop of its own, which is waited for: in the replay's time the answer comes at once."""

    def __init__(self, engine: Engine, room: asyncio.AbstractEventLoop) -> None:
        self._engine = engine
        self._room = room

    async def run(self, data: bytes, media: str, of: Input = NOBODYS) -> Answer:
        # blocks the replay's loop, and with it its time
        answer = asyncio.run_coroutine_threadsafe(self._engine.run(data, media, of), self._room).result()
        return msgspec.structs.replace(answer, took_us=0)

    async def supervise(self) -> None:
        running = asyncio.run_coroutine_threadsafe(self._engine.supervise(), self._room)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            running.cancel()

    def status(self) -> ModelStatus:
        return self._engine.status()


@contextmanager
def _room() -> Iterator[asyncio.AbstractEventLoop]:
    """An ordinary event loop in a thread; what runs there has ended when the block is left."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="models")
    thread.start()

    async def ended() -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    try:
        yield loop
    finally:
        asyncio.run_coroutine_threadsafe(ended(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def replay(path: Path, config: Config, data: Path, speed: float) -> Replayed:
    """Play a recording into a new spool in `data`.

    Args:
        speed: at most so many times as fast as it was.

    Raises:
        RecordingError: the file is no recording.
        ConfigError: the config does not fit it.
        StoreError: there is a spool in `data` already, or the disk refused.
    """
    with Reading(path) as reading, closing(VirtualLoop(reading.meta.mono_ns, speed)) as loop:
        meta = reading.meta
        own = config_of(config, data)
        offset = meta.wall_offset_ns or 0  # 0 puts it before `gateway.clock.NOT_BEFORE_NS`: not known, as it was
        clock = Clock(
            mono=loop.mono_ns, wall=lambda: loop.mono_ns() + offset, error=lambda: meta.wall_error_ns, boot=meta.boot
        )
        player = Player(reading, own, clock)
        prepare(own.spool_path, hashlib.blake2b(reading.meta_bytes, digest_size=16).digest())
        with _room() as room, asyncio.Runner(loop_factory=lambda: loop) as runner:
            end, streams = runner.run(_play(own, clock, player, room))
        settle(own.spool_path)
        file = hashlib.sha256(own.spool_path.read_bytes()).hexdigest()
        seconds = round((end - meta.mono_ns) / 1e9, 3)
        return Replayed(
            str(own.spool_path), seconds, player.records, player.lost, player.lost_bytes, reading.ended, reading.unread,
            streams, digest(own.spool_path), file,
        )  # fmt: skip


def config_of(config: Config, data: Path) -> Config:
    """A config for a replay: nothing is sent or shown, nothing is deleted, commits follow the recording's time only."""
    store = msgspec.structs.replace(
        config.store, wear_gb_day=0.0, max_mib=1 << 20, ballast_mib=0, card_tbw=0.0, when_full="wait", stream=()
    )
    place = msgspec.structs.replace(config.gateway, data_dir=str(data.absolute()))
    return msgspec.structs.replace(config, gateway=place, store=store, uplink=(), panel=None)


async def _play(
    config: Config, clock: Clock, player: Player, room: asyncio.AbstractEventLoop
) -> tuple[int, dict[str, int]]:
    app = ReplayApp(config, clock, player)
    app.room = room
    refused: BaseException | None = None
    end = clock.mono_ns()
    settings = spool_settings(config.store, ())
    async with InlineSpool.open(config.spool_path, clock, notify=partial(app.notify, "spool"), **settings) as spool:
        app.spool = spool
        app.build(Remote(app, None, asyncio.Event()))
        try:
            async with asyncio.TaskGroup() as tasks:
                player.begin()
                app.start(tasks)
                end = await player.feed()
                raise _Through
        except* _Through:
            pass
        except* RecordingError as errors:
            refused = errors.exceptions[0]
    if refused is not None:
        raise refused
    if (stored := spool.status()).state != "ok":
        raise StoreError(f"{config.spool_path}: cannot store: {stored.detail}", hint="is its disk full?")
    return end, dict(spool.next_seq())


class _Through(Exception):
    """The recording is through; never leaves this module."""
