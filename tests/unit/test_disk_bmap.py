"""Block maps and partition tables: round trips, damage of any kind, and files that are no such thing."""

import hashlib
import re
import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware_tools.disk import bmap, gpt
from firmware_tools.disk.bmap import Bmap, Range
from firmware_tools.disk.errors import DiskError
from tests.unit.disk_images import LAYOUT, MIB, SECTOR, SIZE, gpt_head

ZEROS = "0" * 64


@st.composite
def bmaps(draw: st.DrawFn) -> Bmap:
    block = draw(st.sampled_from([512, 4096, 65536]))
    cuts = sorted(draw(st.sets(st.integers(0, 5000), max_size=20)))
    pairs = list(zip(cuts[::2], cuts[1::2], strict=False))
    digests = st.binary(min_size=32, max_size=32).map(bytes.hex)
    ranges = tuple(Range(first, last - 1, draw(digests)) for first, last in pairs)
    size = (max((item.last for item in ranges), default=0) + 1 + draw(st.integers(0, 100))) * block
    return Bmap(size - draw(st.integers(0, block - 1)), block, ranges)


def signed(text: str) -> bytes:
    """A map's text with the checksum that belongs to it."""
    zeroed = re.sub(r"(<BmapFileChecksum>\s*)[0-9a-f]{64}", rf"\g<1>{ZEROS}", text)
    return zeroed.replace(ZEROS, hashlib.sha256(zeroed.encode()).hexdigest(), 1).encode()


@settings(deadline=None)
@given(bmaps())
def test_a_map_is_read_back_as_it_was(made: Bmap) -> None:
    assert bmap.parse(made.to_bytes()) == made


@settings(deadline=None)
@given(st.binary(max_size=3000))
def test_any_bytes_are_a_map_or_refused(data: bytes) -> None:
    with pytest.raises(DiskError):
        bmap.parse(data)


@settings(deadline=None)
@given(bmaps(), st.integers(0, 10_000), st.binary(min_size=1, max_size=1))
def test_a_changed_byte_is_noticed(made: Bmap, at: int, byte: bytes) -> None:
    data = made.to_bytes()
    at %= len(data)
    changed = data[:at] + byte + data[at + 1 :]
    if changed != data:
        with pytest.raises(DiskError):
            bmap.parse(changed)


@settings(deadline=None)
@given(st.text(alphabet="<>/ =\"'&;!abBMRange0123456789-\n", max_size=300))
def test_any_text_with_a_right_checksum_is_a_map_or_refused(inside: str) -> None:
    text = f'<bmap version="2.0">{inside}<BmapFileChecksum>{ZEROS}</BmapFileChecksum></bmap>'
    with pytest.raises(DiskError):  # it lacks the sizes
        bmap.parse(signed(text))


GOOD = Bmap(40960, 4096, (Range(0, 1, "a" * 64), Range(4, 4, "b" * 64))).to_bytes().decode()


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('version="2.0"', 'version="3.0"', "not a block map of version 2"),
        ("<bmap version", '<!DOCTYPE bmap [<!ENTITY a "aa">]><bmap version', "declares a document type"),
        ("sha256 </Ch", "md5 </Ch", "checksums of type 'md5'"),
        ("<BlocksCount> 10 ", "<BlocksCount> 11 ", "counts are not those"),
        ("<MappedBlocksCount> 3 ", "<MappedBlocksCount> 4 ", "counts are not those"),
        ("<ImageSize> 40960 ", "<ImageSize> -1 ", "'-1' for a number"),
        ("<ImageSize> 40960 ", "<ImageSize> ٣ ", "for a number"),
        ("<ImageSize> 40960 ", f"<ImageSize> {1 << 45} ", "tells of an image of"),
        ("<BlockSize> 4096 ", "<BlockSize> 4095 ", "in blocks of 4095"),
        ("> 0-1 <", "> 1-0 <", "out of order"),
        ("> 0-1 <", "> 0-4 <", "out of order"),
        ("> 4 <", "> 10 <", "past the image's end"),
        ("> 4 <", "> four <", "is none"),
        ('chksum="' + "b" * 64, 'chksum="' + "b" * 63, "has no sha256"),
        (f'chksum="{"b" * 64}"', "", "has no sha256"),
        ("</BlockMap>", "", "not XML"),
        ("<BlockMap>", "<BlockMap><a><b><c>", "nested too deep"),
    ],
)
def test_what_is_wrong_with_a_map_is_said(old: str, new: str, complaint: str) -> None:
    assert old in GOOD
    with pytest.raises(DiskError, match=re.escape(complaint)):
        bmap.parse(signed(GOOD.replace(old, new, 1)))


