"""Writes cpio archives in the "newc" format (SVR4, no checksum), which the kernel unpacks as its initrd.

Format: the kernel's Documentation/driver-api/early-userspace/buffer-format.rst. Numbers are eight hexadecimal digits;
a name ends in NUL, name and content are padded to four bytes.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass

MAX_NAME = 4096
MAX_CONTENT = 1 << 31
_TRAILER = "TRAILER!!!"


@dataclass(frozen=True)
class Entry:
    """One file, folder or symbolic link.

    Attributes:
        name: its path without a leading slash.
        mode: type and permissions, as in `stat`.
        content: of a file its bytes, of a link its target.
        device: major and minor number of a device node.
    """

    name: str
    mode: int
    content: bytes = b""
    device: tuple[int, int] = (0, 0)


def folder(name: str) -> Entry:
    return Entry(name, stat.S_IFDIR | 0o755)


def file(name: str, content: bytes, *, executable: bool = False) -> Entry:
    return Entry(name, stat.S_IFREG | (0o755 if executable else 0o644), content)


def link(name: str, target: str) -> Entry:
    return Entry(name, stat.S_IFLNK | 0o777, target.encode())


def archive(entries: Iterable[Entry], mtime: int = 0) -> bytes:
    """The entries in the order given, all owned by root and of the same time (seconds since 1970).

    Raises ValueError: a name or a content that the format has no room for.
    """
    out = bytearray()
    for inode, entry in enumerate([*entries, Entry(_TRAILER, 0)], start=1):
        name = entry.name.encode() + b"\0"
        if entry.name.startswith("/") or b"\0" in name[:-1] or not 1 < len(name) <= MAX_NAME:
            raise ValueError(f"cpio: {entry.name!r} cannot be a name")
        if len(entry.content) > MAX_CONTENT:
            raise ValueError(f"cpio: {entry.name}: {len(entry.content)} bytes are too many")
        links = 2 if stat.S_ISDIR(entry.mode) else 1
        fields = (inode, entry.mode, 0, 0, links, mtime, len(entry.content), 0, 0, *entry.device, len(name), 0)
        out += b"070701" + b"".join(b"%08X" % field for field in fields) + name
        _pad(out)
        out += entry.content
        _pad(out)
    return bytes(out)


def _pad(out: bytearray) -> None:
    out += bytes(-len(out) % 4)
