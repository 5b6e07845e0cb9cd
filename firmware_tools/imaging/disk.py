"""The disk: where its partitions are, the file systems in them, and the image that holds them all.

Partitions are GPT (UEFI specification, chapter 5), aligned to 1 MiB, with names as in docs/image.md. Everything that is
usually random (GUIDs, serial numbers, hash seeds, times) is derived from the board's name, so that the same inputs give
the same image.
"""

from __future__ import annotations

import binascii
import os
import re
import struct
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from firmware_tools.imaging import host

MIB = 1 << 20
SECTOR = 512
ENV_BYTES = 0x4000
_LINUX, _BASIC_DATA = "0FC63DAF-8483-4772-8E79-3D69D8477DE4", "EBD0A0A2-B9E5-4433-87C0-68B6B72699C7"
_NAMESPACE = uuid.UUID("5fd3f5a4-7d3c-5b0e-9c5e-0c7090a7e001")  # of this project, chosen once


@dataclass(frozen=True)
class Partition:
    """One partition; offset and size in bytes."""

    name: str
    offset: int
    size: int
    type: str
    uuid: str


def plan(board: str, sizes_mib: Mapping[str, int]) -> tuple[Partition, ...]:
    """The partitions one after the other from 1 MiB on, in the order of `sizes_mib`.

    Raises ValueError: a partition without a size.
    """
    found, offset = [], MIB
    for name, mib in sizes_mib.items():
        if mib < 1:
            raise ValueError(f"partition {name}: {mib} MiB is no size")
        kind = _BASIC_DATA if name == "boot" else _LINUX
        found.append(Partition(name, offset, mib * MIB, kind, fixed_uuid(board, name)))
        offset += mib * MIB
    return tuple(found)


def total(partitions: tuple[Partition, ...]) -> int:
    """Bytes of the image: the partitions, and 1 MiB for the second copy of the table."""
    return partitions[-1].offset + partitions[-1].size + MIB


def fixed_uuid(*parts: str) -> str:
    return str(uuid.uuid5(_NAMESPACE, "/".join(parts)))


def table(board: str, partitions: tuple[Partition, ...]) -> str:
    """The partition table as `sfdisk` reads it."""
    lines = ["label: gpt", f"label-id: {fixed_uuid(board, 'disk')}", "first-lba: 34"]
    lines += [
        f'start={part.offset // SECTOR}, size={part.size // SECTOR}, type={part.type}, uuid={part.uuid}, name="{part.name}"'
        for part in partitions
    ]
    return "\n".join(lines) + "\n"


def hybrid_mbr(sector: bytes, boot: Partition) -> bytes:
    """The protective MBR with the boot partition in it too, for firmware that cannot read GPT (Raspberry Pi 3).

    The entry of type EE stays first, so that U-Boot and Linux still take the disk for GPT.

    Raises ValueError: `sector` is no MBR.
    """
    if len(sector) != SECTOR or sector[510:] != b"\x55\xaa" or sector[450] != 0xEE:
        raise ValueError("this is not the first sector of a GPT disk")
    entry = struct.pack(
        "<B3sB3sII", 0, b"\xfe\xff\xff", 0x0C, b"\xfe\xff\xff", boot.offset // SECTOR, boot.size // SECTOR
    )
    return sector[:462] + entry + sector[478:]


def environment(variables: Mapping[str, str]) -> bytes:
    """U-Boot's environment, one copy: CRC-32 of the rest, then NAME=value, each ended by NUL, and one more NUL.

    Raises ValueError: a name or value that does not fit.
    """
    for name, value in variables.items():
        if not name or "=" in name or "\0" in name + value:
            raise ValueError(f"{name!r}={value!r} cannot be in U-Boot's environment")
    data = b"".join(f"{name}={value}".encode() + b"\0" for name, value in variables.items()) + b"\0"
    if len(data) > ENV_BYTES - 4:
        raise ValueError(f"U-Boot's environment has {ENV_BYTES - 4} bytes, not {len(data)}")
    data = data.ljust(ENV_BYTES - 4, b"\0")
    return binascii.crc32(data).to_bytes(4, "little") + data


def parse_environment(raw: bytes) -> dict[str, str]:
    """The variables. Raises ValueError: the CRC is wrong, or it is no environment."""
    if len(raw) != ENV_BYTES or binascii.crc32(raw[4:]).to_bytes(4, "little") != raw[:4]:
        raise ValueError("not a U-Boot environment, or a damaged one")
    text, _, _ = raw[4:].partition(b"\0\0")
    pairs = [item.partition(b"=") for item in text.split(b"\0") if item]
    return {name.decode(): value.decode() for name, _, value in pairs}


