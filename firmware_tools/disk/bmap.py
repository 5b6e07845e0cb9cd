"""Block maps, format bmap 2.0: which blocks of a disk image hold data, with a sha256 for each range.

The format is that of bmap-tools (its XML files explain themselves; there is no other specification): ranges of blocks
`first-last` or `first`, sorted, each with the sha256 of its bytes, and a sha256 of the file itself with that very field
zeroed. The last block of an image may be short.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.parsers import expat

from firmware_tools.disk.errors import DiskError

BLOCK = 4096  # bytes, of the maps that we write
MAX_BYTES = 32 << 20  # of a file; a range takes about 120
MAX_RANGES = 200_000
MAX_IMAGE = 1 << 44
_FIELDS = ("ImageSize", "BlockSize", "BlocksCount", "MappedBlocksCount", "ChecksumType", "BmapFileChecksum")
_CHECKSUM = re.compile(rb"(<BmapFileChecksum>\s*)([0-9a-f]{64})(\s*</BmapFileChecksum>)")
_RANGE = re.compile(r"\s*(\d{1,12})\s*(?:-\s*(\d{1,12})\s*)?")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_READ = 1 << 20


@dataclass(frozen=True)
class Range:
    """Blocks `first` to `last`, both included, with the sha256 (hex) of their bytes."""

    first: int
    last: int
    sha256: str


@dataclass(frozen=True)
class Bmap:
    """What of an image has to be copied. `ranges` are sorted and do not touch twice the same block."""

    image_size: int  # bytes
    block_size: int  # bytes
    ranges: tuple[Range, ...]

    @property
    def blocks(self) -> int:
        return -(-self.image_size // self.block_size)

    @property
    def mapped_blocks(self) -> int:
        return sum(item.last - item.first + 1 for item in self.ranges)

    def span(self, item: Range) -> tuple[int, int]:
        """The bytes of a range: where it begins and where it ends (not included)."""
        return item.first * self.block_size, min((item.last + 1) * self.block_size, self.image_size)

    def to_bytes(self) -> bytes:
        """The file; the same map gives the same bytes."""
        lines = "".join(f'        <Range chksum="{item.sha256}"> {_text(item)} </Range>\n' for item in self.ranges)
        text = (
            '<?xml version="1.0" ?>\n<bmap version="2.0">\n'
            f"    <ImageSize> {self.image_size} </ImageSize>\n"
            f"    <BlockSize> {self.block_size} </BlockSize>\n"
            f"    <BlocksCount> {self.blocks} </BlocksCount>\n"
            f"    <MappedBlocksCount> {self.mapped_blocks} </MappedBlocksCount>\n"
            "    <ChecksumType> sha256 </ChecksumType>\n"
            f"    <BmapFileChecksum> {'0' * 64} </BmapFileChecksum>\n"
            f"    <BlockMap>\n{lines}    </BlockMap>\n</bmap>\n"
        ).encode()
        return _CHECKSUM.sub(rb"\g<1>" + hashlib.sha256(text).hexdigest().encode() + rb"\g<3>", text, count=1)


def parse(data: bytes) -> Bmap:
    """Read a block map.

    Raises:
        DiskError: too long, not XML of this form, of another version or checksum, or ranges that make no sense.
    """
    if len(data) > MAX_BYTES:
        raise DiskError(f"a block map of {len(data)} bytes", hint=f"at most {MAX_BYTES}")
    found = _CHECKSUM.search(data)
    if found is None:
        raise DiskError("not a block map of version 2.0: no BmapFileChecksum")
    zeroed = data[: found.start(2)] + b"0" * 64 + data[found.end(2) :]
    if hashlib.sha256(zeroed).hexdigest().encode() != found[2]:
        raise DiskError("the block map is damaged: its own checksum is another", hint="get the image's files anew")
    return _read(data)


def _read(data: bytes) -> Bmap:
    reader = _Reader()
    try:
        reader.parser.Parse(data, True)
        fields = {name: reader.fields[name].strip() for name in _FIELDS}
        size, block, count, mapped = (int(_number(fields[name])) for name in _FIELDS[:4])
    except (expat.ExpatError, UnicodeDecodeError) as error:
        raise DiskError(f"the block map is not XML: {error}") from error
    except KeyError as error:
        raise DiskError(f"the block map has no {error.args[0]}") from error
    if not 512 <= block <= 1 << 24 or block & (block - 1) or not 0 < size <= MAX_IMAGE:
        raise DiskError(f"the block map tells of an image of {size} bytes in blocks of {block}")
    if fields["ChecksumType"] != "sha256":
        raise DiskError(f"the block map has checksums of type {fields['ChecksumType'][:20]!r}", hint="only sha256")
    bmap = Bmap(size, block, tuple(reader.ranges))
    before = -1
    for item in bmap.ranges:
        if not before < item.first <= item.last < bmap.blocks:
            raise DiskError(f"the block map's range {_text(item)} is out of order, or past the image's end")
        before = item.last
    if bmap.blocks != count or bmap.mapped_blocks != mapped:
        raise DiskError("the block map's counts are not those of its ranges")
    return bmap


def _text(item: Range) -> str:
    return str(item.first) if item.first == item.last else f"{item.first}-{item.last}"


def _number(text: str) -> str:
    if not re.fullmatch(r"[0-9]{1,15}", text):
        raise DiskError(f"the block map has {text[:20]!r} for a number")
    return text


class _Reader:
    """Collects the fields and ranges. There is no document type in such a file, so no entity can be declared."""

    def __init__(self) -> None:
        self.fields: dict[str, str] = {}
        self.ranges: list[Range] = []
        self._open: list[str] = []
        self._text = ""
        self._sha256 = ""
        self.parser = expat.ParserCreate()
        self.parser.buffer_text = True
        self.parser.StartDoctypeDeclHandler = self._doctype
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._data

    def _doctype(self, *_: object) -> None:
        raise DiskError("the block map declares a document type", hint="no tool writes such a thing; do not use it")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        if not self._open and (name != "bmap" or attributes.get("version", "").split(".")[0] != "2"):
            raise DiskError(f"not a block map of version 2: {name[:20]} {attributes.get('version', '')[:8]}")
        if len(self._open) > 3:
            raise DiskError("the block map is nested too deep")
        self._open.append(name)
        self._text, self._sha256 = "", attributes.get("chksum", "")

    def _data(self, text: str) -> None:
        self._text = (self._text + text)[:200]

    def _end(self, name: str) -> None:
        self._open.pop()
        if name in _FIELDS and self._open == ["bmap"]:
            self.fields[name] = self._text
        elif name == "Range" and self._open == ["bmap", "BlockMap"]:
            match = _RANGE.fullmatch(self._text)
            if match is None or not _SHA256.fullmatch(self._sha256) or len(self.ranges) >= MAX_RANGES:
                raise DiskError(f"the block map's range {self._text[:30]!r} is none, or has no sha256")
            self.ranges.append(Range(int(match[1]), int(match[2] or match[1]), self._sha256))


def of_file(path: Path, block_size: int = BLOCK, progress: Callable[[int], None] = lambda _: None) -> Bmap:
    """Make the map of a raw image by where its file has data (SEEK_DATA); blocks of zeros count as holes.

    The second half matters on file systems that do not know holes: the same image gives the same map there.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        mapped = _mapped(file.fileno(), size, block_size)
        return Bmap(size, block_size, tuple(_hashed(file.fileno(), size, block_size, mapped, progress)))


def _mapped(fd: int, size: int, block: int) -> Iterator[int]:
    """Numbers of the blocks that hold anything but zeros."""
    zeros = bytes(block)
    for start, end in _data(fd, size):
        for at in range(start // block * block, end, block):
            data = os.pread(fd, min(block, size - at), at)
            if data != zeros[: len(data)]:
                yield at // block


def _data(fd: int, size: int) -> Iterator[tuple[int, int]]:
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError:  # ENXIO: only a hole is left
            return
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, end


def _hashed(fd: int, size: int, block: int, mapped: Iterable[int], progress: Callable[[int], None]) -> Iterator[Range]:
    for first, last in _joined(mapped):
        digest, at, end = hashlib.sha256(), first * block, min((last + 1) * block, size)
        while at < end:
            data = os.pread(fd, min(_READ, end - at), at)
            digest.update(data)
            at += len(data)
            progress(at)
        yield Range(first, last, digest.hexdigest())


def _joined(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    first = last = -2
    for number in numbers:
        if number == last:
            continue  # two pieces of data in one block
        if number != last + 1:
            if first >= 0:
                yield first, last
            first = number
        last = number
    if first >= 0:
        yield first, last
