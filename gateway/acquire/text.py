"""Sensors that send lines of text over serial, as a source: scales, GNSS receivers, scanners, anything with commas.

Numbers become readings, dated when their line was complete; a line with text in it (a barcode) is an event, as readings
are numbers. A sensor that only speaks when asked is asked every `poll_s`.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Sequence

from gateway.acquire.alarms import Alarms
from gateway.acquire.pattern import Match, Pattern
from gateway.acquire.port import SerialPort, open_port
from gateway.acquire.states import Health, keep_open
from gateway.acquire.textlines import LineReader
from gateway.acquire.unstored import Unstored
from gateway.clock import Clock
from gateway.contract import Sample, Schema, Severity, Sink, SourceState, SourceStatus
from gateway.source_tables import TextSource as TextTable

REOPEN_S = (0.2, 5.0)  # first and longest pause before the port is opened again
UNSTORED_MAX = 10_000  # readings handed over and not on disk; past it the port is not read
EVENTS_S = 20  # lines with text that are told in one second; a line gone mad shall not fill the spool


class TextSource:
    """A `gateway.contract.Source` for one port.

    Args:
        table: its table of the config file, the port made absolute.
        clock: this machine's clock.
    """

    kind = "text"

    def __init__(self, table: TextTable, clock: Clock) -> None:
        self.name = table.name
        self._table = table
        self._clock = clock
        self._patterns = [Pattern(line.pattern) for line in table.line]
        self._reader = LineReader(self._patterns, nmea=table.checksum == "nmea")
        self._health = Health(table.name)
        self._unstored = Unstored(UNSTORED_MAX, self._stored)
        self._port: SerialPort | None = None
        self._lines = self._readings = self._dropped = 0
        self._good_at = 0.0
        self._poll_at = 0.0
        self._second, self._told = 0, 0

    async def run(self, sink: Sink) -> None:
        """Reads until it is cancelled; a sensor that goes away is opened again when it is back."""
        self._sink = sink
        self._loop = asyncio.get_running_loop()
        await keep_open(self._health, sink, self._converse, REOPEN_S)

    def status(self) -> SourceStatus:
        return SourceStatus(
            self.name,
            self.kind,
            self._health.state,
            self._health.detail,
            readings=self._readings,
            frames=self._lines,
            dropped=self._dropped,
            bad=self._reader.bad,
            bad_lines=tuple(self._reader.bad_lines),
        )

    # --- one connection --------------------------------------------------------------------------------------

    async def _converse(self) -> None:
        """From opening the port to losing it, which raises."""
        table = self._table
        port = self._port = open_port(
            table.port,
            table.baud,
            self._sink.wait_s,
            parity=table.parity,
            data_bits=table.data_bits,
            stop_bits=table.stop_bits,
        )
        self._alarms = Alarms(port.poke)
        try:
            self._reader.clear()
            self._good_at = self._poll_at = self._loop.time()
            if table.silent_s:
                self._alarms.set("silent", table.silent_s)
            else:
                self._settle()  # a scanner: silence is its normal state
            if table.poll:
                self._poll(port)
            while True:
                await port.wait()
                if chunk := port.take():
                    self._take(chunk)
                for alarm in self._alarms.due():
                    if alarm == "poll":
                        self._poll(port)
                    else:
                        self._look()
        finally:
            self._port = None
            port.close()
            self._alarms.close()

    def _take(self, chunk: bytes) -> None:
        matches = self._reader.feed(chunk)
        if not matches:
            return
        now_ns = self._clock.mono_ns()
        self._good_at = self._loop.time()
        self._lines += len(matches)
        self._settle()
        records: dict[str, tuple[Schema, list[bytes]]] = {}
        for i, match in matches:
            pattern, stream = self._patterns[i], self._table.line[i].stream
            if pattern.schema is not None:
                records.setdefault(stream, (pattern.schema, []))[1].append(pattern.record(match))
            if pattern.texts:
                self._tell(pattern, stream, match)
        if samples := [self._sample(stream, *found, now_ns) for stream, found in records.items()]:
            taken = sum(sample.n for sample in samples)
            self._readings += taken
            self._unstored.add(self._sink.samples(samples, None), taken)
            if self._unstored.full and self._port is not None:
                self._port.pause()

    def _sample(self, stream: str, schema: Schema, records: Sequence[bytes], now_ns: int) -> Sample:
        n = len(records)
        times = array("q", (now_ns,)) * n, array("q", (0,)) * n, array("H", (1,)) * n
        return Sample(f"{self.name}/{stream}", schema, *times, b"".join(records))

    def _tell(self, pattern: Pattern, stream: str, match: Match) -> None:
        second = int(self._loop.time())
        if second != self._second:
            self._second, self._told = second, 0
        if self._told >= EVENTS_S:
            self._dropped += 1
            return
        self._told += 1
        words = ", ".join(str(match[name]) for name in pattern.texts)
        self._sink.event("text.read", "point", Severity.INFO, f"{self.name}: {words}", line=stream, fields=match)

    def _poll(self, port: SerialPort) -> None:
        port.write(self._table.poll.encode("latin-1"))
        now = self._loop.time()
        self._poll_at = max(self._poll_at + self._table.poll_s, now)  # on its beat, without catching up
        self._alarms.set("poll", self._poll_at - now)

    # --- how it is -------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        if self._health.state is not SourceState.OK:
            self._health.turn(self._sink, SourceState.OK, f"reads {self._port.device if self._port else ''}")

    def _look(self) -> None:
        """The time for a line to come may be over."""
        left = self._good_at + self._table.silent_s - self._loop.time()
        if left <= 0 and self._port is not None and not self._port.paused:
            newest = f"; the newest bad line: {self._reader.bad_lines[-1]}" if self._reader.bad_lines else ""
            what = f"no good line on {self._port.device} for {self._table.silent_s:g} s{newest}"
            self._health.turn(self._sink, SourceState.SILENT, what)
        self._alarms.set("silent", left if left > 0 else self._table.silent_s)

    def _stored(self) -> None:
        if self._port is not None and self._port.paused and self._unstored.count < UNSTORED_MAX // 2:
            self._port.resume()