def make_fat(target: Path, size: int, files: Path, *, board: str, epoch: int) -> None:
    """A FAT file system with what is in the folder `files`."""
    serial = fixed_uuid(board, "fat")[:8]
    target.unlink(missing_ok=True)
    settings = {"SOURCE_DATE_EPOCH": str(epoch), "TZ": "UTC", "MTOOLS_SKIP_CHECK": "1"}
    kib = str(size // 1024)
    host.run("mkfs.vfat", "--invariant", "-i", serial, "-n", "OCTO-BOOT", "-C", target, kib, env=settings)
    for item in sorted(files.iterdir()):
        host.run("mcopy", "-s", "-m", "-i", target, item, "::/", env=settings)


def make_ext4(target: Path, size: int, files: Path, *, label: str, board: str, epoch: int, journal: bool) -> None:
    """An ext4 file system with what is in the folder `files`, owners and modes as they are there."""
    target.unlink(missing_ok=True)
    with target.open("wb") as file:
        file.truncate(size)
    identity = fixed_uuid(board, "ext4", label)
    host.run(
        *("mkfs.ext4", "-q", "-F", "-m", "0" if journal else "1", "-L", label, "-U", identity, "-d", files),
        *("-O", "metadata_csum,64bit,orphan_file" if journal else "metadata_csum,64bit,^has_journal"),
        *("-E", f"hash_seed={identity},root_owner=0:0,lazy_itable_init=0,nodiscard", target),
        env={"E2FSPROGS_FAKE_TIME": str(epoch), "SOURCE_DATE_EPOCH": str(epoch)},
    )
    said = host.run("dumpe2fs", "-h", target).decode()
    counts = {name: int(number) for name, number in re.findall(r"^(Inode count|Free inodes): +(\d+)$", said, re.M)}
    same_times(target, epoch, counts["Inode count"] - counts["Free inodes"])


def same_times(image: Path, epoch: int, used: int) -> None:
    """The times of inodes that mkfs.ext4 takes from our disk: last read, last changed (before e2fsprogs 1.47.1)."""
    inodes = (2, *range(11, used + 1))
    changes = "".join(
        f"set_inode_field <{number}> {name} @{epoch}\n" for number in inodes for name in ("atime", "ctime")
    )
    host.run("debugfs", "-w", "-f", "-", image, stdin=changes, env={"E2FSPROGS_FAKE_TIME": str(epoch)})


def assemble(
    target: Path,
    board: str,
    partitions: tuple[Partition, ...],
    content: Mapping[str, Path | bytes],
    *,
    hybrid: bool = False,
) -> None:
    """The whole image: the table, and the content of the partitions that have one. Holes stay holes."""
    target.unlink(missing_ok=True)
    with ExitStack() as stack:
        out = stack.enter_context(target.open("w+b"))
        out.truncate(total(partitions))
        host.run("sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", target, stdin=table(board, partitions))
        if hybrid:
            out.seek(0)
            sector = hybrid_mbr(out.read(SECTOR), partitions[0])
            out.seek(0)
            out.write(sector)
        for part in partitions:
            what = content.get(part.name)
            if isinstance(what, bytes):
                out.seek(part.offset)
                out.write(what)
            elif what is not None:
                copy_sparse(stack.enter_context(what.open("rb")), out, part.offset)


def copy_sparse(source: BinaryIO, out: BinaryIO, offset: int) -> None:
    """Copy what is not a hole to `offset` of `out`."""
    for start, end in data_ranges(source):
        source.seek(start)
        out.seek(offset + start)
        left = end - start
        while left:
            block = source.read(min(left, 4 * MIB))
            out.write(block)
            left -= len(block)


def data_ranges(file: BinaryIO) -> Iterator[tuple[int, int]]:
    """(start, end) of what is not a hole, in bytes."""
    size, at = os.fstat(file.fileno()).st_size, 0
    while at < size:
        try:
            start = os.lseek(file.fileno(), at, os.SEEK_DATA)
        except OSError:  # ENXIO: nothing but a hole from here on
            return
        at = os.lseek(file.fileno(), start, os.SEEK_HOLE)
        yield start, at
