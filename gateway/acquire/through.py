"""Where a source's port comes from: the seam at which a recording listens, and at which a replay plays it back.

Set in the context of the task that runs the source (`gateway.taps`, `gateway.replay`); without it a port is a port.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from gateway.acquire.port import SerialPort


class Ear(Protocol):
    """Who is told what passes through a port. Times are of the event loop, seconds."""

    def heard(self, data: bytes, since: float) -> None: ...
    def said(self, data: bytes) -> None: ...
    def gone(self, reason: str) -> None: ...


class Opener(Protocol):
    """Opens a port in place of the source; `make` opens the real one."""

    def open(self, device: str, make: Callable[[], SerialPort]) -> SerialPort: ...


through: ContextVar[Opener | None] = ContextVar("through", default=None)
