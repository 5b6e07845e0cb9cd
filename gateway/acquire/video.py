"""A video stream (RTSP, HTTP) or file as a source: a child process reads it, this side watches, kills and starts again.

The daemon takes JPEGs out of shared memory and nothing else; a call into FFmpeg that hangs is ended by SIGKILL when the
child has said nothing for `silent_s`.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import mmap
import os
import socket
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from urllib.parse import quote

import msgspec

from gateway.acquire import videowire
from gateway.acquire.states import Health, Silent, Unfit, keep_open
from gateway.acquire.videowire import SLOTS, Kind, Setup, Told
from gateway.child import Child, TalkingChild, python_env, python_module
from gateway.clock import Clock
from gateway.contract import Frame, Sink, SourceState, SourceStatus
from gateway.errors import SourceError
from gateway.source_tables import VideoSource as VideoConfig

AGAIN_S = (0.5, 30.0)  # first and longest pause before the next child
UNFIT_S = 60.0  # pause when there cannot be a picture: somebody must mend something
NICE = 10  # acquisition goes first
_GONE_S = 1.0  # a process in an uninterruptible call dies late: its successor does not wait for it
_WAITING = 16  # packets taken from the socket and not looked at


class _Through(Exception):
    """A file that is shown once has been shown."""


class VideoSource:
    """A `gateway.contract.Source` for one stream or file.

    Args:
        table: its table of the config file.
        url: its url, or the path of a file.
        password: for the url, with `table.username`; may be empty.
        command: the child's command line, for other children than ours.
    """

    kind = "video"

    def __init__(
        self, table: VideoConfig, url: str, clock: Clock, password: str = "", command: Sequence[str] | None = None
    ) -> None:
        self.name = table.name
        self._table = table
        self._url = with_login(url, table.username, password)
        self._shown = table.url  # as in the config: never with the password
        self._clock = clock
        self._command = list(command or python_module("gateway.acquire.videochild"))
        self._health = Health(table.name)
        self._frames = 0
        self._before = (0, 0)  # dropped and bad of the children before this one
        self._dropped = self._bad = 0

    async def run(self, sink: Sink) -> None:
        """Pours pictures until it is cancelled, or a file that is shown once is through."""
        self._sink = sink
        try:
            await keep_open(self._health, sink, self._watch, AGAIN_S, UNFIT_S)
        except _Through:
            self._health.turn(sink, SourceState.SILENT, "every picture was shown")

    def status(self) -> SourceStatus:
        dropped, bad = self._before
        return SourceStatus(
            self.name,
            self.kind,
            self._health.state,
            self._health.detail,
            frames=self._frames,
            dropped=dropped + self._dropped,
            bad=bad + self._bad,
        )

    async def _watch(self) -> None:
        """One child from start to end, which raises."""
        table = self._table
        setup = Setup(
            url=self._url, fps=table.fps, transport=table.transport, loop=table.loop,
            parent=os.getpid(), memory=-1, slot_bytes=table.picture_kib << 10,
        )  # fmt: skip
        what = ""
        try:
            async with VideoProcess(self._command, setup) as child:
                while True:
                    try:
                        async with asyncio.timeout(table.silent_s):
                            told, data = await child.told()
                    except TimeoutError as error:
                        raise Silent(
                            f"{self._shown}: nothing came for {table.silent_s:g} s; its reader was killed",
                            hint="is the camera overloaded, or the network?",
                        ) from error
                    if told.kind is Kind.OPENED:
                        what = told.text
                    self._take(told, data, what)
        finally:
            self._before = (self._before[0] + self._dropped, self._before[1] + self._bad)
            self._dropped = self._bad = 0

    def _take(self, told: Told, data: bytes, what: str) -> None:
        if told.kind is Kind.ENDED and not self._table.loop and "://" not in self._table.url:
            raise _Through
        if told.kind is Kind.ENDED:
            raise SourceError(f"{self._shown}: the stream has ended")
        if told.kind is Kind.UNUSABLE:
            raise Unfit(f"{self._shown}: {told.text}")
        if told.kind is Kind.FAULT:
            raise SourceError(f"{self._shown}: {told.text}", hint="is it on, is its address right, and its password?")
        if told.kind in (Kind.PICTURE, Kind.ALIVE):
            self._dropped, self._bad = told.dropped, told.bad
        if told.kind is Kind.PICTURE:
            if self._health.state is not SourceState.OK:
                self._health.turn(self._sink, SourceState.OK, what)
            self._sink.frame(Frame(self.name, self._frames, self._clock.at(told.mono_ns), data))
            self._frames += 1


class VideoProcess(TalkingChild):
    """The child and its shared memory; started on entry, killed on exit."""

    def __init__(self, argv: Sequence[str], setup: Setup) -> None:
        super().__init__(_GONE_S)
        self._argv = list(argv)
        self._setup = setup
        self._packet = memoryview(bytearray(videowire.PACKET_MAX))
        self._waiting: deque[tuple[Told, bytes]] = deque(maxlen=_WAITING)
        self._waiter: asyncio.Future[None] | None = None
        self._why = ""

    async def told(self) -> tuple[Told, bytes]:
        """The next packet, with the picture if it brings one.

        Raises:
            SourceError: the child is gone and all it said was taken.
        """
        while not self._waiting:
            if self._socket is None:
                await self.reaped()  # its exit status is worth a moment
                said = self.child.tail().splitlines()
                how = self._why or f"exit status {self.child.returncode}"
                raise SourceError(f"the reader of the video ended: {how}" + (f": {said[-1][:300]}" if said else ""))
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._waiting.popleft()

    async def __aenter__(self) -> VideoProcess:
        size = SLOTS * self._setup.slot_bytes
        memory = os.memfd_create("octogate-video", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            os.ftruncate(memory, size)
            fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            self._map = mmap.mmap(memory, size, prot=mmap.PROT_READ)
            setup = msgspec.structs.replace(self._setup, memory=memory)
            self.child = Child(
                [*self._argv, str(theirs.fileno())],
                env=python_env(),
                pass_fds=(theirs.fileno(), memory),
                nice=NICE,
                capture_stderr=True,
            )
            self.child.start()
            ours.send(msgspec.json.encode(setup))
        except OSError as error:
            ours.close()
            raise SourceError(f"cannot start the reader of a video: {error.strerror}") from error
        finally:
            theirs.close()
            os.close(memory)
        self.listen(ours)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await super().__aexit__(kind, error, trace)
        finally:
            self._map.close()

    def _readable(self) -> None:
        n = self._receive(self._packet)
        if n is None:
            return
        if n:
            try:
                told = videowire.unpack(bytes(self._packet[:n]), self._setup.slot_bytes)
            except videowire.Mismatch as error:
                self._why = f"it sent {error}"
                self.close()
            else:
                self._waiting.append((told, self._copied(told)))
        else:
            self.close()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _copied(self, told: Told) -> bytes:
        """The picture, once copied; its slot goes back."""
        if told.kind is not Kind.PICTURE or self._socket is None:
            return b""
        at = told.slot * self._setup.slot_bytes
        data = self._map[at : at + told.size]
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            self._socket.send(bytes([told.slot]))
        return data


def with_login(url: str, username: str, password: str) -> str:
    """The url with user and password in it, as FFmpeg wants them."""
    scheme, sep, rest = url.partition("://")
    if not username or not sep:
        return url
    return f"{scheme}://{quote(username, safe='')}:{quote(password, safe='')}@{rest}"
