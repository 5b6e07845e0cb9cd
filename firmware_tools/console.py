"""A serial console, spoken to as an expect script does: wait for words, run a shell command, get its output and status."""

from __future__ import annotations

import asyncio
import base64
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from gateway.errors import OctogateError

MAX_HELD = 4 << 20  # of what nobody has waited for yet; older text is in the log only
_PIECE = 512  # a line of the terminal has 4096 bytes at most; slow consoles lose what comes at once


class ConsoleError(OctogateError):
    """The console did not say what was waited for, or went away."""


@dataclass(frozen=True)
class Done:
    """A command that ran: its exit status, and what it printed, errors included."""

    status: int
    output: str


class Console(asyncio.Protocol):
    """The bytes of a console. A callback takes them in, so that the machine never waits for us.

    Args:
        log: gets everything as it comes; appended to.
    """

    def __init__(self, log: Path) -> None:
        self.log = log
        self._file: BinaryIO = log.open("ab", buffering=0)
        self._held = bytearray()
        self._news = asyncio.Event()
        self._gone = False
        self._write: Callable[[bytes], None] | None = None

    # --- the transport's side ---------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._write = cast(asyncio.WriteTransport, transport).write

    def data_received(self, data: bytes) -> None:
        self._file.write(data)
        self._held += data
        del self._held[:-MAX_HELD]
        self._news.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone = True
        self._file.close()
        self._news.set()

    # --- the user's side ----------------------------------------------------------------------------------------

    def send(self, text: str) -> None:
        """Type this; a line ends with a newline."""
        if self._write is None or self._gone:
            raise ConsoleError("the console is closed", hint=f"see {self.log}")
        self._write(text.encode())

    def forget(self) -> None:
        """What was said so far is not waited for any more."""
        self._held.clear()

    async def expect(self, pattern: str, timeout_s: float) -> re.Match[bytes]:
        """Wait for the regular expression (over bytes, `.` is no newline); all up to its end is taken.

        Raises:
            ConsoleError: it did not come in time, or the console closed; with the newest lines.
        """
        wanted = re.compile(pattern.encode())
        try:
            async with asyncio.timeout(timeout_s):
                while (found := wanted.search(bytes(self._held))) is None:
                    if self._gone:
                        raise ConsoleError(f"the console closed before {pattern!r} came: {self.tail()}")
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise ConsoleError(
                f"no {pattern!r} in {timeout_s:g} s; the newest is: {self.tail()}", hint=f"see {self.log}"
            ) from None
        del self._held[: found.end()]
        return found

    def tail(self, n: int = 300) -> str:
        """The newest of what was said."""
        return self._held[-n:].decode(errors="replace").strip() or "nothing"

    async def run(self, command: str, timeout_s: float = 60.0) -> Done:
        """Run a command line in the shell that has the console. Kernel messages should be off (`dmesg -n 1`).

        Raises:
            ConsoleError: it did not end in time.
        """
        mark = secrets.token_hex(4)
        # The quotes keep what we type from being taken for what is printed, where the terminal echoes.
        self.send(f"echo '@'{mark}; ( {command}\n) </dev/null 2>&1; echo '@'{mark}\"=$?\"=\n")
        await self.expect(rf"@{mark}\r?\n", timeout_s)
        ended = await self.expect(rf"((?:.|\n)*?)@{mark}=(\d+)=", timeout_s)
        return Done(int(ended[2]), ended[1].decode(errors="replace").replace("\r", ""))

    async def put(self, path: str, data: bytes, timeout_s: float = 60.0) -> None:
        """Write a small file there, through the shell.

        Raises:
            ConsoleError: it cannot be written.
        """
        text = base64.b64encode(data).decode()
        done = await self.run(f": > {path}.b64", timeout_s)
        for at in range(0, len(text), _PIECE):
            done = await self.run(f"echo {text[at : at + _PIECE]} >> {path}.b64", timeout_s)
        done = await self.run(f"base64 -d {path}.b64 > {path} && rm {path}.b64", timeout_s)
        if done.status:
            raise ConsoleError(f"cannot write {path}: {done.output.strip()}")
