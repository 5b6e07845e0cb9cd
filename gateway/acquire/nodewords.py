"""What a node says beside its readings: log lines and tracebacks become events, few enough not to fill the spool.

A program that prints is not an event: its lines are kept with the source, and shown when it falls silent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from gateway.contract import Severity

WARNING = 30  # as in Python's logging: from here on a line of the log is an event
AT_ONCE = 10  # events of a node that may come one after the other
EVERY_S = 5.0  # and then one in this time
FRAMES_KEPT = 20  # lines of a traceback that go into its event
_BEGIN = "Traceback (most recent call last):"

Point = Callable[..., None]  # name, severity, message, **detail: makes an event


class NodeWords:
    """Takes what a node says, in any pieces, and tells what a person should see.

    Args:
        point: makes an event.
        now: the time in seconds, monotonic.
    """

    def __init__(self, point: Point, now: Callable[[], float]) -> None:
        self._point = point
        self._now = now
        self._trace: list[str] | None = None  # a traceback that has begun
        self._told: list[str] = []  # the one that was told from the tail, and comes again when the tail is cut off
        self._room = float(AT_ONCE)
        self._at = now()
        self._unsaid = 0

    def log(self, level: int, text: str) -> None:
        """A LOG frame."""
        if level >= WARNING:
            self._tell("node.log", f"the node logs: {text}", level=level)

    def lines(self, lines: Iterable[str]) -> None:
        """Whole lines of text that came between frames."""
        for line in lines:
            self._line(line.strip())

    def tail(self, text: str, final: bool) -> None:
        """Text after the last frame, unfinished perhaps unless `final`: a node that has stopped ends no frame any more."""
        _, begin, rest = text.rpartition(_BEGIN)
        lines = [line.strip() for line in rest.splitlines() if line.strip()]
        trace = []
        for line in lines:
            trace.append(line)
            if not _is_frame(line):
                break
        if begin and trace and not _is_frame(trace[-1]) and (final or len(lines) > len(trace)) and trace != self._told:
            self._told = trace
            self._traceback(trace)

    def cut(self) -> None:
        """The line was cut: what was unfinished does not go on."""
        self._trace, self._told = None, []

    def _line(self, line: str) -> None:
        if line.endswith(_BEGIN):
            self._trace = []
        elif self._trace is not None and line:
            self._trace.append(line)
            if not _is_frame(line):
                trace, self._trace = self._trace, None
                if trace == self._told:
                    self._told = []
                else:
                    self._traceback(trace)
            elif len(self._trace) > 10 * FRAMES_KEPT:  # no traceback of a board is so deep
                self._trace = None

    def _traceback(self, trace: list[str]) -> None:
        where = f" ({trace[-2]})" if len(trace) > 1 else ""
        self._tell("node.traceback", f"the node's program failed: {trace[-1]}{where}", traceback=trace[-FRAMES_KEPT:])

    def _tell(self, name: str, message: str, **detail: object) -> None:
        now = self._now()
        self._room, self._at = min(AT_ONCE, self._room + (now - self._at) / EVERY_S), now
        if self._room < 1:
            self._unsaid += 1
            return
        self._room -= 1
        also, self._unsaid = (f"; {self._unsaid} more were not told" if self._unsaid else ""), 0
        self._point(name, Severity.WARNING, message + also, **detail)


def _is_frame(line: str) -> bool:
    return line.startswith('File "')
