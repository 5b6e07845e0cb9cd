"""Bad input and broken parts: one clear event each, and nothing that was stored is lost."""

from __future__ import annotations

import asyncio
import math
import os
import shutil
import signal
import struct
import tty
from pathlib import Path

import pytest

from gateway.contract import GatewayStatus, SourceState
from sdk.testing import MicroPythonNode
from tests.integration.harness import MODELS, config, daemon, node, stored
from tests.integration.machine import can_mount, small_disk

WINDOW, HOP = 256, 64


def shape(readings: int = 4000) -> bytes:
    """A machine that goes on and off: current and power as the demo's node sends them (made up, not recorded)."""
    on = [5.0 + math.sin(i / 7) if (i // 600) % 2 else 0.02 for i in range(readings)]
    return b"".join(struct.pack("<ff", amps, amps * 230) for amps in on)


def machine(folder: Path, rate: int = 400) -> MicroPythonNode:
    return node(
        folder, rate, {"shape.bin": shape()}, stream="power", sensor="replay", file="shape.bin", frame=20, ring=1000,
        channels=[["current", "f", "A"], ["power", "f", "W"]],
    )  # fmt: skip


STATE_MODEL = f"""
[[model]]
name = "state"
bundle = "{MODELS / "machine_state" / "machine_state.octo"}"
deadline_ms = 500
[[pipeline]]
name = "press-state"
source = "press"
stream = "power"
model = "state"
window = {WINDOW}
hop = {HOP}
"""


def readings(status: GatewayStatus) -> int:
    return next((s.next_seq for s in status.streams if s.name == "press/power"), 0)


def inferences(status: GatewayStatus) -> int:
    return status.pipelines[0].inferences


def names(status: GatewayStatus) -> set[tuple[str, str]]:
    return {(event.name, event.state) for event in status.events}


@pytest.mark.timeout(90)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_killed_or_stopped_worker_costs_no_window(tmp_path: Path, number: signal.Signals) -> None:
    async def scenario() -> None:
        async with machine(tmp_path) as press, daemon(tmp_path, config(tmp_path, more=STATE_MODEL)) as gateway:
            await gateway.until(lambda s: inferences(s) > 3, "windows are inferred")
            for round_ in range(1, 4):
                before = await gateway.hit_worker(number)
                await gateway.until(lambda s, r=round_: s.models[0].restarts >= r, "the worker is replaced")  # type: ignore[misc]
                after = await gateway.until(
                    lambda s, b=before: inferences(s) > inferences(b) + 2,  # type: ignore[misc]
                    "it infers again",
                )
                assert readings(after) > readings(before)  # acquisition went on
            press.unplug()
            status = await gateway.until(lambda s: s.sources[0].state is SourceState.LOST, "no more readings come")
            expected = (status.sources[0].readings - WINDOW) // HOP + 1
            end = await gateway.until(lambda s: inferences(s) >= expected, "every window is inferred")
            assert inferences(end) == expected
            assert end.pipelines[0].skipped == 0
            await gateway.end()
            assert stored(gateway.spool)["press-state"] == expected

    asyncio.run(scenario())


@pytest.mark.timeout(90)
def test_pictures_in_hand_survive_their_worker(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    cv2 = pytest.importorskip("cv2")
    import numpy as np

    for i in range(12):
        picture = np.full((240, 320, 3), 20 * i, np.uint8)
        assert cv2.imwrite(str(pictures / f"{i:02}.jpg"), picture)
    more = f"""
[[source]]
kind = "pictures"
name = "dock"
folder = "pictures"
fps = 0.5
loop = false
[[model]]
name = "detect"
bundle = "{MODELS / "detect" / "detect.octo"}"
deadline_ms = 2000
[[pipeline]]
name = "dock-objects"
source = "dock"
model = "detect"
"""

    async def scenario() -> None:
        async with daemon(tmp_path, config(tmp_path, more=more)) as gateway:
            await gateway.until(lambda s: inferences(s) >= 3, "pictures are looked at")
            for round_ in range(1, 3):
                await gateway.hit_worker()
                await gateway.until(lambda s, r=round_: s.models[0].restarts >= r, "replaced")  # type: ignore[misc]
                seen = inferences(await gateway.status())
                await gateway.until(lambda s, n=seen: inferences(s) > n, "it looks again")  # type: ignore[misc]
            end = await gateway.until(lambda s: s.sources[1].state is SourceState.SILENT, "every picture was shown")
            await gateway.until(
                lambda s: inferences(s) + s.pipelines[0].skipped == 12, "every picture is accounted for"
            )
            assert end.sources[1].frames == 12

    asyncio.run(scenario())


@pytest.mark.timeout(60)
def test_a_damaged_bundle_is_refused_and_acquisition_goes_on(tmp_path: Path) -> None:
    bundle = tmp_path / "state.octo"
    content = bytearray((MODELS / "machine_state" / "machine_state.octo").read_bytes())
    content[len(content) // 2] ^= 0xFF
    bundle.write_bytes(content)
    broken = STATE_MODEL.replace(str(MODELS / "machine_state" / "machine_state.octo"), str(bundle))

    async def scenario() -> None:
        async with machine(tmp_path), daemon(tmp_path, config(tmp_path, more=broken)) as gateway:
            status = await gateway.until(lambda s: s.models[0].state == "failed", "the bundle is refused")
            assert str(bundle) in status.models[0].detail
            await gateway.until(lambda s: readings(s) > 400, "readings are stored all the same")
            shutil.copy(MODELS / "machine_state" / "machine_state.octo", bundle)
            # a mended file is taken up without a restart
            await gateway.until(lambda s: s.models[0].state == "ready", "the mended bundle is loaded")

    asyncio.run(scenario())


@pytest.mark.timeout(60)
def test_garbage_on_the_wire_is_counted_and_said(tmp_path: Path) -> None:
    async def scenario() -> None:
        master, slave = os.openpty()
        tty.setraw(slave)
        (tmp_path / "tty").symlink_to(os.ttyname(slave))
        try:
            async with daemon(tmp_path, config(tmp_path, more="")) as gateway:
                await gateway.until(lambda s: bool(s.sources), "it runs")
                noise = os.urandom(3000) + b"\0" + b"Traceback (most recent call last):\r\n" + os.urandom(500) + b"\0"
                os.write(master, noise)
                status = await gateway.until(lambda s: s.sources[0].bad > 0, "garbage is counted")
                assert status.sources[0].readings == 0
                await gateway.until(lambda s: s.sources[0].state is SourceState.SILENT, "and the silence is noticed")
                assert await gateway.end() == 0
        finally:
            os.close(master)
            os.close(slave)

    asyncio.run(scenario())


@pytest.mark.skipif(not can_mount(), reason="mounts a small file system: needs root")
@pytest.mark.timeout(90)
def test_a_full_disk_stops_acknowledging_and_loses_nothing(tmp_path: Path) -> None:
    async def scenario(disk: Path) -> None:
        text = config(tmp_path, more="", data=str(disk / "data"))
        async with machine(tmp_path, rate=1000), daemon(tmp_path, text) as gateway:
            gateway.folder = disk
            await gateway.until(lambda s: readings(s) > 500, "readings are stored")
            ballast = disk / "somebody-elses-file"
            with ballast.open("wb") as file, pytest.raises(OSError, match="No space"):
                while True:
                    os.write(file.fileno(), b"x" * 4096)
            status = await gateway.until(lambda s: s.spool.state == "full", "the full disk is noticed")
            assert ("store.full", "raised") in names(status)
            held = readings(status)
            ballast.unlink()
            status = await gateway.until(lambda s: s.spool.state == "ok" and readings(s) > held + 1000, "it goes on")
            assert status.sources[0].dropped == 0  # the node's ring held what could not be stored
            assert await gateway.end() == 0

    with small_disk(tmp_path / "disk", 8) as disk:
        asyncio.run(scenario(disk))
