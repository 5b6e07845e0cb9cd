"""MicroPython's raw REPL from the host: how tools run code on a board.

Source of the protocol: MicroPython's reference, "The MicroPython Interactive Interpreter Mode": raw mode, raw-paste
mode with its window of flow control. Control bytes: 01 raw REPL, 02 friendly REPL, 03 interrupt, 04 execute or soft
reset, 05 41 01 asks for raw-paste.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from firmware_tools.boards import ANY, Board
from firmware_tools.wire import Wire
from gateway.errors import SourceError

PROMPT_S = 1.0  # a board that listens answers within
ENTER_TRIES = 8  # interrupts before we give up: a program may be busy in a driver, or just be starting
EXEC_S = 10.0
OUTPUT_MAX = 256 << 10  # bytes one piece of code may print
_BANNER = b"raw REPL; CTRL-B to exit\r\n>"
_PROMPT = b">>> "


class BoardError(SourceError):
    """Code that ran on the board failed there; `traceback` is what it printed."""

    def __init__(self, traceback: str) -> None:
        last = traceback.strip().rpartition("\n")[2]
        super().__init__(f"the board says: {last[:200]}", hint="is there room, and is its MicroPython 1.19 or newer?")
        self.traceback = traceback


class Window:
    """How much may be sent in raw-paste mode: the board grants `size` bytes, and as many again with each 01."""

    def __init__(self, size: int) -> None:
        if not 0 < size <= 0xFFFF:
            raise SourceError(f"the board grants a window of {size} bytes", hint="unplug it and try again")
        self._size = size
        self.left = size
        self.ended = False  # the board wants no more, or has all

    def take(self, data: bytes) -> bool:
        """Bytes of the board while code is sent; whether it has ended that.

        Raises:
            SourceError: something that is neither a grant nor an end.
        """
        for byte in data:
            if byte == 1 and not self.ended:
                self.left += self._size
            elif byte == 4 and not self.ended:
                self.ended = True
            else:
                raise SourceError(f"the board says {byte:#04x} in raw-paste mode", hint="unplug it and try again")
        return self.ended


class RawRepl:
    """A board in raw mode; made by `raw_repl`.

    Attributes:
        has_paste: whether it knows raw-paste; None until the first code has run.
    """

    def __init__(self, wire: Wire, board: Board = ANY) -> None:
        self._wire = wire
        self._board = board
        self.has_paste: bool | None = None

    async def enter(self) -> None:
        """Stops what runs and enters raw mode, from wherever the board is.

        Raises:
            SourceError: no prompt comes.
        """
        said = b""
        for attempt in range(ENTER_TRIES):
            # every second time as well out of a raw REPL that another tool has left
            await self._wire.write(b"\r\x03" if attempt % 2 == 0 else b"\r\x03\x02")
            try:
                said = await self._wire.until(_PROMPT, PROMPT_S)
                await self._quiet()
                await self._wire.write(b"\x01")
                await self._wire.until(_BANNER, PROMPT_S)
            except TimeoutError:
                said = self._wire.take() or said
                continue
            return
        words = said[-200:].decode(errors="replace").split("\n")[-1].strip()
        raise SourceError(
            f"no MicroPython prompt on {self._wire.port}" + (f"; it says: {words!r}" if words.isprintable() else ""),
            hint="is MicroPython on it (./inv node.flash), and is this its port (./inv node.list)?",
        )

    async def _quiet(self) -> None:
        """A second prompt may follow the first; what it leaves must not be taken for an answer."""
        while await self._wire.some(0.05):
            pass

    async def exec(self, code: str, timeout_s: float = EXEC_S) -> bytes:
        """Run code and give what it printed.

        Raises:
            BoardError: it raised.
            SourceError: no answer in time, more than OUTPUT_MAX bytes, or nonsense.
        """
        try:
            if self.has_paste is not False:
                self.has_paste = await self._paste(code.encode())
            if not self.has_paste:
                await self._plain(code.encode())
            printed = await self._wire.until(b"\x04", timeout_s, OUTPUT_MAX)
            failed = await self._wire.until(b"\x04", PROMPT_S, OUTPUT_MAX)
            await self._wire.until(b">", PROMPT_S)
        except TimeoutError:
            raise SourceError(
                f"no answer from the board on {self._wire.port}", hint="unplug it and try again"
            ) from None
        if failed:
            raise BoardError(failed.decode(errors="replace"))
        return printed

    async def _paste(self, code: bytes) -> bool:
        """Sends code in raw-paste mode; False when the board does not know it."""
        await self._wire.write(b"\x05A\x01")
        answer = await self._wire.exactly(2, PROMPT_S)
        if answer == b"R\x00":
            return False
        if answer != b"R\x01":  # an older one takes it for the start of a raw REPL and says its banner
            await self._wire.until(b">", PROMPT_S)
            return False
        window = Window(int.from_bytes(await self._wire.exactly(2, PROMPT_S), "little"))
        view = memoryview(code)
        while view:
            if window.take(self._wire.take() if window.left else await self._wire.exactly(1, EXEC_S)):
                break
            piece = view[: window.left]
            await self._wire.write(bytes(piece))
            window.left -= len(piece)
            view = view[len(piece) :]
        await self._wire.write(b"\x04")
        while not window.ended:
            window.take(await self._wire.exactly(1, EXEC_S))
        return True

    async def _plain(self, code: bytes) -> None:
        """Sends code as if it were typed, slowly enough for a board without flow control."""
        for at in range(0, len(code), self._board.chunk):
            await self._wire.write(code[at : at + self._board.chunk])
            await asyncio.sleep(self._board.pause_ms / 1000)
        await self._wire.write(b"\x04")
        answer = await self._wire.exactly(2, PROMPT_S)
        if answer != b"OK":
            raise SourceError(f"the board answers {answer!r} to code", hint="unplug it and try again")

    async def leave(self) -> None:
        """Back to the friendly REPL."""
        await self._wire.write(b"\x02")
        try:
            await self._wire.until(_PROMPT, PROMPT_S)
        except TimeoutError:
            raise SourceError(f"the board on {self._wire.port} does not leave raw mode") from None

    async def soft_reset(self) -> None:
        """Restart the board's program: a reset out of raw mode would not run main.py, so that is left first."""
        await self.leave()
        await self._wire.write(b"\x04")


@asynccontextmanager
async def raw_repl(wire: Wire, board: Board = ANY) -> AsyncIterator[RawRepl]:
    """Raw mode for the block; what ran before is stopped, and starts again only by `soft_reset`."""
    repl = RawRepl(wire, board)
    await repl.enter()
    yield repl
