"""A MicroPython node on a serial line, as a source: docs/link.md is the protocol, `gateway.link` its codec.

What the node sent is acknowledged when it is on disk, never before; what was not acknowledged the node sends again
after an unplug or after a restart of either side, and the mark in the spool says where to go on.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from gateway.acquire.alarms import Alarms
from gateway.acquire.port import SerialPort, open_port
from gateway.clock import Clock
from gateway.config import NodeSource as NodeConfig
from gateway.contract import Mark, Sample, Severity, Sink, SourceState, SourceStatus
from gateway.errors import LinkError, SourceError
from gateway.link import framing, messages
from gateway.link.messages import Ack, Hello, Nak, Ping, Pong, Resume, SayHello
from gateway.link.nodeclock import NodeClock, NotBackwards
from gateway.link.receiver import Receiver

UNSTORED_MAX = 4 << 20  # bytes handed over and not yet on disk; past it the line is not read
REOPEN_S = (0.2, 5.0)  # first and longest pause before a port is opened again
REFUSED_S = 15.0  # pause when the node does not speak our protocol: somebody must update it
HELLO_S = (0.5, 5.0)  # first and longest pause before HELLO is said again
ANSWER_S = 0.5  # a NAK or a first PING unanswered for so long is said again
PINGS = 5  # round trips after HELLO, before data is asked for
PING_S = 30.0
TELL_S = 5.0  # losses and nonsense are told at most so often
_OVERHEAD = 18  # bytes a segment of a sample takes beside its records
_CALM = (SourceState.STARTING, SourceState.OK)


class _Group:
    """What one future of the store covers: the seq after it, and its bytes."""

    __slots__ = ("bytes", "future", "next_seq", "session")

    def __init__(self, future: asyncio.Future[None], session: int) -> None:
        self.future = future
        self.session = session
        self.next_seq = 0
        self.bytes = 0


class NodeSource:
    """A `gateway.contract.Source` for one node.

    Args:
        config: its table of the config file.
        mark: how far this source is on disk, or None for a new one.
        clock: this machine's clock.
        newest: stream -> time of its newest reading on disk, if that is of this boot.
    """

    kind = "node"

    def __init__(
        self, config: NodeConfig, mark: Mark | None, clock: Clock, newest: Mapping[str, int] = MappingProxyType({})
    ) -> None:
        self.name = config.name
        self._config = config
        self._clock = clock
        self._node_clock = NodeClock()
        self._times = NotBackwards(dict(newest))
        self._receiver = Receiver(config.name)
        self._durable = mark  # on disk
        self._taken = mark  # handed to the sink
        self._groups: deque[_Group] = deque()
        self._unstored = 0
        self._overrun = 0  # readings lost and not told yet
        self._refused = ""
        self._port: SerialPort | None = None
        self._hello: Hello | None = None  # of this connection
        self._asked = False  # HELLO was said and not answered yet
        self._state = SourceState.STARTING
        self._detail = ""
        self._data_at = 0.0
        self._nak_at = 0.0
        self._hello_pause = HELLO_S[0]
        self._pings = 0

    # --- the source ------------------------------------------------------------------------------------------

    async def run(self, sink: Sink) -> None:
        """Reads until it is cancelled; whatever goes wrong with the line is said as events and tried again."""
        self._sink = sink
        self._loop = asyncio.get_running_loop()
        pause = REOPEN_S[0]
        while True:
            try:
                await self._converse()
            except LinkError as error:
                self._turn(SourceState.FAILING, str(error))
                pause = REFUSED_S
            except SourceError as error:
                pause = REOPEN_S[0] if self._state in _CALM else min(pause * 2, REOPEN_S[1])
                self._turn(SourceState.FAILING if self._refused else SourceState.LOST, str(error))
            await asyncio.sleep(pause)

    def status(self) -> SourceStatus:
        receiver = self._receiver
        return SourceStatus(
            self.name,
            self.kind,
            self._state,
            self._detail,
            readings=receiver.readings,
            frames=receiver.frames,
            dropped=receiver.lost,
            bad=receiver.bad,
            resent=receiver.resent,
            gaps=receiver.gaps,
        )

    @property
    def log(self) -> Sequence[str]:
        """The newest lines that the node printed or logged."""
        return tuple(self._receiver.deframer.lines)

    @property
    def clock_uncertainty_ns(self) -> int:
        """How far a reading's time may be off."""
        return self._node_clock.uncertainty_ns(self._clock.mono_ns())

    def introduce(self) -> None:
        """Has the node say HELLO and go on from there: a recording that begins now begins with it."""
        if self._port:
            self._say_hello()

    # --- one connection --------------------------------------------------------------------------------------

    async def _converse(self) -> None:
        """From opening the port to losing it, which raises."""
        port = self._port = open_port(self._config.port, self._config.baud, self._sink.wait_s)
        self._alarms = Alarms(port.poke)
        try:
            if self._refused:  # what the store refused is still in the node's ring
                self._refused, self._taken = "", self._durable
                self._times = NotBackwards({})
            self._hello, self._hello_pause = None, HELLO_S[0]
            self._data_at = self._loop.time()
            self._alarms.set("silent", self._config.silent_s)
            self._say_hello()
            while True:
                await port.wait()
                if chunk := port.take():
                    self._take(chunk)
                if self._refused:
                    raise SourceError(f"the readings of '{self.name}' were not stored: {self._refused}")
                for alarm in self._alarms.due():
                    self._rang(alarm)
        finally:
            port.close()
            self._port = None
            self._alarms.close()
            self._receiver.stop()

    def _take(self, chunk: bytes) -> None:
        receiver = self._receiver
        samples = receiver.feed(chunk, self._node_clock.offset_ns)
        if samples:
            for sample in samples:
                self._times.keep(sample)
            self._data_at = self._loop.time()
            if self._state is SourceState.SILENT:
                self._settle()
            self._pour(samples)
        while receiver.messages:
            self._message(receiver.messages.popleft())
        if receiver.faults:
            if not self._alarms.is_set("fault"):
                self._point("source.fault", Severity.WARNING, str(receiver.faults[-1]))
                self._alarms.set("fault", TELL_S)
            receiver.faults.clear()
        if receiver.gap and self._loop.time() - self._nak_at > ANSWER_S:
            self._nak()

    def _pour(self, samples: list[Sample]) -> None:
        """Hands samples to the sink; they count as unstored until its future is done."""
        assert self._hello is not None
        mark = self._taken = Mark(self.name, self._hello.session, self._receiver.expected)
        future = self._sink.samples(samples, mark, self._port.since if self._port else None)
        group = self._groups[-1] if self._groups else None
        if group is None or group.future is not future or group.session != mark.session:
            group = _Group(future, mark.session)
            self._groups.append(group)
            future.add_done_callback(self._stored)
        group.next_seq = mark.next_seq
        size = sum(len(sample.data) + _OVERHEAD * len(sample.counts) for sample in samples)
        group.bytes += size
        self._unstored += size
        if self._unstored > UNSTORED_MAX and self._port is not None:
            self._port.pause()

    def _stored(self, future: asyncio.Future[None]) -> None:
        """A commit is done: acknowledge once what it covers, and nothing that came after a refused one."""
        while self._groups and self._groups[0].future.done():
            group = self._groups.popleft()
            self._unstored -= group.bytes
            if not self._refused:
                self._refused = _failure(group.future)
            if self._refused:
                continue
            self._durable = Mark(self.name, group.session, group.next_seq)
            if self._port and self._hello and self._hello.session == group.session:
                self._port.write(Ack(group.next_seq).to_line())
        if self._port:
            if self._refused:
                self._port.poke()
            if self._unstored < UNSTORED_MAX // 2:
                self._port.resume()

    # --- the dialogue ----------------------------------------------------------------------------------------

    def _message(self, message: messages.Message) -> None:
        match message:
            case Pong():
                self._pong(message)
            case Hello():
                self._greeted(message)
            case Resume():
                self._resumed(message)
            case messages.Log():
                self._receiver.deframer.lines.append(message.text.decode(errors="replace"))
            case _:  # BLOB and REPLY: nobody asked for one yet
                pass

    def _say_hello(self) -> None:
        self._asked = True
        self._send(SayHello())
        self._alarms.clear("resume")
        self._alarms.set("hello", self._hello_pause)
        self._hello_pause = min(self._hello_pause * 2, HELLO_S[1])

    def _greeted(self, hello: Hello) -> None:
        if framing.VERSION not in hello.versions:
            raise LinkError(
                f"node '{hello.node}' on {self._config.port} speaks link versions {list(hello.versions)}, "
                f"this gateway {framing.VERSION}",
                hint="update the node's firmware or the gateway",
            )
        if self._hello and self._hello.session == hello.session and not self._asked:
            return  # said again; the dialogue is under way
        if not hello.asked:
            self._say_hello()
            return
        self._asked = False
        mark = self._taken
        start = 0  # RESUME says where its ring begins, and what was overwritten
        if mark and mark.session == hello.session and mark.next_seq <= hello.next:
            start = mark.next_seq
        elif mark and mark.session != hello.session:
            self._point("source.restarted", Severity.WARNING, f"node '{hello.node}' has started anew")
            self._taken = Mark(self.name, hello.session, start)
        self._receiver.start(hello, start)
        self._node_clock.start(hello.us, self._clock.mono_ns())
        self._hello = hello
        self._alarms.clear("hello")
        self._alarms.set("resume", ANSWER_S)  # should no PONG come, data goes on with the clock of HELLO
        self._pings = PINGS
        self._ping()

    def _pong(self, pong: Pong) -> None:
        if not self._node_clock.pong(pong.nonce, pong.us, self._clock.mono_ns()):
            return
        if not self._pings:
            if self._port:
                self._port.set_prompt(False)
            return
        self._pings -= 1
        if self._pings:
            self._ping()
        else:
            self._nak()

    def _resumed(self, resume: Resume) -> None:
        if not self._receiver.ready or self._hello is None:
            return
        self._alarms.clear("resume")
        self._nak_at = 0.0  # a gap after this is a new one
        if self._port:
            self._port.set_prompt(False)
        self._data_at = self._loop.time()
        self._hello_pause = HELLO_S[0]
        self._alarms.set("ping", PING_S)
        if self._state is not SourceState.SILENT:  # that ends with data only
            self._settle()
        self._overrun += resume.lost_readings
        if self._overrun and not self._alarms.is_set("overrun"):
            self._overran()

    def _overran(self) -> None:
        """Tells what is gone, at most once in a while: a node that is always too fast shall not fill the spool."""
        lost, self._overrun = self._overrun, 0
        if lost and self._hello:
            self._alarms.set("overrun", TELL_S)
            what = f"node '{self._hello.node}' overwrote {lost} readings before they were taken"
            hint = "make its ring larger or its rate lower, or look for what holds up the line or the disk"
            self._point("source.overrun", Severity.ALARM, f"{what} ({hint})", readings=lost)

    def _rang(self, alarm: str) -> None:
        if alarm == "hello":
            self._say_hello()
        elif alarm == "resume":
            self._pings = 0
            self._nak()
        elif alarm == "ping":
            self._ping()
            self._alarms.set("ping", PING_S)
        elif alarm == "overrun":
            self._overran()
        elif alarm == "silent" and self._config.silent_s:
            left = self._data_at + self._config.silent_s - self._loop.time()
            if left <= 0 and self._port and not self._port.paused:
                self._fell_silent()
            self._alarms.set("silent", left if left > 0 else max(self._config.silent_s, PING_S))

    def _fell_silent(self) -> None:
        said = [*self.log, *self._receiver.deframer.rest().splitlines()]
        said = [line for line in said if len(line) > len(">>> ")]
        words = f"; it last printed: {said[-1]}" if said else ""
        if self._hello is None:
            what = f"no answer to HELLO on {self._config.port}: is the Octogate firmware on the node?{words}"
        else:
            what = f"no readings from node '{self._hello.node}' for {self._config.silent_s:g} s{words}"
        self._turn(SourceState.SILENT, what)
        self._say_hello()  # it may have restarted, or the line may have eaten what we said

    def _ping(self) -> None:
        if self._port:
            self._port.set_prompt(True)
        self._send(Ping(self._node_clock.ping(self._clock.mono_ns())))

    def _nak(self) -> None:
        """Says where to go on from; before it, what may be forgotten."""
        durable = self._durable
        if durable and self._hello and durable.session == self._hello.session:
            self._send(Ack(durable.next_seq))
        self._send(Nak(self._receiver.expected))
        self._nak_at = self._loop.time()
        self._alarms.set("resume", ANSWER_S)

    def _send(self, line: messages.Line) -> None:
        if self._port:
            self._port.write(line.to_line())

    # --- what the world sees ---------------------------------------------------------------------------------

    def _settle(self) -> None:
        if self._hello:
            self._turn(SourceState.OK, f"node '{self._hello.node}', firmware {self._hello.firmware}")

    def _turn(self, state: SourceState, detail: str) -> None:
        """A change of state is an event; its end is one too."""
        old, self._state, self._detail = self._state, state, detail
        if old is state:
            return
        if old not in _CALM:
            self._sink.event(f"source.{old}", "cleared", Severity.INFO, f"{self.name}: {detail}")
        if state not in _CALM:
            self._sink.event(f"source.{state}", "raised", Severity.WARNING, f"{self.name}: {detail}")

    def _point(self, name: str, severity: Severity, message: str, **detail: Any) -> None:
        self._sink.event(name, "point", severity, f"{self.name}: {message}", **detail)


def _failure(future: asyncio.Future[None]) -> str:
    """Why a commit did not happen; empty when it did."""
    if future.cancelled():
        return "the store was stopped"
    error = future.exception()
    return str(error) or type(error).__name__ if error else ""
