"""A USB camera as a source: opened by its name, watched, and opened again when it left or fell silent."""

from __future__ import annotations

import asyncio

from gateway.acquire import v4l2
from gateway.acquire.alarms import Alarms
from gateway.acquire.capture import Capture
from gateway.acquire.states import Health, Silent, keep_open
from gateway.acquire.v4l2 import Kernel
from gateway.clock import Clock
from gateway.contract import Frame, Severity, Sink, SourceState, SourceStatus, Stamp
from gateway.source_tables import CameraSource as CameraConfig

REOPEN_S = (0.2, 5.0)  # first and longest pause before the device is opened again
UNFIT_S = 15.0  # pause when it cannot do what is asked: somebody must change the config or the camera


class CameraSource:
    """A `gateway.contract.Source` for one V4L2 device.

    Args:
        table: its table of the config file.
        device: the path, best one from /dev/v4l/by-id or by-path: /dev/video0 may be another camera after a replug.
        kernel: what is asked; tests give a simulation.
    """

    kind = "camera"

    def __init__(self, table: CameraConfig, device: str, clock: Clock, kernel: Kernel | None = None) -> None:
        self.name = table.name
        self._table = table
        self._device = device
        self._clock = clock
        self._kernel = kernel or v4l2.Linux()
        self._capture: Capture | None = None
        self._health = Health(table.name)
        self._frames = 0
        self._dropped = self._bad = 0  # of the captures before this one
        self._refused: list[str] = []  # as last told

    async def run(self, sink: Sink) -> None:
        """Pours pictures until it is cancelled; what goes wrong is said as events and tried again."""
        self._sink = sink
        await keep_open(self._health, sink, self._watch, REOPEN_S, UNFIT_S)

    def status(self) -> SourceStatus:
        dropped, bad = self._dropped, self._bad
        if self._capture is not None:
            dropped, bad = dropped + self._capture.dropped, bad + self._capture.bad
        health = self._health
        return SourceStatus(
            self.name, self.kind, health.state, health.detail, frames=self._frames, dropped=dropped, bad=bad
        )

    async def _watch(self) -> None:
        """From opening the device to losing it, which raises."""
        capture = self._capture = Capture(self._table, self._device, self._kernel, self._clock)
        alarms = Alarms(capture.poke)
        try:
            if capture.refused and capture.refused != self._refused:
                told = "; ".join(capture.refused)
                self._sink.event("source.fault", "point", Severity.WARNING, f"{self.name}: {self._device}: {told}")
            self._refused = capture.refused
            alarms.set("silent", self._table.silent_s)
            while True:
                if picture := await capture.picture():
                    self._pour(capture, *picture)
                if alarms.due():
                    alarms.set("silent", self._silent_in(capture))
        finally:
            alarms.close()
            capture.close()
            self._dropped, self._bad = self._dropped + capture.dropped, self._bad + capture.bad
            self._capture = None

    def _pour(self, capture: Capture, data: bytes, stamp: Stamp) -> None:
        if self._health.state is not SourceState.OK:
            got = capture.format
            rate = f", {capture.fps:g} fps" if capture.fps else ""
            self._health.turn(
                self._sink, SourceState.OK, f"{v4l2.code_name(got.code)} {got.width} x {got.height}{rate}"
            )
        self._sink.frame(Frame(self.name, self._frames, stamp, data, capture.media))
        self._frames += 1

    def _silent_in(self, capture: Capture) -> float:
        """Seconds until the camera counts as silent; it is opened again then, which brings many of them back."""
        left = capture.seen_at + self._table.silent_s - asyncio.get_running_loop().time()
        if left <= 0:
            raise Silent(
                f"{self._device}: no whole picture for {self._table.silent_s:g} s, {capture.bad} broken ones",
                hint="try another port or cable, or a smaller picture",
            )
        return left
