"""The partition table of an image: GPT, as in UEFI 2.10 chapter 5, read from its first bytes. Checked by its CRCs."""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass
from itertools import pairwise

from firmware_tools.disk.errors import DiskError

SECTOR = 512  # bytes; images are made for cards and sticks, which all have this
HEAD = 34 * SECTOR  # bytes that hold the header and the usual 128 entries
_HEADER = struct.Struct("<8s4sIIIQQQQ16sQIII")
_ENTRY = struct.Struct("<16s16sQQQ72s")
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,36}")


@dataclass(frozen=True)
class Partition:
    """A partition by its label; `offset` and `size` in bytes."""

    name: str
    offset: int
    size: int

    @property
    def end(self) -> int:
        return self.offset + self.size


def parse(head: bytes) -> tuple[Partition, ...]:
    """The partitions in the order of the table, which stands in the first `HEAD` bytes of a disk.

    Raises:
        DiskError: there is no table, it is damaged, or its partitions overlap or have no usable names.
    """
    header = head[SECTOR : SECTOR + _HEADER.size]
    if len(head) < HEAD or header[:8] != b"EFI PART":
        raise DiskError("no GPT partition table", hint="is this a disk image?")
    _, _, length, crc, _, here, _, _, last, _, table, count, width, table_crc = _HEADER.unpack(header)
    if not _HEADER.size <= length <= SECTOR or here != 1:
        raise DiskError("the partition table's header is damaged")
    whole = bytearray(head[SECTOR : SECTOR + length])
    whole[16:20] = bytes(4)
    start = table * SECTOR
    if zlib.crc32(whole) != crc or width != _ENTRY.size or count > 128 or start + count * width > len(head):
        raise DiskError("the partition table's header is damaged, or not of 128 entries")
    entries = head[start : start + count * width]
    if zlib.crc32(entries) != table_crc:
        raise DiskError("the partition table is damaged")
    rows = [_ENTRY.unpack_from(entries, i * width) for i in range(count)]
    found = [_partition(row[2], row[3], row[5], last) for row in rows if any(row[0])]
    taken = sorted(found, key=lambda item: item.offset)
    for one, two in pairwise(taken):
        if one.end > two.offset:
            raise DiskError(f"the partitions {one.name} and {two.name} overlap")
    if len({item.name for item in found}) != len(found):
        raise DiskError("two partitions of the image have the same name")
    return tuple(found)


def _partition(first: int, end: int, label: bytes, last: int) -> Partition:
    name = label.decode("utf-16-le", errors="replace").partition("\0")[0]
    if not _NAME.fullmatch(name) or not 0 < first <= end <= last:
        raise DiskError(f"the image's partition {name[:36]!r} has no usable name or place")
    return Partition(name, first * SECTOR, (end - first + 1) * SECTOR)
