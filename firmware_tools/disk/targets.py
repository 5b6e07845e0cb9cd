"""Which disk may be overwritten: what lsblk says of each, and why not."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec

from firmware_tools.disk.errors import DiskError

MAX_JSON = 4 << 20  # bytes; a machine with a hundred disks gives a tenth of it
_COLUMNS = "NAME,PATH,TYPE,SIZE,MODEL,VENDOR,SERIAL,TRAN,RM,HOTPLUG,RO,MOUNTPOINTS,FSTYPE,LABEL"
_MEMBERS = {"linux_raid_member": "RAID", "LVM2_member": "LVM", "crypto_LUKS": "encryption", "zfs_member": "ZFS"}
_SYSTEM = {
    "/": "the system (/)",
    "/boot": "the system (/boot)",
    "/boot/efi": "the system (/boot/efi)",
    "[SWAP]": "swap",
}


class Device(msgspec.Struct, frozen=True):
    """A block device with what is on it, in lsblk's words. `size` in bytes."""

    name: str
    path: str
    type: str
    size: int
    model: str | None = None
    vendor: str | None = None
    serial: str | None = None
    tran: str | None = None
    rm: bool = False
    hotplug: bool = False
    ro: bool = False
    mountpoints: tuple[str | None, ...] = ()
    fstype: str | None = None
    label: str | None = None
    children: tuple[Device, ...] = ()

    @property
    def title(self) -> str:
        words = [(part or "").strip() for part in (self.vendor, self.model)]
        return " ".join(filter(None, words)) or {"loop": "loop device"}.get(self.type, "unnamed")

    @property
    def removable(self) -> bool:
        """A stick, a card, a disk on USB. Built-in card readers call their cards fixed, hence the name."""
        return self.rm or self.hotplug or self.tran in ("usb", "mmc") or self.name.startswith("mmcblk")

    def parts(self) -> Iterator[Device]:
        yield self
        for child in self.children:
            yield from child.parts()


class _Listing(msgspec.Struct, frozen=True):
    blockdevices: tuple[Device, ...]


def parse(text: bytes) -> tuple[Device, ...]:
    """lsblk's JSON; DiskError when it is something else."""
    try:
        if len(text) > MAX_JSON:
            raise DiskError(f"lsblk said {len(text)} bytes")
        return msgspec.json.decode(text, type=_Listing).blockdevices
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DiskError(f"lsblk says something else than expected: {error}", hint="it needs util-linux 2.37") from error


def devices() -> tuple[Device, ...]:
    """Every block device of this machine."""
    command = ["lsblk", "--json", "--bytes", "--output", _COLUMNS]
    try:
        return parse(subprocess.run(command, capture_output=True, check=True, timeout=30).stdout)
    except FileNotFoundError as error:
        raise DiskError("there is no lsblk", hint="install util-linux; only Linux machines can flash") from error
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        raise DiskError(f"lsblk: {error}") from error


def label_of(path: str) -> str:
    """The label of the file system on a device, from the device itself: lsblk has it from udev, which may not run."""
    program = shutil.which("blkid", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if program is None:
        return ""
    command = [program, "--probe", "--output", "value", "--match-tag", "LABEL", "--", path]
    done = subprocess.run(command, capture_output=True, timeout=30, check=False)
    return done.stdout.decode(errors="replace").strip()


def refusal(device: Device, needed: int = 0) -> str:
    """Why this device must not be overwritten, or an empty string."""
    if device.type not in ("disk", "loop"):
        return f"it is of type {device.type}, not a whole disk"
    for part in device.parts():
        for where in part.mountpoints:
            if where in _SYSTEM:
                return f"{part.path} holds {_SYSTEM[where]}"
        if part.fstype in _MEMBERS:
            return f"{part.path} is part of {_MEMBERS[part.fstype]}"
        if part is not device and part.type not in ("part", "disk"):
            return f"{part.path} ({part.type}) is on it"
    mounted = [f"{part.path} on {where}" for part in device.parts() for where in part.mountpoints if where]
    if mounted:
        return f"mounted: {mounted[0]}"
    if device.ro:
        return "it is write-protected"
    if not device.removable and device.type != "loop":
        return "it is a built-in disk"
    if device.size < needed:
        return f"{size_text(device.size)}, the image needs {size_text(needed)}"
    return ""


def candidates(found: tuple[Device, ...], needed: int) -> list[tuple[Device, str]]:
    """Removable disks that have a size, with why each is refused (empty: it is not)."""
    disks = [item for item in found if item.removable and item.type == "disk" and item.size]
    return [(item, refusal(item, needed)) for item in disks]


def check(path: Path, found: tuple[Device, ...], needed: int) -> Device:
    """The device at `path`; DiskError says why it cannot be the target."""
    real = path.resolve()
    device = next((part for item in found for part in item.parts() if Path(part.path) == real), None)
    if device is None:
        raise DiskError(
            f"{path}: lsblk does not know it", hint="plug it in again; ./inv image.flash lists what is there"
        )
    if why := refusal(device, needed):
        hint = "unmount it first" if why.startswith("mounted") else "./inv image.flash lists what can be used"
        raise DiskError(f"{path} ({device.title}) is refused: {why}", hint=hint)
    return device


def size_text(size: float) -> str:
    """Bytes for a person, in the units that makers of cards print."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
