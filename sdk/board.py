"""A simulated board for tests of tools: the real MicroPython with its REPL behind a pseudo terminal.

As on a board main.py runs at power on and after a soft reset, though not after one out of raw mode; Ctrl-C stops it, and
a REPL is there then. Not as on a board: the files are a folder of this machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import termios
import tty
from pathlib import Path
from types import TracebackType
from typing import Self

# Runs in the child. It leads a session that has no terminal, so that the first one opened is its controlling one and
# Ctrl-C is a signal. MicroPython leaves at Ctrl-D: it is started again, which is what a soft reset does.
_LAUNCH = """
import os, signal, sys
port, folder, heap = sys.argv[1:]
raw = os.dup(0)  # one byte when the REPL's mode changes: 1 raw, 2 friendly
os.set_blocking(raw, False)
fd = os.open(port, os.O_RDWR)
for number in (0, 1, 2):
    os.dup2(fd, number)
os.chdir(folder)
os.environ.pop("HOME", None)  # where it would write its history
signal.signal(signal.SIGINT, signal.SIG_IGN)
run = "import sys; from micropython_unix import run_main; sys.exit(run_main(sys.argv[1:]))"
mode = b"\x02"
while True:
    main = ["main.py"] if os.path.exists("main.py") and mode == b"\x02" else []
    command = [sys.executable, "-c", run, "micropython", "-X", "heapsize=" + heap, "-i", *main]
    os.waitpid(os.posix_spawn(sys.executable, command, os.environ), 0)
    try:
        mode = os.read(raw, 4096)[-1:]
    except BlockingIOError:
        pass
    os.write(1, b"MPY: soft reboot\\r\\n")
"""
_REBOOT, _PROMPT = b"MPY: soft reboot\r\n", b">>> "


class MicroPythonBoard:
    """A board as an async context manager.

    Args:
        work: its file system, a folder.

    Attributes:
        port: the path of its serial port.
    """

    def __init__(self, work: Path, heap_kib: int = 192) -> None:
        self._work = work
        self._heap = f"{heap_kib}K"

    async def __aenter__(self) -> Self:
        self._work.mkdir(parents=True, exist_ok=True)
        # two terminals joined back to back: the board's own modes must not show at the host's end
        self._near, self._far = os.openpty(), os.openpty()
        for fd in (*self._near, *self._far):
            tty.setraw(fd)
        mode = termios.tcgetattr(self._far[1])
        mode[3] |= termios.ISIG | termios.NOFLSH  # Ctrl-C is a signal, and costs no bytes
        for key in (termios.VQUIT, termios.VSUSP):
            mode[6][key] = b"\0"
        termios.tcsetattr(self._far[1], termios.TCSANOW, mode)
        self.port = os.ttyname(self._near[1])
        self._mode, self._hidden = b"\x02", b""  # of the REPL; output that a board would not show
        loop = asyncio.get_running_loop()
        for fd, reader in ((self._near[0], self._from_host), (self._far[0], self._from_board)):
            os.set_blocking(fd, False)
            loop.add_reader(fd, reader)
        self._modes, modes = os.pipe()[::-1]
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _LAUNCH, os.ttyname(self._far[1]), str(self._work), self._heap,
            stdin=modes, start_new_session=True,
        )  # fmt: skip
        os.close(modes)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        await self._process.wait()
        for fd in (self._near[0], self._far[0]):
            loop.remove_reader(fd)
        for fd in (*self._near, *self._far, self._modes):
            os.close(fd)

    def _from_host(self) -> None:
        with contextlib.suppress(BlockingIOError):
            data = os.read(self._near[0], 4096)
            for byte in data:  # what tools send as data is text, so these are never part of it
                if byte in b"\x01\x02" and self._mode[0] != byte:
                    self._mode = bytes([byte])
                    os.write(self._modes, self._mode)
            _pour(data, self._far[0])

    def _from_board(self) -> None:
        with contextlib.suppress(BlockingIOError):
            data = self._hidden + os.read(self._far[0], 4096)
            self._hidden = b""
            before, reboot, rest = data.partition(_REBOOT)
            if reboot and self._mode == b"\x01":  # a new interpreter is not in raw mode, a board still is
                data = before + reboot
                if _PROMPT in rest:
                    os.write(self._far[0], b"\x01")
                else:
                    data, self._hidden = before, reboot + rest
            _pour(data, self._near[0])


def _pour(data: bytes, fd: int) -> None:
    """What the other end does not take in time is lost, as on a line without flow control."""
    while data:
        data = data[os.write(fd, data) :]
