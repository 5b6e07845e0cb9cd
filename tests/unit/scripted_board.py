"""A board without hardware that speaks the raw REPL as MicroPython does, byte by byte; its Python is the test's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Literal

from firmware_tools.wire import Wire

Paste = Literal["yes", "no", "unknown"]


class ScriptedBoard(Wire):
    """A `Wire` with a board at its end.

    Args:
        run: what the board's Python does: code -> what it prints and what it fails with.
        paste: whether it knows raw-paste mode, says that it does not, or has never heard of it.
        deaf: so many interrupts are not heard.
    """

    def __init__(
        self,
        run: Callable[[bytes], tuple[bytes, bytes]],
        *,
        paste: Paste = "yes",
        window: int = 32,
        deaf: int = 0,
        mode: str = "program",
    ) -> None:
        super().__init__("scripted")
        self.run = run
        self.paste = paste
        self.window = window
        self.deaf = deaf
        self.mode = mode
        self.started = 0  # times that main.py was started
        self._code = b""
        self._granted = 0

    async def write(self, data: bytes, timeout_s: float = 10.0) -> None:
        await asyncio.sleep(0)
        for byte in data:
            getattr(self, f"_{self.mode}")(bytes([byte]))

    def say(self, data: bytes) -> None:
        self._held += data
        self._news.set()

    def _program(self, byte: bytes) -> None:
        if byte == b"\x03":
            self.deaf -= 1
            if self.deaf < 0:
                self.mode = "friendly"
                self.say(b"Traceback (most recent call last):\r\nKeyboardInterrupt: \r\nMicroPython\r\n>>> ")

    def _friendly(self, byte: bytes) -> None:
        if byte in b"\x02\x03\r":
            self.say(b"\r\n>>> ")
        elif byte == b"\x01":
            self.mode, self._code = "raw", b""
            self.say(b"raw REPL; CTRL-B to exit\r\n>")
        elif byte == b"\x04":
            self.mode = "program"
            self.started += 1
            self.say(b"MPY: soft reboot\r\n")

    def _raw(self, byte: bytes) -> None:
        if byte == b"\x02":
            self.mode = "friendly"
            self.say(b"\r\nMicroPython\r\n>>> ")
        elif byte == b"\x03":
            self._code = b""
        elif byte == b"\x04" and self._code:
            self.say(b"OK")
            self._result()
        elif byte == b"\x04":  # a soft reset out of raw mode: no main.py
            self.say(b"OK\r\nMPY: soft reboot\r\nraw REPL; CTRL-B to exit\r\n>")
        elif byte == b"\x01" and self._code.endswith(b"\x05A") and self.paste == "yes":
            self.mode, self._code, self._granted = "paste", b"", self.window
            self.say(b"R\x01" + self.window.to_bytes(2, "little"))
        elif byte == b"\x01" and self._code.endswith(b"\x05A") and self.paste == "no":
            self._code = b""
            self.say(b"R\x00")
        elif byte == b"\x01":
            self._code = b""
            self.say(b"raw REPL; CTRL-B to exit\r\n>")
        else:
            self._code += byte

    def _paste(self, byte: bytes) -> None:
        if byte == b"\x04":
            self.mode = "raw"
            self.say(b"\x04")
            self._result()
            return
        assert self._granted > 0, "more than the window was sent"
        self._granted -= 1
        self._code += byte
        if len(self._code) % self.window == 0:
            self._granted += self.window
            self.say(b"\x01")

    def _result(self) -> None:
        printed, failed = self.run(self._code)
        self._code = b""
        self.say(printed + b"\x04" + failed + b"\x04>")
