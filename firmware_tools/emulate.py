"""An emulated gateway: the very image in QEMU, with a console, a network cable, USB sockets and a plug that can be pulled.

    async with Machine(folder, drive=image) as machine:
        await machine.console.expect("login:", 300)
        async with machine.plugged("press-4", node.port):
            ...
        await machine.cut()         # the power is gone, and with it what was not flushed
        await machine.power_on()

It computes an ARM processor in software (TCG): some 30 s to a login on a quiet machine, minutes on a busy one.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from firmware_tools import nbd, qmp
from firmware_tools.cable import Acknowledged, Cable
from firmware_tools.console import Console
from gateway.errors import OctogateError

PROGRAM = "qemu-system-aarch64"
FIRMWARE = Path("/usr/lib/u-boot/qemu_arm64/u-boot.bin")
PACKAGES = {PROGRAM: "qemu-system-arm", str(FIRMWARE): "u-boot-qemu"}
HOST = "10.0.2.2"  # as the guest sees us
_END_WITH_US = ("setpriv", "--pdeathsig", "KILL", "--")  # also when we are killed
_START_S = 60.0
_END_S = 20.0


class MachineError(OctogateError):
    """The emulator cannot be started, or ended by itself."""


@dataclass(frozen=True)
class Hardware:
    """What the machine is made of.

    Attributes:
        kernel, initrd, append: booted instead of the drive's own loader.
        clock: what its clock shows at power-on; None for the right time.
        watchdog: has a hardware watchdog (i6300esb) that resets it.
        forward: TCP ports of the guest that shall be reachable from here.
    """

    kernel: Path | None = None
    initrd: Path | None = None
    append: str = ""
    memory_mib: int = 1536
    cpus: int = 2
    clock: datetime | None = None
    watchdog: bool = True
    forward: tuple[int, ...] = ()


class Machine:
    """An emulated machine, as an async context manager; entered when it has power.

    Args:
        folder: for logs; made when it is not there.
        drive: its disk, a file that is written to; None for a machine without.
        chance: which un-flushed sectors survive a cut; None: none of them.

    Attributes:
        console: the serial console since the last power-on.
        qmp: QEMU's control socket.
        lost: sectors that cuts have thrown away so far.
    """

    def __init__(
        self,
        folder: Path,
        drive: Path | None = None,
        hardware: Hardware | None = None,
        *,
        chance: random.Random | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.hardware = hardware or Hardware()
        self.lost = 0
        self.console: Console
        self.qmp: qmp.Qmp
        self._drive, self._chance = drive, chance
        self._disk: nbd.Disk | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._power = AsyncExitStack()  # what lives while there is power
        self._sockets = Path()

    async def __aenter__(self) -> Self:
        await self.power_on()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.power_off()

    # --- power --------------------------------------------------------------------------------------------------

    @property
    def on(self) -> bool:
        return self._process is not None and self._process.returncode is None

    @property
    def console_log(self) -> Path:
        """Everything the console ever said, over all power-ons."""
        return self.folder / "console.log"

    def set_clock(self, clock: datetime | None) -> None:
        """What its clock shall show at the next power-on; None for the right time."""
        self.hardware = replace(self.hardware, clock=clock)

    async def power_on(self) -> None:
        """Returns when it computes; what it says is waited for at the console.

        Raises:
            MachineError: QEMU cannot be started.
        """
        assert not self.on
        async with AsyncExitStack() as failed:
            failed.push_async_callback(self.power_off)
            await self._start([])
            failed.pop_all()

    async def power_off(self) -> None:
        """Off without loss: what the guest has written is on the drive, flushed or not."""
        await self._kill()
        if self._disk:
            self._disk.close()
            self._disk = None

    async def cut(self) -> int:
        """The power is gone at this very moment: what the guest had not flushed may be lost.

        Returns: how many sectors were.
        """
        await self._kill()
        lost = self._disk.cut(self._chance) if self._disk else 0
        self.lost += lost
        if self._disk:
            self._disk.close()
            self._disk = None
        return lost

    async def reset(self) -> None:
        """The reset button."""
        self.console.forget()
        await self.qmp.ask("system_reset")

    async def _start(self, more: Sequence[str]) -> None:
        if shutil.which(PROGRAM) is None:
            raise MachineError(f"there is no {PROGRAM}", hint=f"sudo apt-get install {' '.join(PACKAGES.values())}")
        # not in `folder`: a unix socket's path has 107 characters at most
        self._sockets = Path(self._power.enter_context(tempfile.TemporaryDirectory(prefix="octogate-")))
        if self._drive is not None:
            self._disk = nbd.Disk(self._drive)
            await self._power.enter_async_context(nbd.serve(self._disk, self._sockets / "disk"))
        self.console = Console(self.console_log)
        log = self._power.enter_context((self.folder / "qemu.log").open("ab"))
        loop = asyncio.get_running_loop()
        async with _visitor(self._sockets / "qmp") as control:
            listening = await loop.create_unix_server(lambda: self.console, self._sockets / "console")
            self._power.callback(listening.close)
            self._process = await asyncio.create_subprocess_exec(
                *_END_WITH_US, PROGRAM, *self._arguments(), *more,
                stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
            try:
                reader, writer = await control(self._process)
                self._power.callback(writer.close)
                self.qmp = await qmp.greet(reader, writer)
            except (OSError, TimeoutError, qmp.QmpError) as error:
                said = (self.folder / "qemu.log").read_text(errors="replace").strip().splitlines()[-1:]
                raise MachineError(f"QEMU does not start: {' '.join(said)}", hint=f"see {self.folder}") from error

    async def _kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        await self._power.aclose()

    def _arguments(self) -> list[str]:
        hardware, folder = self.hardware, self._sockets
        forwards = "".join(f",hostfwd=tcp:127.0.0.1:0-:{port}" for port in hardware.forward)
        arguments = [
            *("-M", "virt", "-cpu", "cortex-a72", "-accel", "tcg,thread=multi,tb-size=256"),
            *("-smp", str(hardware.cpus), "-m", str(hardware.memory_mib)),
            *("-nodefaults", "-display", "none", "-monitor", "none"),
            *("-chardev", f"socket,id=console,path={folder / 'console'}", "-serial", "chardev:console"),
            *("-chardev", f"socket,id=qmp,path={folder / 'qmp'}", "-mon", "chardev=qmp,mode=control"),
            *("-device", "virtio-rng-pci", "-device", "qemu-xhci,id=usb"),
            *("-netdev", f"user,id=net0{forwards}", "-device", "virtio-net-pci,netdev=net0,id=nic0,romfile="),
        ]
        if hardware.clock:
            arguments += ["-rtc", f"base={hardware.clock.astimezone(UTC):%Y-%m-%dT%H:%M:%S}"]
        if hardware.watchdog:
            arguments += ["-device", "i6300esb"]
        if self._drive is not None:
            server = f"server.type=unix,server.path={folder / 'disk'}"
            arguments += ["-blockdev", f"driver=nbd,node-name=disk0,{server}"]
            arguments += ["-device", "virtio-blk-pci,drive=disk0"]
        if hardware.kernel is None:
            return [*arguments, "-bios", str(FIRMWARE)]
        arguments += ["-kernel", str(hardware.kernel), "-append", hardware.append]
        return [*arguments, *(("-initrd", str(hardware.initrd)) if hardware.initrd else ())]

    # --- what is plugged in --------------------------------------------------------------------------------------

    @asynccontextmanager
    async def plugged(self, name: str, port: Path, ledger: Acknowledged | None = None) -> AsyncIterator[Cable]:
        """A node in a USB socket, by an FTDI adapter with the serial number `name`; unplugged at the end of the block.

        Args:
            port: the node's terminal.
            ledger: listens to the line.
        """
        cable = Cable(port, ledger)
        path = self._sockets / f"usb-{name}"
        loop = asyncio.get_running_loop()
        try:
            path.unlink(missing_ok=True)
            server = await loop.create_unix_server(lambda: cable, path)
            try:
                address = {"type": "unix", "data": {"path": str(path)}}
                backend = {"type": "socket", "data": {"addr": address, "server": False}}
                await self.qmp.ask("chardev-add", id=f"line-{name}", backend=backend)
                async with asyncio.timeout(_START_S):
                    await cable.connected.wait()
                await self.add_device("usb-serial", name, bus="usb.0", chardev=f"line-{name}", serial=name)
            finally:
                server.close()
            yield cable
        finally:
            if self.on:
                with contextlib.suppress(qmp.QmpError):  # it may have been cut meanwhile
                    await self.remove_device(name)
                    await self.qmp.ask("chardev-remove", id=f"line-{name}")
            cable.close()

    @asynccontextmanager
    async def stick(self, name: str, image: Path) -> AsyncIterator[None]:
        """A USB stick with the contents of `image`, read only; pulled at the end of the block."""
        await self.qmp.ask(
            "blockdev-add", driver="file", node_name=f"stick-{name}", filename=str(image), read_only=True
        )
        await self.add_device("usb-storage", name, bus="usb.0", drive=f"stick-{name}")
        try:
            yield
        finally:
            if self.on:
                await self.remove_device(name)
                await self.qmp.ask("blockdev-del", node_name=f"stick-{name}")

    async def add_device(self, driver: str, name: str, **properties: Any) -> None:
        """Plug any device that QEMU has; QmpError when it refuses."""
        await self.qmp.ask("device_add", driver=driver, id=name, **properties)

    async def remove_device(self, name: str) -> None:
        """Unplug; returns when it is gone."""
        await self.qmp.ask("device_del", id=name)
        while (await self.qmp.event("DEVICE_DELETED", _END_S)).data.get("device") != name:
            pass

    async def link(self, *, up: bool) -> None:
        """The network cable."""
        await self.qmp.ask("set_link", name="nic0", up=up)

    async def forwarded(self, port: int) -> int:
        """The port on 127.0.0.1 here that reaches this port of the guest."""
        table = cast(str, await self.qmp.ask("human-monitor-command", command_line="info usernet"))
        found = re.search(rf"TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)\s+\S+\s+{port}\s", table)
        if found is None:
            raise MachineError(f"port {port} of the guest is not forwarded", hint="name it in Hardware.forward")
        return int(found[1])


def interactive(drive: Path) -> list[str]:
    """The command line of the same machine with its console in this terminal; `drive` is written to. Ctrl-A X ends it."""
    return [
        PROGRAM, *("-M", "virt", "-cpu", "cortex-a72", "-accel", "tcg,thread=multi,tb-size=256", "-smp", "2"),
        *("-m", "1536", "-nodefaults", "-display", "none", "-serial", "mon:stdio", "-bios", str(FIRMWARE)),
        *("-drive", f"file={drive},format=raw,if=none,id=disk0", "-device", "virtio-blk-pci,drive=disk0"),
        *("-netdev", "user,id=net0", "-device", "virtio-net-pci,netdev=net0,romfile=", "-device", "virtio-rng-pci"),
        *("-device", "qemu-xhci,id=usb", "-device", "i6300esb"),
    ]  # fmt: skip


_Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def _visitor(path: Path) -> AsyncIterator[Callable[[asyncio.subprocess.Process], Awaitable[_Streams]]]:
    """Listens at `path` for one connection of a process that is started meanwhile: it is ready when it has connected."""
    came = asyncio.Event()
    streams: list[_Streams] = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        streams.append((reader, writer))
        came.set()

    async def ended(process: asyncio.subprocess.Process) -> None:
        await process.wait()
        came.set()

    async def wait(process: asyncio.subprocess.Process) -> _Streams:
        async with asyncio.timeout(_START_S), asyncio.TaskGroup() as tasks:
            watch = tasks.create_task(ended(process), name="QEMU's end")
            await came.wait()
            watch.cancel()
        if not streams:
            raise ChildProcessError(f"it ended with status {process.returncode}")
        return streams[0]

    path.unlink(missing_ok=True)  # noqa: ASYNC240  (a local socket, microseconds)
    server = await asyncio.start_unix_server(connected, path, limit=qmp.MAX_LINE)
    try:
        yield wait
    finally:
        server.close()
