"""What a check may do to a gateway: emulated, or a real board over SSH."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from pathlib import Path
from typing import Protocol

from firmware_tools import emulate
from firmware_tools.cable import Acknowledged
from firmware_tools.console import Console, ConsoleError, Done
from firmware_tools.emulate import Machine
from gateway.errors import OctogateError

BOOT_S = 900.0  # some 30 s on a quiet machine; a machine with ten other jobs is slow, not broken
STEP_S = 300.0
PROMPT = r"root@[^\n]*[#] \Z"
BOOT_ID = "cat /proc/sys/kernel/random/boot_id"


class CannotError(OctogateError):
    """This target cannot do that: the check is not run, and says why."""


class Target(Protocol):
    """A gateway under test. Every method may raise CannotError."""

    board: str
    host: str  # this machine, as the gateway sees it
    console_log: Path | None  # all that its console said
    keeps_config: bool  # somebody's gateway: its config is not for us to replace

    async def run(self, command: str, timeout_s: float = STEP_S) -> Done:
        """A command line of its root shell; ConsoleError when it does not end in time."""

    async def put(self, path: str, data: bytes) -> None:
        """Write a file there."""

    async def reboot(self) -> None:
        """Restart in good order; returns when its shell is there again."""

    async def until_up(self) -> None:
        """Wait for a boot that something else began, to its shell."""

    async def power_cycle(self, clock: datetime | None = None) -> None:
        """Off without loss and on, with this time on its clock; returns when it has power."""

    async def cut(self) -> int:
        """Pull the plug and put it in again; how many un-flushed sectors were lost. Returns when it has power."""

    async def recover(self) -> None:
        """From whatever a failed check has left to a shell, by force if it must be."""

    async def link(self, *, up: bool) -> None:
        """The network cable."""

    def node(self, name: str, port: Path, ledger: Acknowledged) -> AbstractAsyncContextManager[object]:
        """A node in a USB socket, until the end of the block."""

    def stick(self, name: str, image: Path) -> AbstractAsyncContextManager[None]:
        """A USB stick, until the end of the block."""


async def log_in(console: Console, timeout_s: float = BOOT_S) -> None:
    """From power-on to a quiet root shell.

    Raises:
        ConsoleError: it did not come in time.
    """
    await console.expect(PROMPT, timeout_s)
    # one prompt may have been cut by a message of the kernel or of systemd; the mark comes after all of them
    console.send(
        "dmesg -n 1; stty -echo; export TERM=dumb SYSTEMD_PAGER= SYSTEMD_COLORS=0; PS1= PS2= PROMPT_COMMAND=\n"
    )
    done = await console.run("true", STEP_S)
    if done.status:
        raise ConsoleError(f"the shell answers {done.status}: {done.output}")


class Emulated:
    """The emulator as a target.

    Args:
        machine: who holds it switches it on and off.
    """

    board = "qemu"
    host = emulate.HOST
    keeps_config = False

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.console_log: Path | None = machine.console_log

    async def run(self, command: str, timeout_s: float = STEP_S) -> Done:
        return await self.machine.console.run(command, timeout_s)

    async def put(self, path: str, data: bytes) -> None:
        await self.machine.console.put(path, data, STEP_S)

    async def until_up(self) -> None:
        await log_in(self.machine.console)

    async def reboot(self) -> None:
        self.machine.console.send("systemctl reboot\n")
        self.machine.console.forget()
        await self.until_up()

    async def power_cycle(self, clock: datetime | None = None) -> None:
        await self.machine.power_off()
        self.machine.set_clock(clock)
        await self.machine.power_on()

    async def cut(self) -> int:
        lost = await self.machine.cut()
        await self.machine.power_on()
        return lost

    async def recover(self) -> None:
        await self.power_cycle()
        await self.until_up()

    async def link(self, *, up: bool) -> None:
        await self.machine.link(up=up)

    def node(self, name: str, port: Path, ledger: Acknowledged) -> AbstractAsyncContextManager[object]:
        return self.machine.plugged(name, port, ledger)

    def stick(self, name: str, image: Path) -> AbstractAsyncContextManager[None]:
        return self.machine.stick(name, image)


class RealBoard:
    """What a real board cannot be made to do from here; its shell is a subclass's."""

    console_log: Path | None = None
    host = ""  # our broker is on loopback
    keeps_config = True

    def __init__(self, board: str) -> None:
        self.board = board

    async def power_cycle(self, clock: datetime | None = None) -> None:
        raise CannotError("nothing here can switch a real board's power")

    async def cut(self) -> int:
        raise CannotError("nothing here can cut a real board's power: pull its plug by hand")

    async def link(self, *, up: bool) -> None:
        raise CannotError("nothing here can pull a real board's network cable")

    async def recover(self) -> None:
        """Nothing can be forced: the next check finds it as it is."""

    def node(self, name: str, port: Path, ledger: Acknowledged) -> AbstractAsyncContextManager[object]:
        raise CannotError("nothing here can plug a node into a real board: do it by hand")

    def stick(self, name: str, image: Path) -> AbstractAsyncContextManager[None]:
        raise CannotError("nothing here can plug a stick into a real board: do it by hand")


class OverSsh(RealBoard):
    """A board that lets root in by SSH, with the key of this user.

    Args:
        address: `[user@]host`.
    """

    def __init__(self, board: str, address: str) -> None:
        super().__init__(board)
        self._address = address
        self._boot = ""  # the boot that was met last

    async def _ssh(self, command: str, timeout_s: float, data: bytes = b"") -> Done:
        if shutil.which("ssh") is None:
            raise CannotError("there is no ssh here", hint="sudo apt-get install openssh-client")
        process = await asyncio.create_subprocess_exec(
            "ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "--", self._address, command,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        try:
            async with asyncio.timeout(timeout_s):
                output, _ = await process.communicate(data)
        except TimeoutError:
            process.kill()
            await process.wait()
            raise ConsoleError(f"{self._address}: no end of {command!r} in {timeout_s:g} s") from None
        assert process.returncode is not None
        return Done(process.returncode, output.decode(errors="replace"))

    async def run(self, command: str, timeout_s: float = STEP_S) -> Done:
        done = await self._ssh(command, timeout_s)
        if done.status == 255:  # of ssh itself
            raise ConsoleError(f"{self._address}: {done.output.strip()}", hint="is SSH on, and your key in it?")
        if not self._boot:
            self._boot = (await self._ssh(BOOT_ID, timeout_s)).output
        return done

    async def put(self, path: str, data: bytes) -> None:
        done = await self._ssh(f"cat > {path}", STEP_S, data)
        if done.status:
            raise ConsoleError(f"{self._address}: cannot write {path}: {done.output.strip()}")

    async def until_up(self) -> None:
        async with asyncio.timeout(BOOT_S):
            while True:
                done = await self._ssh(BOOT_ID, STEP_S)
                if not done.status and done.output != self._boot:
                    self._boot = done.output
                    return
                await asyncio.sleep(2)  # nothing tells when a machine that boots will listen

    async def reboot(self) -> None:
        await self.run("true")
        await self._ssh("systemctl reboot", STEP_S)
        await self.until_up()
