"""How a source is: each change of its state is an event, and so is its end; what was lost is opened again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from gateway.contract import Severity, Sink, SourceState
from gateway.errors import SourceError

CALM = (SourceState.STARTING, SourceState.OK)


class Silent(SourceError):
    """It is there and gives nothing."""


class Unfit(SourceError):
    """It cannot do what the config asks for before somebody mends something."""


class Health:
    """The state of one source, told to its sink as it changes.

    Attributes:
        state, detail: as in `SourceStatus`.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self.state = SourceState.STARTING
        self.detail = ""

    def turn(self, sink: Sink, state: SourceState, detail: str) -> None:
        old, self.state, self.detail = self.state, state, detail
        if old is state:
            return
        if old not in CALM:
            sink.event(f"source.{old}", "cleared", Severity.INFO, f"{self._name}: {detail}")
        if state not in CALM:
            sink.event(f"source.{state}", "raised", Severity.WARNING, f"{self._name}: {detail}")


async def keep_open(
    health: Health, sink: Sink, watch: Callable[[], Awaitable[None]], pauses: tuple[float, float], unfit_s: float = 0.0
) -> None:
    """Run `watch`, which opens a source and raises `SourceError` when it is lost, again and again until cancelled.

    Args:
        pauses: first and longest pause before it is opened again, which doubles; the first again once it was well.
        unfit_s: the pause after `Unfit`.
    """
    pause = pauses[0]
    while True:
        try:
            await watch()
        except SourceError as error:
            pause = pauses[0] if health.state in CALM else min(pause * 2, pauses[1])
            state = SourceState.LOST
            if isinstance(error, Silent):
                state = SourceState.SILENT
            elif isinstance(error, Unfit):
                state, pause = SourceState.FAILING, unfit_s
            health.turn(sink, state, str(error))
        await asyncio.sleep(pause)
