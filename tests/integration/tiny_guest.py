"""A guest that boots in seconds: Debian's kernel for ARM with a busybox in its initrd, for tests of the emulator alone."""

from __future__ import annotations

import io
import re
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "xhci-pci", "usb-storage", "sd_mod", "ftdi_sio", "i6300esb")
INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev; mount -t proc proc /proc; mount -t sysfs sys /sys
for module in $(cat /modules/order); do insmod /modules/$module.ko; done
dmesg -n 1
echo tiny guest ready
exec setsid cttyhack sh
"""


def make(folder: Path) -> tuple[Path, Path]:
    """Kernel and initrd, made in `folder` from packages that apt-get fetches; what is there already is used again."""
    kernel, initrd = folder / "vmlinuz", folder / "initrd"
    if not initrd.exists():
        folder.mkdir(parents=True, exist_ok=True)
        image, busybox = _packages(folder)
        files = dict(_files(busybox, re.compile(r"\./(usr/)?bin/busybox\Z")))
        found = dict(_files(image, re.compile(r"\./boot/vmlinuz-.*\Z|.*\.ko\Z")))
        kernel.write_bytes(next(data for name, data in found.items() if "/vmlinuz-" in name))
        modules = {Path(name).stem.replace("_", "-"): data for name, data in found.items() if name.endswith(".ko")}
        order: list[str] = []
        for name in MODULES:
            _needed(name, modules, order)
        content = {f"modules/{name}.ko": modules[name] for name in order}
        content |= {"bin/busybox": next(iter(files.values())), "init": INIT.encode()}
        content["modules/order"] = " ".join(order).encode()
        initrd.write_bytes(_cpio(content))
    return kernel, initrd


def _packages(folder: Path) -> tuple[bytes, bytes]:
    """The kernel's and busybox's packages for arm64, by an apt-get with folders of its own."""
    state = folder / "apt"
    for name in ("lists/partial", "cache/archives/partial"):
        (state / name).mkdir(parents=True, exist_ok=True)
    (state / "status").touch()
    options = [
        *("-o", "APT::Architecture=arm64", "-o", "APT::Architectures::=arm64", "-o", "APT::Sandbox::User=root"),
        *("-o", f"Dir::State={state}", "-o", f"Dir::State::status={state}/status", "-o", f"Dir::Cache={state}/cache"),
    ]
    subprocess.run(["apt-get", *options, "--quiet", "update"], check=True, stdout=subprocess.DEVNULL)
    said = subprocess.run(
        ["apt-cache", *options, "depends", "linux-image-arm64"], check=True, capture_output=True, text=True
    ).stdout
    image = re.findall(r"linux-image-\d\S+-arm64\b", said)[0]
    wanted = ["apt-get", *options, "--quiet", "download", image, "busybox-static"]
    subprocess.run(wanted, check=True, cwd=folder, stdout=subprocess.DEVNULL)
    one, two = (next(folder.glob(f"{name}_*.deb")) for name in (image, "busybox-static"))
    return one.read_bytes(), two.read_bytes()


def _files(package: bytes, wanted: re.Pattern[str]) -> Iterator[tuple[str, bytes]]:
    content = subprocess.run(["dpkg-deb", "--fsys-tarfile", "-"], input=package, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for member in archive:
            if member.isfile() and wanted.match(member.name):
                source = archive.extractfile(member)
                assert source is not None
                yield member.name, source.read()


def _needed(name: str, modules: dict[str, bytes], order: list[str]) -> None:
    """Appends a module after those that it needs; what the kernel has built in is no module."""
    name = name.replace("_", "-")
    if name in order or name not in modules:
        return
    depends = re.search(rb"\0depends=([^\0]*)\0", modules[name])
    for other in depends[1].decode().split(",") if depends else ():
        _needed(other, modules, order)
    order.append(name)


def _cpio(files: dict[str, bytes]) -> bytes:
    """An archive in the kernel's format "newc" (Documentation/driver-api/early-userspace/buffer-format.rst)."""
    folders = dict.fromkeys(f"{name.partition('/')[0]}/" for name in files if "/" in name)
    entries = [(name, 0o40755, b"") for name in [*folders, "dev/", "proc/", "sys/"]]
    entries += [(name, 0o100755, data) for name, data in files.items()]
    out = bytearray()
    for number, (name, mode, data) in enumerate([*entries, ("TRAILER!!!", 0, b"")], 1):
        path = name.rstrip("/").encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path), 0)
        out += b"070701" + b"".join(b"%08X" % field for field in fields) + path
        out += bytes(-len(out) % 4) + data
        out += bytes(-len(out) % 4)
    return bytes(out)
