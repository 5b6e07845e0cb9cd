"""Small disk images for tests: a GPT written here by the UEFI's text, partitions with known bytes, holes between."""

import random
import struct
import uuid
import zlib
from pathlib import Path

import zstandard

from firmware_tools.disk import bmap

MIB = 1 << 20
SECTOR = 512
# name -> (offset, size) in MiB, as the images of ./inv image.build have them, only smaller
LAYOUT = {"boot": (1, 2), "ubootenv": (3, 1), "rootA": (4, 3), "rootB": (7, 3), "data": (10, 4)}
SIZE = 16 * MIB


def gpt_head(layout: dict[str, tuple[int, int]], size: int) -> bytes:
    """The first 34 sectors of a disk: protective MBR, header, 128 entries."""
    last = size // SECTOR - 34
    entries = b"".join(
        struct.pack(
            "<16s16sQQQ72s",
            uuid.uuid5(uuid.NAMESPACE_DNS, "linux").bytes_le,
            uuid.uuid5(uuid.NAMESPACE_DNS, name).bytes_le,
            at * MIB // SECTOR,
            (at + length) * MIB // SECTOR - 1,
            0,
            name.encode("utf-16-le"),
        )
        for name, (at, length) in layout.items()
    ).ljust(128 * 128, b"\0")
    table_crc = zlib.crc32(entries)

    def header(crc: int) -> bytes:
        return struct.pack(
            "<8s4sIIIQQQQ16sQIII", b"EFI PART", b"\0\0\1\0", 92, crc, 0, 1, size // SECTOR - 1, 34, last,
            uuid.uuid5(uuid.NAMESPACE_DNS, "disk").bytes_le, 2, 128, 128, table_crc,
        )  # fmt: skip

    mbr = bytes(446) + struct.pack("<B3sB3sII", 0, b"\0\2\0", 0xEE, b"\xff\xff\xff", 1, size // SECTOR - 1)
    return mbr.ljust(510, b"\0") + b"\x55\xaa" + header(zlib.crc32(header(0))).ljust(SECTOR, b"\0") + entries


def make_image(folder: Path, *, compress: bool = True, seed: int = 1) -> tuple[Path, bytes]:
    """An image with its block map beside it; its path, and its bytes."""
    chance = random.Random(seed)
    data = bytearray(SIZE)
    data[: 34 * SECTOR] = gpt_head(LAYOUT, SIZE)
    for at, length in [(1.0, 0.5), (3.0, 0.25), (4.5, 1.25), (8.0, 0.01), (9.9, 0.3), (12.0, 1.0), (15.99, 0.01)]:
        start, count = int(at * MIB), int(length * MIB)
        data[start : start + count] = chance.randbytes(count)
    raw = folder / "octogate-test.img"
    raw.write_bytes(data)
    raw.with_name(raw.name + ".bmap").write_bytes(bmap.of_file(raw).to_bytes())
    if not compress:
        return raw, bytes(data)
    packed = raw.with_name(raw.name + ".zst")
    packed.write_bytes(zstandard.compress(bytes(data)))
    raw.unlink()
    return packed, bytes(data)
