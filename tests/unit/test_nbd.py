"""The disk that forgets: what is flushed stays, what is not may go, and the protocol bears any client."""

import asyncio
import random
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from firmware_tools.nbd import CACHE_BYTES, SECTOR, Disk, serve
from gateway.errors import OctogateError

SECTORS = 8
SIZE = SECTORS * SECTOR
GO, READ, WRITE, DISC, FLUSH, FUA = 7, 0, 1, 2, 3, 1

steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, SECTORS - 1), st.integers(1, 3), st.integers(1, 255)),
        st.tuples(st.sampled_from(["flush", "cut", "reorder"]), st.just(0), st.just(0), st.integers(0, 99)),
    ),
    max_size=30,
)


def disk_in(folder: Path, cache_bytes: int = CACHE_BYTES) -> Disk:
    path = folder / "disk"
    path.write_bytes(bytes(SIZE))
    return Disk(path, cache_bytes)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(steps)
def test_a_sector_is_never_older_than_its_last_flush(tmp_path: Path, done: list[tuple[str, int, int, int]]) -> None:
    disk = disk_in(tmp_path)
    may_be = [{0} for _ in range(SECTORS)]  # what each sector may hold after a cut
    holds = [0] * SECTORS
    for kind, at, n, value in done:
        if kind == "write":
            n = min(n, SECTORS - at)
            disk.write(at * SECTOR, bytes([value]) * n * SECTOR)
            for sector in range(at, at + n):
                may_be[sector].add(value)
                holds[sector] = value
        elif kind == "flush":
            disk.flush()
            may_be = [{value} for value in holds]
        else:
            disk.cut(random.Random(value) if kind == "reorder" else None)
            found = [set(disk.read(i * SECTOR, SECTOR)) for i in range(SECTORS)]
            assert all(len(one) == 1 and one <= may for one, may in zip(found, may_be, strict=True))
            holds = [one.pop() for one in found]
            may_be = [{value} for value in holds]
        assert [disk.read(i * SECTOR, SECTOR)[0] for i in range(SECTORS)] == holds
    disk.close()
    assert [(tmp_path / "disk").read_bytes()[i * SECTOR] for i in range(SECTORS)] == holds


def test_a_cut_without_luck_takes_all_that_was_not_flushed(tmp_path: Path) -> None:
    disk = disk_in(tmp_path)
    disk.write(0, b"a" * SECTOR)
    disk.flush()
    disk.write(0, b"b" * SIZE)
    assert disk.read(0, 1) == b"b"
    assert disk.cut() == SECTORS
    assert disk.read(0, SIZE) == b"a" * SECTOR + bytes(SIZE - SECTOR)
    disk.close()


def test_the_cache_has_an_end(tmp_path: Path) -> None:
    disk = disk_in(tmp_path, cache_bytes=2 * SECTOR)
    for sector in range(4):
        disk.write(sector * SECTOR, b"x" * SECTOR)
    assert 0 < disk.cut() < 4
    disk.close()


def test_half_a_sector_is_no_disk(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(b"123")
    with pytest.raises(OctogateError, match="no whole number of sectors"):
        Disk(tmp_path / "disk")


async def opened(path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, int]:
    """A client that has asked for the export; and the export's size."""
    reader, writer = await asyncio.open_unix_connection(path)
    assert await reader.readexactly(18) == b"NBDMAGICIHAVEOPT\0\x03"
    writer.write(struct.pack(">I8sII", 3, b"IHAVEOPT", GO, 6) + bytes(6))
    await reader.readexactly(20)
    _, size, _ = struct.unpack(">HQH", await reader.readexactly(12))
    await reader.readexactly(20)
    return reader, writer, size


async def ask(
    streams: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    kind: int,
    at: int,
    n: int,
    data: bytes = b"",
    flags: int = 0,
) -> tuple[int, bytes]:
    reader, writer = streams
    writer.write(struct.pack(">IHHQQI", 0x25609513, flags, kind, 7, at, n) + data)
    magic, error, cookie = struct.unpack(">IIQ", await reader.readexactly(16))
    assert (magic, cookie) == (0x67446698, 7)
    return error, await reader.readexactly(n) if kind == READ and not error else b""


def test_it_serves(tmp_path: Path) -> None:
    async def body() -> None:
        disk = disk_in(tmp_path)
        async with serve(disk, tmp_path / "socket"):
            reader, writer, size = await opened(tmp_path / "socket")
            assert size == SIZE
            both = reader, writer
            assert await ask(both, WRITE, 512, 512, b"x" * 512) == (0, b"")
            assert await ask(both, READ, 511, 3) == (0, b"\0xx")
            assert (tmp_path / "disk").read_bytes() == bytes(SIZE)
            assert await ask(both, FLUSH, 0, 0) == (0, b"")
            assert (tmp_path / "disk").read_bytes()[512:1024] == b"x" * 512
            assert await ask(both, WRITE, 0, 512, b"y" * 512, FUA) == (0, b"")
            assert (tmp_path / "disk").read_bytes()[0] == ord("y")
            assert (await ask(both, READ, SIZE, 1))[0] == 22
            assert (await ask(both, 4, 0, 512))[0] == 22
            writer.close()
        disk.close()

    asyncio.run(body())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(st.binary(max_size=300), st.booleans())
def test_any_client_is_borne(tmp_path: Path, noise: bytes, greeted: bool) -> None:
    async def talk() -> None:
        disk = disk_in(tmp_path)
        async with serve(disk, tmp_path / "socket"):
            if greeted:
                _, writer, _ = await opened(tmp_path / "socket")
            else:
                _, writer = await asyncio.open_unix_connection(tmp_path / "socket")
            writer.write(noise)
            writer.close()
            reader, writer, _ = await opened(tmp_path / "socket")
            assert (await ask((reader, writer), READ, 0, 1))[0] == 0
            writer.close()
        disk.close()

    asyncio.run(talk())
