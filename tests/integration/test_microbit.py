"""The plain raw REPL against MicroPython 1.9.2 on an emulated BBC micro:bit (QEMU): no raw-paste, no flow control."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from pathlib import Path

import pytest

from firmware_tools.boards import named
from firmware_tools.rawrepl import BoardError, raw_repl
from firmware_tools.wire import Wire

FIRMWARE = Path("/usr/share/firmware-microbit-micropython/firmware.hex")
QEMU = shutil.which("qemu-system-arm")

pytestmark = pytest.mark.skipif(
    QEMU is None or not FIRMWARE.is_file(), reason="needs qemu-system-arm and firmware-microbit-micropython"
)


def test_code_runs_on_a_microbit() -> None:
    async def story() -> None:
        assert QEMU
        machine = await asyncio.create_subprocess_exec(
            *(QEMU, "-M", "microbit", "-device", f"loader,file={FIRMWARE}", "-display", "none", "-monitor", "none"),
            *("-serial", "pty"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        try:
            assert machine.stdout
            async with asyncio.timeout(40):
                line = ""
                while "char device redirected to " not in line:
                    line = (await machine.stdout.readline()).decode()
                    assert line, "QEMU has ended"
                port = line.split("redirected to ")[1].split()[0]
                board = named("microbit")
                async with Wire(port, board) as wire, raw_repl(wire, board) as repl:
                    printed = await repl.exec("import os\nprint(os.uname().machine)\nfor i in range(3):\n print(i)")
                    assert b"micro:bit" in printed and printed.split()[-3:] == [b"0", b"1", b"2"]
                    assert repl.has_paste is False
                    with pytest.raises(BoardError, match="ZeroDivisionError"):
                        await repl.exec("1 / 0")
                    await repl.leave()
                async with Wire(port, board) as wire, raw_repl(wire, board) as repl:  # a second time, from where it was
                    assert (await repl.exec("print('again')")).strip() == b"again"
        finally:
            machine.kill()
            await machine.communicate()

    asyncio.run(story())
