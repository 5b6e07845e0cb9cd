"""A child process of the daemon: started, watched by pidfd, killed and reaped without threads or blocking.

asyncio's own subprocesses need a child watcher (a thread each on Python 3.11); a pidfd is one more descriptor in
the loop's epoll set. Linux only.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

_TAIL_BYTES = 4096
_PR_SET_PDEATHSIG = 1


def python_module(module: str, *args: str) -> list[str]:
    """The command line that runs one of our modules with this interpreter."""
    # -P: what lies in the working directory must not shadow a module
    return [sys.executable, "-P", "-m", module, *args]


def python_env(**more: str) -> dict[str, str]:
    """This environment, made so that a child finds the same packages, plus `more`."""
    env = {**os.environ, **more}
    root = Path(__file__).absolute().parent.parent
    if root.name not in ("site-packages", "dist-packages"):  # a checkout; an installed one is found anyway
        inherited = env.get("PYTHONPATH", "")
        env["PYTHONPATH"] = f"{root}{os.pathsep}{inherited}" if inherited else str(root)
    return env


def ended(status: int) -> str:
    """How a process ended, from its exit status as `Child.wait` gives it."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"ended by {signal.Signals(-status).name}"
    except ValueError:  # a real-time signal
        return f"ended by signal {-status}"


def die_with_parent(parent: int) -> None:
    """Called in a child: the kernel ends it (SIGKILL) when the process `parent` ends, however that ends.

    Exits at once when the parent is already gone.
    """
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    if os.getppid() != parent:  # it ended before prctl: no signal will come
        raise SystemExit(1)


class Child:
    """One process from start to end. Not restartable: make a new one.

    As an async context manager it is started on entry, killed and reaped on exit.

    Args:
        argv: the command line; see `python_module`.
        env: the whole environment, or None to inherit ours.
        pass_fds: descriptors the child keeps, under the same numbers; the caller closes its own copies.
        nice: added to its niceness (0 to 19).
        capture_stderr: keep the last lines of its standard error for `tail`; else it shares ours.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
        nice: int = 0,
        capture_stderr: bool = False,
    ) -> None:
        self._argv = list(argv)
        self._env = env
        self._pass_fds = tuple(pass_fds)
        self._nice = nice
        self._capture = capture_stderr
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._stderr = -1
        self._tail = bytearray()
        self._ended: asyncio.Future[int] | None = None

    @property
    def pid(self) -> int:
        """The process id; 0 before `start`."""
        return self._process.pid if self._process else 0

    @property
    def running(self) -> bool:
        return self._ended is not None and not self._ended.done()

    @property
    def returncode(self) -> int | None:
        """Its exit status, minus the number of the signal that ended it; None while it runs."""
        return self._process.returncode if self._process else None

    def start(self) -> None:
        """Start it; needs a running loop.

        Raises:
            OSError: the program cannot be executed.
        """
        loop = asyncio.get_running_loop()
        self._process = subprocess.Popen(
            self._argv,
            env=self._env,
            pass_fds=self._pass_fds,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE if self._capture else None,
        )
        self._ended = loop.create_future()
        self._pidfd = os.pidfd_open(self._process.pid)
        loop.add_reader(self._pidfd, self._reap)
        if self._nice:
            # from here and not between fork and exec: preexec_fn would cost the cheap vfork
            nice = min(19, os.getpriority(os.PRIO_PROCESS, 0) + self._nice)
            os.setpriority(os.PRIO_PROCESS, self._process.pid, nice)
        if self._process.stderr:
            self._stderr = self._process.stderr.fileno()
            os.set_blocking(self._stderr, False)
            loop.add_reader(self._stderr, self._read_stderr)

    async def wait(self) -> int:
        """Its exit status once it has ended; minus the signal's number when a signal ended it."""
        if self._ended is None:
            raise RuntimeError("the child was not started")
        return await asyncio.shield(self._ended)

    def send_signal(self, number: signal.Signals) -> None:
        """Signal it; nothing when it has ended."""
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        """SIGKILL, which ends a stopped process too; `wait` says when it is gone."""
        self.send_signal(signal.SIGKILL)

    async def stop(self, grace_s: float) -> int:
        """SIGTERM, then SIGKILL after `grace_s` seconds; its exit status."""
        self.send_signal(signal.SIGTERM)
        try:
            return await asyncio.wait_for(self.wait(), grace_s)
        except TimeoutError:
            self.kill()
            return await self.wait()

    def tail(self) -> str:
        """The last lines it wrote to standard error, at most 4 kB."""
        return self._tail.decode(errors="replace").strip()

    async def __aenter__(self) -> Child:
        self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        await self.wait()

    def _reap(self) -> None:
        """The pidfd became readable: the process has ended and waits to be reaped."""
        assert self._process is not None and self._ended is not None
        status = self._process.poll()
        if status is None:
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        if self._stderr >= 0:
            self._read_stderr()
            self._close_stderr()
        if not self._ended.done():
            self._ended.set_result(status)

    def _read_stderr(self) -> None:
        # one bounded read a call: a child that floods the pipe must not hold the loop
        try:
            data = os.read(self._stderr, 65536)
        except BlockingIOError:
            return
        if not data:
            self._close_stderr()
            return
        self._tail += data
        del self._tail[:-_TAIL_BYTES]

    def _close_stderr(self) -> None:
        if self._stderr < 0:
            return
        assert self._process is not None and self._process.stderr is not None
        asyncio.get_running_loop().remove_reader(self._stderr)
        self._process.stderr.close()
        self._stderr = -1


class TalkingChild(ABC):
    """A child at the other end of a SOCK_SEQPACKET pair: subclasses start it on entry; on exit it is killed and reaped.

    Args:
        gone_s: how long its end is waited for: one in an uninterruptible call may die late, or never.
    """

    def __init__(self, gone_s: float) -> None:
        self._gone_s = gone_s
        self._socket: socket.socket | None = None
        self.child = Child(())  # replaced at entry

    def listen(self, ours: socket.socket) -> None:
        """From now on `_readable` is called for what it says."""
        ours.setblocking(False)
        self._socket = ours
        asyncio.get_running_loop().add_reader(ours, self._readable)

    def close(self) -> None:
        """Hear nothing more of it; what it still says is lost."""
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None

    async def reaped(self) -> None:
        """Until it has ended, or is given up."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.child.wait(), self._gone_s)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        self.child.kill()
        try:
            await self.reaped()
        except asyncio.CancelledError:  # everything ends: what was killed is reaped all the same
            await self.reaped()
            raise

    @abstractmethod
    def _readable(self) -> None:
        """Take one packet by `_receive`."""

    def _receive(self, packet: memoryview) -> int | None:
        """Bytes of its next packet; 0 when it has closed its side, None when there is none yet."""
        assert self._socket is not None
        try:
            return self._socket.recv_into(packet)
        except (BlockingIOError, ConnectionResetError):
            # a reset is told once, before all else, when it ended with packets unread; what it said last is still to come
            return None
