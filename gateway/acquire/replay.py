"""A camera that replays pictures from a folder: for demos, tests and development, and says so in its status."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from gateway.clock import Clock
from gateway.config import PicturesSource
from gateway.contract import Frame, Severity, Sink, SourceState, SourceStatus
from gateway.errors import SourceError

MEDIA = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png"}
MAX_PICTURE = 16 << 20
RETRY_S = 2.0


class PictureReplay:
    """Reads one picture a period, in the order of names, over and over when `loop` is set."""

    def __init__(self, table: PicturesSource, folder: Path, clock: Clock) -> None:
        self.name = table.name
        self._table = table
        self._folder = folder
        self._clock = clock
        self._state = SourceState.STARTING
        self._detail = ""
        self._frames = 0
        self._bad = 0

    async def run(self, sink: Sink) -> None:
        """Pour pictures until the folder is through (without `loop`), or for ever."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        numbers = count()
        while True:
            try:
                for path in self._pictures():
                    due = max(due + 1 / self._table.fps, loop.time() - 1.0)  # after a stall: no burst to catch up
                    await asyncio.sleep(due - loop.time())
                    self._pour(sink, path, next(numbers))
            except SourceError as error:
                self._fail(sink, str(error))
                await asyncio.sleep(RETRY_S)
                continue
            if not self._table.loop:
                self._state, self._detail = SourceState.SILENT, "every picture was shown"
                return

    def _pictures(self) -> Iterator[Path]:
        try:
            paths = sorted(path for path in self._folder.iterdir() if path.suffix.lower() in MEDIA)
        except OSError as error:
            raise SourceError(f"{self._folder}: cannot list '{self.name}': {error.strerror}") from error
        if not paths:
            raise SourceError(f"{self._folder}: no pictures for '{self.name}'", hint="put .jpg or .png files there")
        return iter(paths)

    def _pour(self, sink: Sink, path: Path, seq: int) -> None:
        try:
            with path.open("rb") as file:
                data = file.read(MAX_PICTURE + 1)
        except OSError as error:
            raise SourceError(f"{path}: cannot read it: {error.strerror}") from error
        if not data or len(data) > MAX_PICTURE:
            self._bad += 1
            return
        if self._state is SourceState.FAILING:
            sink.event("source.failing", "cleared", Severity.WARNING, f"{self.name}: pictures again")
        self._state, self._detail = SourceState.OK, f"replays {self._folder.name}/{path.name}"
        self._frames += 1
        sink.frame(Frame(self.name, seq, self._clock.now(), data, MEDIA[path.suffix.lower()]))

    def _fail(self, sink: Sink, message: str) -> None:
        if self._state is not SourceState.FAILING:
            sink.event("source.failing", "raised", Severity.WARNING, message)
        self._state, self._detail = SourceState.FAILING, message

    def status(self) -> SourceStatus:
        return SourceStatus(
            name=self.name, kind="pictures", state=self._state, detail=self._detail, frames=self._frames, bad=self._bad
        )
