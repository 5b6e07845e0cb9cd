"""A console that says what it is told to; tests/integration/test_machine.py has one with a real shell."""

import asyncio
from pathlib import Path

import pytest

from firmware_tools.console import Console, ConsoleError


def test_what_came_in_pieces_is_found_and_taken_once(tmp_path: Path) -> None:
    async def body() -> None:
        console = Console(tmp_path / "log")
        for byte in b"U-Boot\r\ngateway login: ":
            console.data_received(bytes([byte]))
        found = await console.expect(r"(\w+) login: ", 1)
        assert found[1] == b"gateway"
        with pytest.raises(ConsoleError, match="no 'login:'"):
            await console.expect("login:", 0.01)
        console.connection_lost(None)
        with pytest.raises(ConsoleError, match="closed before"):
            await console.expect("login:", 1)
        with pytest.raises(ConsoleError, match="is closed"):
            console.send("x\n")

    asyncio.run(body())


def test_an_echo_is_not_taken_for_an_answer(tmp_path: Path) -> None:
    """A terminal that echoes what is typed, as one does before `stty -echo`."""

    async def body() -> None:
        console = Console(tmp_path / "log")

        class Echo(asyncio.WriteTransport):
            def write(self, data: bytes | bytearray | memoryview) -> None:
                console.data_received(bytes(data).replace(b"\n", b"\r\n"))

        console.connection_made(Echo())
        with pytest.raises(ConsoleError):
            await console.run("true", 0.05)
        console.connection_lost(None)

    asyncio.run(body())
