"""A MicroPython node on a serial line, as a source: docs/link.md is the protocol, `gateway.link` its codec.

What the node sent is acknowledged when it is on disk, never before; what was not acknowledged the node sends again
after an unplug or after a restart of either side, and the mark in the spool says where to go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from gateway.acquire.alarms import Alarms
from gateway.acquire.handed import Handed
from gateway.acquire.nodecommands import NodeCommands, Value
from gateway.acquire.nodewords import NodeWords
from gateway.acquire.port import SerialPort, open_port
from gateway.acquire.states import CALM, Health
from gateway.clock import Clock
from gateway.config import NodeSource as NodeConfig
from gateway.contract import Frame, Mark, Sample, Severity, Sink, SourceState, SourceStatus
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
        self._receiver = Receiver(config.name, config.picture_kib << 10)
        self._pictures = 0
        self._handed = Handed(mark, self._stored)
        self._overrun = 0  # readings lost and not told yet
        self._port: SerialPort | None = None
        self._hello: Hello | None = None  # of this connection
        self._asked = False  # HELLO was said and not answered yet
        self._health = Health(config.name)
        self._commands = NodeCommands()
        self._lines_seen = 0  # of the text that came between frames
        self._data_at = 0.0
        self._nak_at = 0.0
        self._hello_pause = HELLO_S[0]
        self._pings = 0

    # --- the source ------------------------------------------------------------------------------------------

    async def run(self, sink: Sink) -> None:
        """Reads until it is cancelled; whatever goes wrong with the line is said as events and tried again."""
        self._sink = sink
        self._loop = asyncio.get_running_loop()
        self._words = NodeWords(self._point, self._loop.time)
        pause = REOPEN_S[0]
        while True:
            try:
                await self._converse()
            except LinkError as error:
                self._turn(SourceState.FAILING, str(error))
                pause = REFUSED_S
            except SourceError as error:
                pause = REOPEN_S[0] if self._health.state in CALM else min(pause * 2, REOPEN_S[1])
                self._turn(SourceState.FAILING if self._handed.refused else SourceState.LOST, str(error))
            await asyncio.sleep(pause)

    def status(self) -> SourceStatus:
        receiver = self._receiver
        return SourceStatus(
            self.name,
            self.kind,
            self._health.state,
            self._health.detail,
            readings=receiver.readings,
            frames=receiver.frames,
            dropped=receiver.lost + receiver.pictures_lost,
            bad=receiver.bad,
            resent=receiver.resent,
            gaps=receiver.gaps,
        )

    async def write(self, metric: str, value: Value) -> None:
        """Set `<stream>/<channel>`, or whatever the node's program has a handler for; returns when it has done so.

        Raises:
            SourceError: the node is away, refused it, or did not answer.
        """
        if self._hello is None or self._port is None:
            raise SourceError(f"'{self.name}' is not there: {self._health.detail}", hint="try again when it is back")
        await self._commands.ask(metric, value, self._send)

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
            if self._handed.refused:  # it is still in the node's ring
                self._handed.again()
                self._times = NotBackwards({})
            self._hello, self._hello_pause = None, HELLO_S[0]
            self._data_at = self._loop.time()
            self._alarms.set("silent", self._config.silent_s)
            self._say_hello()
            while True:
                await port.wait()
                if chunk := port.take():
                    self._take(chunk)
                if self._handed.refused:
                    raise SourceError(f"the readings of '{self.name}' were not stored: {self._handed.refused}")
                for alarm in self._alarms.due():
                    self._rang(alarm)
        finally:
            port.close()
            self._port = None
            self._commands.drop("the line was cut")
            self._words.cut()
            self._alarms.close()
            self._receiver.stop()

    def _take(self, chunk: bytes) -> None:
        receiver = self._receiver
        samples = receiver.feed(chunk, self._node_clock.offset_ns)
        if new := receiver.deframer.said - self._lines_seen:
            self._lines_seen += new
            self._words.lines(self.log[-new:])
        for sample in samples:
            self._times.keep(sample)
        if samples or receiver.pictures:
            self._data_at = self._loop.time()
            if self._health.state is SourceState.SILENT:
                self._settle()
        if samples:
            self._pour(samples)
        elif not receiver.messages and not receiver.pictures:  # no frame at all: it may have stopped with a traceback
            self._words.tail(receiver.deframer.rest(), final=False)
        while receiver.pictures:
            self._show(*receiver.pictures.popleft())
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
        mark = self._handed.taken = Mark(self.name, self._hello.session, self._receiver.expected)
        self._handed.add(samples, self._sink.samples(samples, mark, self._port.since if self._port else None))
        if self._handed.bytes > UNSTORED_MAX and self._port is not None:
            self._port.pause()

    def _show(self, camera: str, us: int, picture: bytes) -> None:
        """A picture of one of the node's cameras, which is named as its streams are."""
        clock, uncertainty = self._node_clock, self.clock_uncertainty_ns
        stamp = self._clock.at(us * 1000 + clock.offset_ns, uncertainty)
        self._sink.frame(Frame(f"{self.name}/{camera}", self._pictures, stamp, picture))
        self._pictures += 1

    def _stored(self, mark: Mark | None) -> None:
        """Commits are done: acknowledge what they cover, the readings up to `mark`."""
        if self._port is None:
            return
        if mark and self._hello and self._hello.session == mark.session:
            self._send(Ack(mark.next_seq))
        if self._handed.refused:
            self._port.poke()
        if self._handed.bytes < UNSTORED_MAX // 2:
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
                text = message.text.decode(errors="replace")
                self._receiver.deframer.lines.append(text)
                self._words.log(message.level, text)
            case messages.Reply():
                self._commands.reply(message)
            case _:  # BLOB: the receiver puts pictures together
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
        if self._config.node and hello.node != self._config.node:
            raise LinkError(
                f"node '{hello.node}' is on {self._config.port}, where node '{self._config.node}' should be",
                hint="plug them in the other way round, or mend port or node in the config",
            )
        if self._hello and self._hello.session == hello.session and not self._asked:
            return  # said again; the dialogue is under way
        if not hello.asked:
            self._say_hello()
            return
        self._asked = False
        mark = self._handed.taken
        start = 0  # RESUME says where its ring begins, and what was overwritten
        if mark and mark.session == hello.session and mark.next_seq <= hello.next:
            start = mark.next_seq
        elif mark and mark.session != hello.session:
            self._commands.drop("it has started anew")
            self._point("source.restarted", Severity.WARNING, f"node '{hello.node}' has started anew")
            self._handed.taken = Mark(self.name, hello.session, start)
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
        if self._health.state is not SourceState.SILENT:  # that ends with data only
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
        self._words.tail(self._receiver.deframer.rest(), final=True)
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
        durable = self._handed.durable
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
        self._health.turn(self._sink, state, detail)

    def _point(self, name: str, severity: Severity, message: str, **detail: Any) -> None:
        self._sink.event(name, "point", severity, f"{self.name}: {message}", **detail)
