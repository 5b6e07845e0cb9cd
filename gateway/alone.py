"""Runs the sources of a config for a recording only: what they hand over counts as taken when the recording is on disk."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gateway.clock import Clock
from gateway.config import Config
from gateway.contract import Frame, Mark, Sample, Severity
from gateway.sources import make_source
from gateway.taps import RecordStatus, Taps

log = logging.getLogger("octogate")


class _Stopped(Exception):
    """Ends the task tree; never leaves `record_alone`."""


class AloneSink:
    """Keeps nothing: the bytes are in the recording. One for all sources."""

    wait_s = 0.02

    def __init__(self, taps: Taps) -> None:
        self._taps = taps
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._on_disk = 0

    def wrote(self, records: int) -> None:
        """Called in the recorder's thread."""
        self._loop.call_soon_threadsafe(self._wrote, records)

    def _wrote(self, records: int) -> None:
        self._on_disk += records
        while self._waiting and self._waiting[0][0] <= self._on_disk:
            future = self._waiting.popleft()[1]
            if not future.done():
                future.set_result(None)

    def samples(self, samples: Sequence[Sample], mark: Mark | None, since: float | None = None) -> asyncio.Future[None]:
        """Done when the bytes that they came from, which are recorded by now, are on disk."""
        needed = self._taps.status().records
        if not self._waiting or self._waiting[-1][0] != needed:
            self._waiting.append((needed, self._loop.create_future()))
        if needed <= self._on_disk:  # of a source whose bytes are not recorded
            self._loop.call_soon(self._wrote, 0)
        return self._waiting[-1][1]

    def frame(self, frame: Frame) -> None:
        """It is in the recording."""

    def event(self, name: str, state: str, severity: Severity, message: str, **detail: Any) -> None:
        log.info("%s %s: %s", name, state, message)


async def record_alone(config: Config, path: Path, names: Sequence[str], stop: asyncio.Event) -> RecordStatus:
    """Record until `stop` is set.

    Raises:
        ControlError: there is no such source.
        RecordingError: the file cannot be made.
    """
    taps, clock = Taps(config), Clock()
    sink = AloneSink(taps)
    taps.start(path, names, sink.wrote)
    try:
        async with asyncio.TaskGroup() as tasks:
            for table in config.source:
                if not names or table.name in names:
                    source = make_source(table, config, None, clock)
                    tasks.create_task(taps.run(source, sink), name=f"source {table.name}")
            await stop.wait()
            raise _Stopped
    except* _Stopped:
        pass
    finally:
        taps.close()
    return taps.status()
