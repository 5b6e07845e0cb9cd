"""A serial port for the host's tools: pyserial opens it, `add_reader` reads; every wait has an end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import termios
from types import TracebackType
from typing import Self

import serial

from firmware_tools.boards import ANY, Board
from gateway.acquire.identity import find_port
from gateway.errors import SourceError

MAX_HELD = 1 << 20  # bytes that nobody has taken; a board that says more is stopped
_READ_BYTES = 65536


class Wire:
    """An open port, as an async context manager.

    Args:
        port: a path or a USB identity (`usb:VID:PID[:SERIAL]`).
        board: its line states and baud rate.

    Raises:
        SourceError: it cannot be opened.
    """

    def __init__(self, port: str, board: Board = ANY) -> None:
        self.port = port
        self._board = board
        self._held = bytearray()
        self._gone = ""
        self._news = asyncio.Event()

    async def __aenter__(self) -> Self:
        device = find_port(self.port)
        self._serial = opened = serial.Serial()
        # set before opening, so that no state in between resets the board
        opened.port, opened.baudrate, opened.exclusive, opened.timeout = device, self._board.baud, True, 0
        opened.inter_byte_timeout = 0  # makes VMIN 1: else an empty read looks like an unplug
        opened.dtr, opened.rts = self._board.dtr, self._board.rts
        try:
            opened.open()
        except (OSError, ValueError, termios.error) as error:
            number = getattr(error, "errno", None)
            reason = os.strerror(number) if number else str(error)
            raise SourceError(
                f"cannot open {device}: {reason}", hint="is it plugged in, and does no gateway or terminal hold it?"
            ) from error
        self._fd: int = opened.fileno()
        asyncio.get_running_loop().add_reader(self._fd, self._read)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop("closed")
        with contextlib.suppress(OSError, termios.error):
            self._serial.close()

    def _read(self) -> None:
        try:
            data = os.read(self._fd, _READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._stop(os.strerror(error.errno or 0))
            return
        if not data or len(self._held) > MAX_HELD:
            self._stop("it says more than it was asked" if data else "unplugged")
            return
        self._held += data
        self._news.set()

    def _stop(self, why: str) -> None:
        if not self._gone:
            self._gone = why
            asyncio.get_running_loop().remove_reader(self._fd)
            self._news.set()

    async def _more(self) -> None:
        if self._gone:
            raise SourceError(f"{self.port} went away: {self._gone}", hint="plug it in again and repeat")
        self._news.clear()
        await self._news.wait()

    def take(self) -> bytes:
        """What has come and was not taken."""
        held, self._held = bytes(self._held), bytearray()
        return held

    async def some(self, timeout_s: float) -> bytes:
        """What comes next; empty when nothing does in time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not self._held:
                    await self._more()
        return self.take()

    async def exactly(self, n: int, timeout_s: float) -> bytes:
        """The next n bytes; TimeoutError when they do not come in time."""
        async with asyncio.timeout(timeout_s):
            while len(self._held) < n:
                await self._more()
        found = bytes(self._held[:n])
        del self._held[:n]
        return found

    async def until(self, end: bytes, timeout_s: float, most: int = MAX_HELD) -> bytes:
        """All up to `end`, which is taken too and not given; TimeoutError, or SourceError after `most` bytes."""
        looked = 0
        async with asyncio.timeout(timeout_s):
            while (at := self._held.find(end, looked)) < 0:
                looked = max(0, len(self._held) - len(end) + 1)
                if looked > most:
                    raise SourceError(
                        f"{self.port}: the board says more than {most} bytes", hint="is this MicroPython?"
                    )
                await self._more()
        found = bytes(self._held[:at])
        del self._held[: at + len(end)]
        return found

    async def write(self, data: bytes, timeout_s: float = 10.0) -> None:
        """Returns when the kernel has taken it all.

        Raises:
            SourceError: the port went away or takes nothing.
        """
        loop, view = asyncio.get_running_loop(), memoryview(data)
        try:
            async with asyncio.timeout(timeout_s):
                while view:
                    try:
                        view = view[os.write(self._fd, view) :]
                    except (BlockingIOError, InterruptedError):
                        await self._room(loop)
                    except OSError as error:
                        raise SourceError(f"{self.port} went away: {os.strerror(error.errno or 0)}") from error
        except TimeoutError:
            raise SourceError(
                f"{self.port} takes no bytes", hint="is the board hung? Unplug it and try again"
            ) from None

    async def _room(self, loop: asyncio.AbstractEventLoop) -> None:
        free = asyncio.Event()
        loop.add_writer(self._fd, free.set)
        try:
            await free.wait()
        finally:
            loop.remove_writer(self._fd)
