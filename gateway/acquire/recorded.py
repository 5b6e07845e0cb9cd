"""A serial port that plays a recording back: the source above it is the real one, its time is the replay's.

Two ways to play, by kind of source. A device that speaks by itself (a node, a scale) is heard at the recorded times. A
device that answers (Modbus) is heard as long after a question as it took then, and only after that same question: the
schedule may differ a little from the recorded one, or a lot with another version of the code.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable

import msgspec

from gateway.acquire.port import SerialPort
from gateway.clock import Clock
from gateway.errors import SourceError
from gateway.recording import AGE, GONE, HEARD, OPENED, REFUSED, SAID, Record, Refusal

STALE_NS = 2 * 10**9  # a question that was asked then and is not asked now: what follows it is passed over
FORGET_NS = 60 * 10**9  # what was heard so long ago and no port is open for: memory is bounded


class RecordedLine:
    """What one source's port did, in order; hands out ports that do it again.

    Args:
        clock: the replay's.
        answers: the device only answers.

    Attributes:
        records: what lies ahead; filled by the replay with `put`, some seconds before it is due.
    """

    def __init__(self, name: str, clock: Clock, *, answers: bool) -> None:
        self.name = name
        self.clock = clock
        self.answers = answers
        self.records: deque[Record] = deque()
        self._plugged = False
        self._port: RecordedPort | None = None

    def put(self, record: Record) -> None:
        self.records.append(record)
        forgotten = self.clock.mono_ns() - FORGET_NS
        while self._port is None and self.records[0].mono_ns < forgotten:
            self.records.popleft()
        if self._port is not None and len(self.records) == 1:
            self._port.plan()

    def open(self, device: str, make: Callable[[], SerialPort]) -> SerialPort:
        """As it went then: the attempts are matched in their order, not by their time.

        Raises:
            SourceError: it could not be opened then, or was not there.
        """
        records = self.records
        while records and (records[0].kind in (GONE, SAID) or (not self._plugged and records[0].kind == HEARD)):
            if records.popleft().kind == GONE:
                self._plugged = False
        if records and records[0].kind == REFUSED:
            raise _refusal(records.popleft().body)
        if records and records[0].kind == OPENED:
            device = records.popleft().body.decode(errors="replace")
            self._plugged = True
        if not self._plugged:
            raise SourceError(f"cannot open {device}: it was not there in the recording")
        self._port = RecordedPort(device, self)
        return self._port

    def closed(self) -> None:
        self._port = None

    def lost(self) -> None:
        self._plugged = False


def _is_heard(record: Record) -> bool:
    return record.kind == HEARD


def _refusal(body: bytes) -> SourceError:
    try:
        refusal = msgspec.json.decode(body, type=Refusal)
    except msgspec.DecodeError as error:
        return SourceError(f"cannot open the port: the recording does not say why: {error}")
    return SourceError(refusal.what, hint=refusal.hint)


class RecordedPort(SerialPort):
    """A port without a device. What is written to it goes nowhere, and moves an answering device on."""

    def __init__(self, device: str, line: RecordedLine) -> None:  # a device there is not: not SerialPort's
        self.device = device
        self._line = line
        self._loop = asyncio.get_running_loop()
        self._chunks: list[bytes] = []
        self._size = 0
        self._taken_at = self._came_at = self.since = 0.0
        self._waiter: asyncio.Future[None] | None = None
        self._later: asyncio.TimerHandle | None = None  # of a dense stream: not here
        self._planned: asyncio.TimerHandle | None = None
        self._gone = ""
        self._poked = False
        self.paused = False
        self.ear = None
        self._shift_ns = 0
        self._asked = False
        self.plan()

    def write(self, line: bytes) -> None:
        if not self._line.answers:
            return
        ahead = self._line.records
        records = list(ahead)
        before_unplug = next((i for i, record in enumerate(records) if record.kind == GONE), len(records))
        asked = (i for i in range(before_unplug) if records[i].kind == SAID and records[i].body == line)
        if (at := next(asked, None)) is None:
            return
        after = at + 1
        while after < len(records) and records[after].kind == HEARD:
            after += 1
        ahead.clear()
        # its answer comes first; questions that were asked before it then may still be asked now
        ahead.extend(records[at + 1 : after])
        ahead.extend(itertools.dropwhile(_is_heard, records[:at] + records[after:]))
        self._shift_ns = self._line.clock.mono_ns() - records[at].mono_ns
        self._asked = True
        self.plan()

    def set_prompt(self, prompt: bool) -> None:
        """Nothing is timed here."""

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False
        self.plan()

    def close(self) -> None:
        self._end("closed")
        self._line.closed()

    def plan(self) -> None:
        """Set the timer for what comes next."""
        if self._planned is not None:
            self._planned.cancel()
            self._planned = None
        ahead = self._line.records
        while not self._line.answers and ahead and ahead[0].kind == SAID:
            ahead.popleft()
        if not ahead or self._gone or self.paused:
            return
        due = ahead[0].mono_ns
        if ahead[0].kind == HEARD and self._line.answers:
            due += self._shift_ns
        elif ahead[0].kind == SAID:
            due += STALE_NS
        self._planned = self._loop.call_at(due / 1e9, self._due)

    def _due(self) -> None:
        self._planned = None
        record = self._line.records.popleft()
        if record.kind == GONE:
            reason = record.body.decode(errors="replace")
            if reason != "closed":  # that was the source's own doing: it does so again, or it does not
                self._line.lost()
                self._end(reason)
        elif record.kind == SAID:  # not asked now: nor is its answer heard
            while self._line.records and _is_heard(self._line.records[0]):
                self._line.records.popleft()
        elif record.kind == HEARD and (not self._line.answers or self._asked):
            age_ns = AGE.unpack_from(record.body)[0] if len(record.body) >= AGE.size else 0
            if not self._chunks:
                self._came_at = max(0, self._line.clock.mono_ns() - age_ns) / 1e9
            self._chunks.append(record.body[AGE.size :])
            self._wake()
        self.plan()

    def _end(self, reason: str) -> None:
        if not self._gone:
            self._gone = reason
            if self._planned is not None:
                self._planned.cancel()
                self._planned = None
            self._wake()
