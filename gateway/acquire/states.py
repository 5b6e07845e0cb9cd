"""How a source is: each change of its state is an event, and so is its end."""

from __future__ import annotations

from gateway.contract import Severity, Sink, SourceState

CALM = (SourceState.STARTING, SourceState.OK)


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
