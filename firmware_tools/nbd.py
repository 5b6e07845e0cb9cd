"""A disk for an emulated machine that forgets at a power cut what was not flushed.

QEMU's own files outlive QEMU, because the host's page cache does; so killing QEMU shows nothing about flushes. Here the disk is
a small NBD server whose cache is ours: writes stay in memory until the guest flushes, and `Disk.cut` throws them away, all or
a random choice of sectors, as a drive may that reorders.

The protocol is "fixed newstyle" with simple replies: `doc/proto.md` of the NetworkBlockDevice project.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from gateway.errors import OctogateError

SECTOR = 512  # what a drive writes whole or not at all
CACHE_BYTES = 64 << 20  # a drive's cache has an end; what is older has long been written
MAX_REQUEST = 32 << 20  # what clients may ask at once by the specification
MAX_OPTION = 64 << 10

_GREETING = struct.pack(">8s8sH", b"NBDMAGIC", b"IHAVEOPT", 3)  # fixed newstyle, no zeroes
_OPTION = struct.Struct(">8sII")  # magic, option, length
_OPTION_REPLY = struct.Struct(">QIII")  # magic, option, type, length
_REQUEST = struct.Struct(">IHHQQI")  # magic, flags, type, cookie, offset, length
_REPLY = struct.Struct(">IIQ")  # magic, error, cookie
_REPLY_MAGIC, _REQUEST_MAGIC, _SIMPLE_MAGIC = 0x3E889045565A9, 0x25609513, 0x67446698
_EXPORT_NAME, _ABORT, _INFO, _GO = 1, 2, 6, 7
_ACK, _INFO_REPLY, _UNSUPPORTED = 1, 3, (1 << 31) + 1
_READ, _WRITE, _DISC, _FLUSH = range(4)
_HAS_FLAGS, _SEND_FLUSH, _SEND_FUA = 1, 4, 8
_FUA = 1  # of a request
_EIO, _EINVAL = 5, 22


@dataclass
class Disk:
    """A file with a volatile cache in front.

    Attributes:
        path: the file; its size is a multiple of SECTOR.
        cache_bytes: past it the oldest writes reach the file by themselves.
        flushes, lost: flushes obeyed, and sectors thrown away by cuts, so far.
    """

    path: Path
    cache_bytes: int = CACHE_BYTES
    flushes: int = 0
    lost: int = 0
    _writes: list[tuple[int, bytes]] = field(default_factory=list)  # in the order they came
    _held: int = 0

    def __post_init__(self) -> None:
        self._fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        self.size = os.fstat(self._fd).st_size
        if self.size % SECTOR:
            raise OctogateError(
                f"{self.path}: {self.size} bytes are no whole number of sectors", hint="is it an image?"
            )

    def close(self) -> None:
        """What is in the cache is written: an orderly end."""
        self.flush()
        os.close(self._fd)

    def read(self, offset: int, length: int) -> bytes:
        data = bytearray(os.pread(self._fd, length, offset))
        for start, piece in self._writes:
            low, high = max(start, offset), min(start + len(piece), offset + length)
            if low < high:
                data[low - offset : high - offset] = piece[low - start : high - start]
        return bytes(data)

    def write(self, offset: int, data: bytes) -> None:
        self._writes.append((offset, data))
        self._held += len(data)
        if self._held > self.cache_bytes:
            self._settle((len(self._writes) + 1) // 2)

    def flush(self) -> None:
        self.flushes += 1
        self._settle(len(self._writes))

    def cut(self, chance: random.Random | None = None) -> int:
        """The power is gone. Of the cache nothing survives, or those sectors that `chance` picks.

        Returns: how many sectors were lost.
        """
        share = chance.choice((0.0, chance.random())) if chance else 0.0
        lost = 0
        for offset, data in self._writes:
            for at in range(0, len(data), SECTOR):
                if chance and chance.random() < share:
                    os.pwrite(self._fd, data[at : at + SECTOR], offset + at)
                else:
                    lost += 1
        self._writes, self._held = [], 0
        self.lost += lost
        return lost

    def _settle(self, n: int) -> None:
        for offset, data in self._writes[:n]:
            os.pwrite(self._fd, data, offset)
            self._held -= len(data)
        del self._writes[:n]


@asynccontextmanager
async def serve(disk: Disk, path: Path) -> AsyncIterator[None]:
    """Serve the disk at a unix socket until the block is left. After that nothing of a client reaches the disk any more."""
    connections: dict[asyncio.StreamWriter, asyncio.Future[None]] = {}

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        done = connections[writer] = asyncio.get_running_loop().create_future()
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                if await _negotiate(reader, writer, disk.size):
                    await _transmit(reader, writer, disk)
        finally:
            writer.close()
            done.set_result(None)

    path.unlink(missing_ok=True)  # noqa: ASYNC240  (a local socket, microseconds)
    server = await asyncio.start_unix_server(connected, path)
    try:
        yield
    finally:
        server.close()
        for writer, done in connections.items():
            writer.transport.abort()
            await done
        path.unlink(missing_ok=True)  # noqa: ASYNC240


async def _negotiate(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, size: int) -> bool:
    """True when the client wants to go on to reading and writing."""
    flags = _HAS_FLAGS | _SEND_FLUSH | _SEND_FUA
    writer.write(_GREETING)
    no_zeroes = bool(int.from_bytes(await reader.readexactly(4), "big") & 2)
    while True:
        magic, option, length = _OPTION.unpack(await reader.readexactly(_OPTION.size))
        if magic != b"IHAVEOPT" or length > MAX_OPTION:
            return False
        await reader.readexactly(length)  # the export's name: there is one, whatever it is called
        if option == _EXPORT_NAME:
            writer.write(struct.pack(">QH", size, flags) + (b"" if no_zeroes else bytes(124)))
            return True
        if option in (_INFO, _GO):
            info = struct.pack(">HQH", 0, size, flags)
            writer.write(_OPTION_REPLY.pack(_REPLY_MAGIC, option, _INFO_REPLY, len(info)) + info)
        known = option in (_ABORT, _INFO, _GO)
        writer.write(_OPTION_REPLY.pack(_REPLY_MAGIC, option, _ACK if known else _UNSUPPORTED, 0))
        await writer.drain()
        if option in (_ABORT, _GO):
            return bool(option == _GO)


async def _transmit(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, disk: Disk) -> None:
    while True:
        magic, flags, kind, cookie, offset, length = _REQUEST.unpack(await reader.readexactly(_REQUEST.size))
        if magic != _REQUEST_MAGIC or kind == _DISC or length > MAX_REQUEST:
            return
        data = await reader.readexactly(length) if kind == _WRITE else b""
        error, answer = _obey(disk, kind, flags, offset, length, data)
        writer.write(_REPLY.pack(_SIMPLE_MAGIC, error, cookie) + answer)
        await writer.drain()


def _obey(disk: Disk, kind: int, flags: int, offset: int, length: int, data: bytes) -> tuple[int, bytes]:
    """One request; its error number and what was read."""
    if offset + length > disk.size or kind not in (_READ, _WRITE, _FLUSH):
        return _EINVAL, b""
    try:
        if kind == _READ:
            return 0, disk.read(offset, length)
        if kind == _WRITE:
            disk.write(offset, data)
        if kind == _FLUSH or flags & _FUA:
            disk.flush()
    except OSError:
        return _EIO, b""
    return 0, b""
