"""The emulator itself, with a guest that boots in seconds: console, power cuts, USB, network cable, clock, watchdog."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from firmware_tools.cable import Acknowledged
from firmware_tools.emulate import Hardware, Machine
from gateway.link import messages
from tests.integration import tiny_guest
from tests.integration.harness import ROOT, node

BOOT_S = 400.0
READY = "tiny guest ready"

pytestmark = pytest.mark.timeout(1500)


def in_machine(folder: Path, scenario: Callable[[Machine], Awaitable[None]], clock: datetime | None = None) -> None:
    kernel, initrd = tiny_guest.make(ROOT / "build" / "tiny-guest")
    drive = folder / "drive"
    drive.touch()
    os.truncate(drive, 8 << 20)
    hardware = Hardware(kernel, initrd, "console=ttyAMA0 quiet panic=1", memory_mib=256, forward=(80,), clock=clock)

    async def inside() -> None:
        async with Machine(folder, drive, hardware) as machine:
            await machine.console.expect(READY, BOOT_S)
            await machine.console.run("stty -echo", BOOT_S)
            await scenario(machine)

    asyncio.run(inside())


def test_a_cut_takes_what_was_not_flushed_and_nothing_else(tmp_path: Path) -> None:
    async def scenario(machine: Machine) -> None:
        console = machine.console
        data = os.urandom(1500)
        await console.put("/file", data, BOOT_S)
        flushed = (
            await console.run("dd if=/file of=/dev/vda bs=512 conv=fsync 2>/dev/null; head -c 4096 /dev/vda | md5sum")
        ).output
        await console.run("dd if=/dev/zero of=/dev/vda bs=4096 count=1 oflag=direct")
        assert (await console.run("head -c 4096 /dev/vda | md5sum")).output != flushed
        assert await machine.cut() == 8
        assert (machine.on, machine.lost) == (False, 8)
        await machine.power_on()
        await machine.console.expect(READY, BOOT_S)
        assert (await machine.console.run("head -c 4096 /dev/vda | md5sum", BOOT_S)).output == flushed

    in_machine(tmp_path, scenario)


def test_a_node_is_plugged_and_unplugged_and_the_line_is_heard(tmp_path: Path) -> None:
    async def scenario(machine: Machine) -> None:
        told = Acknowledged(4)
        say = "exec 3<>/dev/ttyUSB0; stty -F /dev/ttyUSB0 raw -echo; "
        (tmp_path / "node-files").mkdir()
        async with node(tmp_path / "node-files") as counting:
            for _ in range(2):
                async with machine.plugged("press", counting.port, told):
                    await machine.console.run("until test -c /dev/ttyUSB0; do usleep 50000; done", BOOT_S)
                    hello = messages.SayHello().to_line().decode().strip()
                    done = await machine.console.run(
                        f"{say} echo {hello} >&3; echo NAK 0 >&3; head -c 1000 <&3 | wc -c", BOOT_S
                    )
                    assert done.output.strip() == "1000"
                await machine.console.run("while test -c /dev/ttyUSB0; do usleep 50000; done", BOOT_S)
            assert told.sent > 0
            assert told.readings == 0

    in_machine(tmp_path, scenario)


def test_cable_clock_and_watchdog(tmp_path: Path) -> None:
    async def scenario(machine: Machine) -> None:
        console = machine.console
        assert (await console.run("date -u +%Y-%m-%d")).output.strip() == "1999-05-01"
        await console.run("ip link set eth0 up; until grep -q 1 /sys/class/net/eth0/carrier; do usleep 50000; done")
        for up in (False, True):
            await machine.link(up=up)
            await console.run(f"until grep -q {int(up)} /sys/class/net/eth0/carrier; do usleep 50000; done", BOOT_S)
        assert 0 < await machine.forwarded(80) < 1 << 16
        console.send("watchdog -T 2 /dev/watchdog0; killall -9 watchdog\n")  # nobody feeds it any more
        await machine.qmp.event("WATCHDOG", BOOT_S)
        await console.expect(READY, BOOT_S)

    in_machine(tmp_path, scenario, datetime(1999, 5, 1, tzinfo=UTC))


def test_a_stick_is_read(tmp_path: Path) -> None:
    async def scenario(machine: Machine) -> None:
        image = tmp_path / "stick"
        image.write_bytes(b"octogate" + bytes((1 << 20) - 8))
        async with machine.stick("stick", image):
            done = await machine.console.run(
                "until dd if=/dev/sda of=/s bs=512 count=1 2>/dev/null; do usleep 50000; done; head -c 8 /s", BOOT_S
            )
            assert done.output == "octogate"

    in_machine(tmp_path, scenario)
