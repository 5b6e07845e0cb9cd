"""The raw REPL's client against a scripted board, and its parsers against anything."""

from __future__ import annotations

import asyncio
import os
import tty
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware_tools import rawrepl
from firmware_tools.boards import ANY, Board, boards, by_usb, named
from firmware_tools.rawrepl import BoardError, Window, raw_repl
from firmware_tools.wire import Wire
from gateway.errors import SourceError
from tests.unit.held import descriptors
from tests.unit.scripted_board import Paste, ScriptedBoard

CODE = st.text(
    st.characters(min_codepoint=32, max_codepoint=0x2FFF, exclude_characters="\x7f"), min_size=1, max_size=400
)
FAST = Board("fast", pause_ms=0, chunk=7)


def echo(code: bytes) -> tuple[bytes, bytes]:
    return code, b""


@given(st.lists(CODE, min_size=1, max_size=3), st.sampled_from(["yes", "no", "unknown"]), st.integers(1, 500))
def test_code_arrives_whole_and_the_window_is_kept(codes: list[str], paste: Paste, window: int) -> None:
    async def story() -> None:
        async with raw_repl(ScriptedBoard(echo, paste=paste, window=window), FAST) as repl:
            for code in codes:
                assert await repl.exec(code) == code.encode()
            assert repl.has_paste is (paste == "yes")

    asyncio.run(story())


@given(st.integers(1, 0xFFFF), st.binary(max_size=50))
def test_a_window_grows_by_its_size_until_the_end(size: int, said: bytes) -> None:
    window = Window(size)
    allowed, _, after = said.partition(b"\x04")
    if set(allowed) - {1} or after:
        with pytest.raises(SourceError):
            window.take(said)
    else:
        assert window.take(said) is (b"\x04" in said)
        assert window.left == size * (1 + len(allowed))


@given(st.binary(max_size=300))
def test_nonsense_from_the_board_ends_in_an_error(said: bytes) -> None:
    class Mad(ScriptedBoard):
        async def write(self, data: bytes, timeout_s: float = 10.0) -> None:
            self._held += said
            self._gone = "unplugged"

    async def story() -> None:
        with pytest.raises(SourceError):
            async with raw_repl(Mad(echo)) as repl:
                await repl.exec("1")
                raise SourceError("it happened to say just that")

    asyncio.run(story())


def test_a_failure_is_the_boards_last_line() -> None:
    async def story() -> None:
        board = ScriptedBoard(lambda _: (b"half", b"Traceback:\r\n  File\r\nOSError: 28\r\n"))
        async with raw_repl(board) as repl:
            with pytest.raises(BoardError, match="OSError: 28") as failed:
                await repl.exec("write()")
            assert "File" in failed.value.traceback

    asyncio.run(story())


@pytest.mark.parametrize(("mode", "deaf"), [("program", 3), ("raw", 0), ("friendly", 0)])
def test_raw_mode_is_entered_from_anywhere(mode: str, deaf: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rawrepl, "PROMPT_S", 0.05)

    async def story() -> None:
        async with raw_repl(ScriptedBoard(echo, mode=mode, deaf=deaf)) as repl:
            assert await repl.exec("x") == b"x"

    asyncio.run(story())


def test_a_soft_reset_leaves_raw_mode_first_so_that_main_runs() -> None:
    async def story() -> None:
        board = ScriptedBoard(echo)
        async with raw_repl(board) as repl:
            await repl.soft_reset()
        assert (board.mode, board.started) == ("program", 1)

    asyncio.run(story())


def test_no_board_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rawrepl, "PROMPT_S", 0.01)

    async def story() -> None:
        async with raw_repl(ScriptedBoard(echo, deaf=1000)):
            raise AssertionError("it entered")

    with pytest.raises(SourceError, match=r"no MicroPython prompt.*node.flash"):
        asyncio.run(story())


def test_a_wire_ends_with_its_device_and_opens_only_what_is_there(tmp_path: Path) -> None:
    async def story() -> None:
        with pytest.raises(SourceError, match="plugged in"):
            async with Wire(str(tmp_path / "none")):
                pass
        before = descriptors()
        master, slave = os.openpty()
        tty.setraw(slave)
        async with Wire(os.ttyname(slave)) as wire:
            os.close(slave)
            os.write(master, b"abc>def")
            assert await wire.until(b">", 5) == b"abc"
            assert await wire.exactly(2, 5) == b"de"
            assert await wire.some(5) == b"f"
            assert await wire.some(0.01) == b""
            os.close(master)
            with pytest.raises(SourceError, match="went away"):
                await wire.until(b">", 5)
        assert descriptors() == before

    asyncio.run(story())


def test_boards_are_found_by_name_and_usb_identity() -> None:
    assert by_usb("2e8a:0005") == "rp2" and by_usb("0000:0000") == ""
    assert named("esp32").flash == "esptool" and named("microbit").chunk < ANY.chunk
    ids = [id for board in boards().values() for id in board.usb]
    assert len(ids) == len(set(ids))
    for board in boards().values():  # DTR without RTS would be an ESP's boot loader, DTR low silences USB-CDC
        assert board.dtr and board.rts
    with pytest.raises(SourceError, match="there are: esp32"):
        named("abacus")
