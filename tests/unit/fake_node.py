"""A node that does what the test tells it, on a pseudo terminal, and a sink that commits when the test says so."""

from __future__ import annotations

import asyncio
import os
import tty
from array import array
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gateway.acquire.node import NodeSource
from gateway.clock import Clock
from gateway.config import NodeSource as NodeConfig
from gateway.contract import Frame, Mark, Sample, Severity
from gateway.link import messages
from gateway.link.messages import (
    Ack,
    Command,
    Data,
    Hello,
    Line,
    Message,
    Nak,
    NodeStream,
    Ping,
    Pong,
    Resume,
    SayHello,
)

COUNTER = NodeStream(0, "count", (("n", "I", "1"),))


class Changes:
    """Lets tests wait until something is so, without a clock."""

    def __init__(self) -> None:
        self._waiters: list[asyncio.Future[None]] = []

    def tell(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def until(self, true: Callable[[], bool]) -> None:
        while not true():
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter


class FakeNode:
    """Answers HELLO, PING and NAK by itself; keeps what else it heard in `heard`."""

    def __init__(self, port: Path, *, session: int = 7, versions: tuple[int, ...] = (1,), name: str = "fake") -> None:
        self.port = port
        self.name = name
        self.session = session
        self.versions = versions
        self.frames: list[bytes] = []  # what it holds, by seq
        self.oldest = 0
        self.lost = (0, 0)
        self.deaf: set[int] = set()  # frames that get lost, once each
        self.deaf_to_naks = 0  # so many are not answered
        self.mute = False
        self.heard: list[Line] = []
        self._changes = Changes()
        self._line = b""
        self._fds: tuple[int, int] | None = None

    def __enter__(self) -> Self:
        self.plug()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.unplug()

    def plug(self) -> None:
        master, slave = os.openpty()
        tty.setraw(slave)
        os.set_blocking(master, False)
        self._fds = master, slave
        asyncio.get_running_loop().add_reader(master, self._read)
        self.port.symlink_to(os.ttyname(slave))

    def unplug(self) -> None:
        if self._fds:
            self.port.unlink()
            asyncio.get_running_loop().remove_reader(self._fds[0])
            for fd in self._fds:
                os.close(fd)
            self._fds = None

    def say(self, message: Message, seq: int = 0, us: int = 0) -> None:
        self.write(messages.encode(message, seq, us))

    def write(self, wire: bytes) -> None:
        if self._fds:
            os.write(self._fds[0], wire)

    def count_to(self, end: int) -> None:
        """Makes and sends frames of one reading, which is its seq, up to `end`."""
        for seq in range(len(self.frames), end):
            frame = messages.encode(Data(0, 10, array("I", [seq]).tobytes()), seq, seq * 1000)
            self.frames.append(frame)
            self._send(seq)

    def hello(self) -> None:
        if not self.mute:
            self.say(
                Hello(
                    self.versions, self.name, self.session, "0.0", self.oldest, len(self.frames), 10**6, (COUNTER,), 256
                )
            )

    async def asked(self, times: int = 1) -> Command:
        """The newest command, when it has come so often."""
        await self._changes.until(lambda: sum(isinstance(line, Command) for line in self.heard) >= times)
        return [line for line in self.heard if isinstance(line, Command)][-1]

    async def hears(self, line: Line, times: int = 1) -> None:
        await self._changes.until(lambda: self.heard.count(line) >= times)

    def _send(self, seq: int) -> None:
        if seq in self.deaf:
            self.deaf.discard(seq)
        else:
            self.write(self.frames[seq])

    def _read(self) -> None:
        assert self._fds
        *lines, self._line = (self._line + os.read(self._fds[0], 65536)).split(b"\n")
        for line in map(messages.parse_line, lines):
            self.heard.append(line)
            match line:
                case SayHello():
                    self.hello()
                case Ping():
                    self.say(Pong(line.nonce, 10**6, len(self.frames)))
                case Nak() if self.deaf_to_naks:
                    self.deaf_to_naks -= 1
                case Nak():
                    first = max(line.seq, self.oldest)
                    self.say(Resume(first, first * 1000, *self.lost))
                    for seq in range(first, len(self.frames)):
                        self._send(seq)
                case Ack() if line.seq <= len(self.frames):  # else meant for an earlier session
                    self.oldest = max(self.oldest, line.seq)
        self._changes.tell()


class FakeSink:
    """Keeps what it is given; commits at once, or when `commit` is called if `held`."""

    wait_s = 0.02

    def __init__(self, *, held: bool = False, raw: bool = False) -> None:
        self.values: list[int] = []  # the counter's; what `raw` brings is not one
        self.raw = bytearray()
        self.streams: set[str] = set()
        self.firsts: list[int] = []
        self.marks: list[Mark] = []
        self.events: list[tuple[str, str, dict[str, Any]]] = []
        self.held = held
        self._raw = raw
        self._changes = Changes()
        self._group: asyncio.Future[None] | None = None

    def samples(self, samples: Sequence[Sample], mark: Mark | None, since: float | None = None) -> asyncio.Future[None]:
        for sample in samples:
            self.streams.add(sample.stream)
            self.firsts.extend(sample.firsts)
            self.values.extend(array("I", sample.data) if not self._raw else range(sample.n))
            if self._raw:
                self.raw += sample.data
        assert mark
        self.marks.append(mark)
        if self._group is None:
            self._group = asyncio.get_running_loop().create_future()
        group = self._group
        if not self.held:
            self.commit()
        self._changes.tell()
        return group

    def commit(self, error: Exception | None = None) -> None:
        group, self._group = self._group, None
        assert group
        if error:
            group.set_exception(error)
        else:
            group.set_result(None)

    def frame(self, frame: Frame) -> None:
        raise AssertionError("a node of readings gave a picture")

    def event(self, name: str, state: str, severity: Severity, message: str, **detail: Any) -> None:
        self.events.append((name, state, {"message": message, **detail}))
        self._changes.tell()

    def names(self) -> list[tuple[str, str]]:
        return [event[:2] for event in self.events]

    async def has(self, values: int) -> None:
        await self._changes.until(lambda: len(self.values) >= values)

    async def saw(self, name: str, state: str, times: int = 1) -> None:
        await self._changes.until(lambda: self.names().count((name, state)) >= times)


@asynccontextmanager
async def running(
    port: Path | str,
    sink: FakeSink,
    mark: Mark | None = None,
    *,
    silent_s: float = 5.0,
    node: str = "",
    patience_s: float = 20,
) -> AsyncIterator[NodeSource]:
    """A `NodeSource` that runs as long as the block, at most `patience_s`."""
    source = NodeSource(NodeConfig(name="m", port=str(port), silent_s=silent_s, node=node), mark, Clock())
    async with asyncio.timeout(patience_s), asyncio.TaskGroup() as tasks:
        task = tasks.create_task(source.run(sink), name="source")
        try:
            yield source
        finally:
            task.cancel()