def test_a_map_is_bounded() -> None:
    with pytest.raises(DiskError, match="at most"):
        bmap.parse(b" " * (bmap.MAX_BYTES + 1))


@settings(deadline=None)
@given(blocks=st.lists(st.sampled_from([b"\0", b"\1", b"\2"]), min_size=1, max_size=40), odd=st.integers(0, 511))
def test_the_map_of_a_file_names_what_is_not_zero(
    tmp_path_factory: pytest.TempPathFactory, blocks: list[bytes], odd: int
) -> None:
    data = b"".join(block * 512 for block in blocks)[: len(blocks) * 512 - odd]
    path = tmp_path_factory.mktemp("bmap") / "raw"
    path.write_bytes(data)
    made = bmap.of_file(path, 512)
    assert made.image_size == len(data)
    copy = bytearray(len(data))
    for item in made.ranges:
        start, end = made.span(item)
        copy[start:end] = data[start:end]
        assert hashlib.sha256(data[start:end]).hexdigest() == item.sha256
    assert bytes(copy) == data
    assert made.mapped_blocks == sum(1 for i in range(made.blocks) if any(data[i * 512 : (i + 1) * 512]))


def test_holes_need_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a terabyte of nothing: reading it would take an hour
        file.seek(1 << 30)
        file.write(b"x")
    assert [(item.first, item.last) for item in bmap.of_file(path).ranges] == [(1 << 18, 1 << 18)]


# --- partition tables -----------------------------------------------------------------------------------------------


def test_the_partitions_are_read() -> None:
    found = gpt.parse(gpt_head(LAYOUT, SIZE))
    assert {item.name: (item.offset // MIB, item.size // MIB) for item in found} == LAYOUT


@settings(deadline=None)
@given(st.integers(0, gpt.HEAD - 1), st.integers(1, 255))
def test_a_damaged_table_is_refused(at: int, flip: int) -> None:
    head = bytearray(gpt_head(LAYOUT, SIZE))
    if SECTOR + 92 <= at < 2 * SECTOR or at < SECTOR:
        return  # padding, and the MBR for old systems
    head[at] ^= flip
    with pytest.raises(DiskError):
        gpt.parse(bytes(head))


@settings(deadline=None)
@given(st.binary(max_size=92), st.binary(max_size=4000))
def test_any_table_with_right_sums_is_read_or_refused(header: bytes, entries: bytes) -> None:
    table = entries.ljust(128 * 128, b"\0")
    raw = bytearray(header.ljust(92, b"\0"))
    raw[:8], raw[12:16], raw[24:32] = b"EFI PART", struct.pack("<I", 92), struct.pack("<Q", 1)
    raw[72:92] = struct.pack("<QIII", 2, 128, 128, zlib.crc32(table))
    raw[16:20] = bytes(4)
    raw[16:20] = struct.pack("<I", zlib.crc32(raw))
    try:
        found = gpt.parse(bytes(SECTOR) + bytes(raw).ljust(SECTOR, b"\0") + table)
    except DiskError:
        return
    assert all(item.offset > 0 and item.size > 0 for item in found)


def test_partitions_that_overlap_are_refused() -> None:
    with pytest.raises(DiskError, match="boot and rootA overlap"):
        gpt.parse(gpt_head({"boot": (1, 3), "rootA": (2, 2)}, SIZE))
