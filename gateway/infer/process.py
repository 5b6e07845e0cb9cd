"""One worker process as the engine sees it: a child, a socket of packets, and shared memory for large inputs."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import socket
from collections.abc import Callable, Sequence
from types import TracebackType

import msgspec

from gateway.child import Child, TalkingChild, python_env
from gateway.errors import ModelError
from gateway.infer import wire

# glibc's allocator, in the worker: keep the memory of a decoded picture for the next one. Given back and faulted in
# again for each frame (1300 page faults at 1280 x 720) it doubles the time of a frame.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(128 << 20)}
_GONE_S = 5.0  # a process in an uninterruptible device call may die late, or never: the end does not wait for that


class SharedMemory:
    """Anonymous memory that a worker maps too, for inputs that do not fit a packet; a context manager.

    Sealed: nobody can shrink it under the other's mapping. Pages cost nothing until they are written.
    """

    def __init__(self, name: str, size: int) -> None:
        self.size = size
        self.fd = os.memfd_create(f"octogate-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, size)
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        self._map = mmap.mmap(self.fd, size)

    def write(self, data: bytes) -> None:
        self._map[: len(data)] = data

    def __enter__(self) -> SharedMemory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._map.close()
        os.close(self.fd)


class WorkerProcess(TalkingChild):
    """Started on entry, killed and reaped on exit. Callbacks run in the loop.

    Args:
        argv: the command line before the setup.
        setup: what the worker is to load; descriptors and parent are filled in here.
        on_answers: called with the answers of each packet; they are views of a buffer that the next packet overwrites.
        on_end: called once, when the worker has closed its socket, however it ended.
    """

    def __init__(
        self,
        argv: Sequence[str],
        setup: wire.Setup,
        memory: SharedMemory,
        on_answers: Callable[[list[wire.Answer]], None],
        on_end: Callable[[], None],
    ) -> None:
        super().__init__(_GONE_S)
        self._argv = list(argv)
        self._setup = setup
        self._memory = memory
        self._on_answers = on_answers
        self._on_end = on_end
        self._packet = memoryview(bytearray(wire.PACKET_MAX))

    @property
    def pid(self) -> int:
        return self.child.pid

    def send(self, packet: bytes) -> None:
        """Hand over a packet of jobs. A worker that is gone is not an error here: `on_end` tells."""
        assert self._socket is not None
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._socket.send(packet)

    def kill(self) -> None:
        self.child.kill()

    async def __aenter__(self) -> WorkerProcess:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            setup = msgspec.structs.replace(
                self._setup, parent=os.getpid(), socket=theirs.fileno(), memory=self._memory.fd
            )
            most = max(tenant.threads for tenant in setup.tenants)
            threads = {"OMP_NUM_THREADS": str(most), "OPENBLAS_NUM_THREADS": "1"}
            self.child = Child(
                [*self._argv, msgspec.json.encode(setup).decode()],
                env=python_env(**threads, **ALLOCATOR),
                pass_fds=(theirs.fileno(), self._memory.fd),
                capture_stderr=True,
            )
            try:
                self.child.start()
            except OSError as error:
                ours.close()
                raise ModelError(
                    f"cannot start the worker of model '{setup.tenants[0].name}': {error.strerror}",
                    hint="is memory exhausted, or a limit of processes reached?",
                ) from error
        self.listen(ours)
        return self

    def _readable(self) -> None:
        n = self._receive(self._packet)
        if n is None:
            return
        if n:
            try:
                answers = wire.unpack_answers(self._packet[:n])
            except wire.Mismatch:
                self.child.kill()  # it talks nonsense: as good as dead
                n = 0
            else:
                self._on_answers(answers)
        if not n:
            self.close()
            self._on_end()
