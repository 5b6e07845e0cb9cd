"""Updates of the system: into the other slot, refused, and rolled back."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from firmware_tools.image_checks import keys
from firmware_tools.image_checks.bench import STREAM, Bench, expect
from firmware_tools.image_checks.target import CannotError
from gateway.errors import OctogateError

INSTALL_S = 3000.0  # some 50 s of one emulated processor
STICK = "/run/image-test-stick"
OTHER = "/run/image-test-other"
SLOTS = {"A": "B", "B": "A"}
TRIES = 1  # of a broken slot; the counter counts from 3 when RAUC has activated it, and each costs a boot


async def updates(bench: Bench) -> str:
    """An update goes into the other slot, boots, and is marked good; the spool survives"""
    if bench.bundle is None:
        raise CannotError("there is no update bundle beside the image")
    before = await bench.slot()
    taken = (await bench.whole_ledger()).get(STREAM, 0)
    async with _stick(bench, bench.bundle):
        await bench.run(f"rauc install {STICK}/{bench.bundle.name}", INSTALL_S)
    await bench.target.reboot()
    expect(await bench.slot() == SLOTS[before], f"it still runs slot {before}")
    await bench.healthy()
    after = (await bench.whole_ledger()).get(STREAM, 0)
    expect(after >= taken, f"{taken} readings before, {after} after")
    return f"{before} -> {SLOTS[before]}, {after} readings on disk"


async def refuses_a_stranger(bench: Bench) -> str:
    """A bundle that is signed with another key is refused, and the slots stay as they are"""
    if shutil.which("rauc") is None:
        raise CannotError("there is no rauc here to make the bundle", hint="sudo apt-get install rauc")
    compatible = (await bench.run("sed -n 's/^compatible=//p' /etc/rauc/system.conf")).strip()
    state = await bench.run("fw_printenv")
    with tempfile.TemporaryDirectory(dir=bench.folder) as folder:
        bundle = await _strangers_bundle(Path(folder), compatible)
        async with _stick(bench, bundle):
            done = await bench.target.run(f"rauc install {STICK}/{bundle.name}", INSTALL_S)
    expect(done.status != 0, "it was installed")
    expect("signature" in done.output.lower(), f"refused, but not for its signature: {done.output.strip()}")
    expect(await bench.run("fw_printenv") == state, "the boot counters have changed")
    return next(line for line in done.output.splitlines() if "signature" in line.lower())[:160].strip()


async def comes_back_from_a_panic(bench: Bench) -> str:
    """A slot whose kernel panics is left by itself: the other one boots again"""
    async with _broken(bench, "mv {0}/usr/lib/systemd/systemd {0}/usr/lib/systemd/systemd.away"):
        return await _returns(bench)


async def comes_back_from_illness(bench: Bench) -> str:
    """A slot that boots but never becomes healthy restarts by itself until the other one boots again"""
    breaks = (
        "mv {0}/opt/octogate/bin/octogate {0}/opt/octogate/bin/octogate.away && "
        "cp -p {0}/usr/lib/octogate/health.json {0}/usr/lib/octogate/health.json.away && "
        """echo '{{"healthy_s": 5, "patience_s": 20}}' > {0}/usr/lib/octogate/health.json && """
        "cp -p {0}/usr/lib/os-release {0}/usr/lib/os-release.away && "
        "sed -i -e 's/^\\(BUILD_ID\\|IMAGE_VERSION\\)=.*/\\1=ill/' {0}/usr/lib/os-release"
    )
    async with _broken(bench, breaks):
        return await _returns(bench)


async def _returns(bench: Bench) -> str:
    """Boots the other slot, which is broken, and waits for the slot that runs now."""
    good = await bench.slot()
    bad = SLOTS[good]
    await bench.run(f"fw_setenv BOOT_ORDER '{bad} {good}' && fw_setenv BOOT_{bad}_LEFT {TRIES} && sync")
    await bench.target.reboot()
    while (slot := await bench.slot()) == bad:  # one that is ill has a shell, too
        await bench.target.until_up()
    expect(slot == good, f"it runs slot {slot}")
    left = (await bench.run(f"fw_printenv -n BOOT_{bad}_LEFT")).strip()
    expect(left in ("0", "-1"), f"slot {bad} has {left} attempts left")
    await bench.healthy()
    await bench.whole_ledger()
    return f"{bad} was tried {TRIES} time, then {good}"


@asynccontextmanager
async def _broken(bench: Bench, how: str) -> AsyncIterator[None]:
    """The other slot, a copy of this one if it is empty, broken by shell commands for the length of a block."""
    good = await bench.slot()
    other = f"/dev/disk/by-partlabel/root{SLOTS[good]}"
    mount = f"mkdir -p {OTHER} && mount {other} {OTHER}"
    if (await bench.target.run(f"{mount} && test -e {OTHER}/etc/os-release")).status:
        await bench.target.run(f"umount {OTHER}")
        await bench.run(f"dd if=/dev/disk/by-partlabel/root{good} of={other} bs=4M conv=fsync", INSTALL_S)
        await bench.run(mount)
    await bench.run(how.format(OTHER))
    await bench.run(f"umount {OTHER}")
    yield
    await bench.run(mount)
    undo = f"find {OTHER} -xdev -name '*.away' | while read f; do mv $f ${{f%.away}}; done"
    await bench.run(f"{undo}; umount {OTHER}")


@asynccontextmanager
async def _stick(bench: Bench, bundle: Path) -> AsyncIterator[None]:
    """A USB stick with a file on it, mounted at STICK."""
    with tempfile.TemporaryDirectory(dir=bench.folder) as name:
        files, image = Path(name, "files"), Path(name, "stick.img")
        mib = await asyncio.to_thread(_collect, bundle, files)
        await tool("mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-d", str(files), str(image), f"{mib}M")
        async with bench.target.stick("stick", image):
            device = "/dev/disk/by-id/usb-QEMU_QEMU_HARDDISK*"
            wait = f"for i in $(seq 300); do ls {device} >/dev/null 2>&1 && break; sleep 0.2; done"
            await bench.run(f"{wait}; mkdir -p {STICK} && mount -o ro $(ls {device} | head -1) {STICK}")
            yield
            await bench.run(f"umount {STICK}")


def _collect(bundle: Path, files: Path) -> int:
    """The file alone in a new folder. Returns: MiB of a file system that holds it."""
    files.mkdir()
    shutil.copy(bundle, files)
    return (bundle.stat().st_size >> 20) * 11 // 10 + 16


async def _strangers_bundle(folder: Path, compatible: str) -> Path:
    """A good bundle for this board, but for its signature."""
    content, key, certificate = folder / "content", folder / "key.pem", folder / "certificate.pem"
    content.mkdir()
    (content / "rootfs.ext4").write_bytes(secrets.token_bytes(1 << 20))  # RAUC wants more than 4 KiB, compressed
    (content / "manifest.raucm").write_text(
        f"[update]\ncompatible={compatible}\nversion=0\n[bundle]\nformat=verity\n[image.rootfs]\nfilename=rootfs.ext4\n"
    )
    keys.self_signed(key, certificate, "a stranger")
    bundle = folder / "stranger.raucb"
    await tool("rauc", "bundle", f"--cert={certificate}", f"--key={key}", str(content), str(bundle))
    return bundle


async def tool(*command: str) -> None:
    """Run a program of this machine; OctogateError with what it said when it fails."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    if process.returncode:
        raise OctogateError(f"{command[0]} failed: {output.decode(errors='replace').strip()[-500:]}")
