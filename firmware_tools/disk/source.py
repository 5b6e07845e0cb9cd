"""The files of a built image: the image itself (raw, or .zst), its block map and its partitions."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import zstandard

from firmware_tools.disk import bmap, gpt
from firmware_tools.disk.bmap import Bmap
from firmware_tools.disk.errors import DiskError

CHUNK = 1 << 20  # bytes read at once
_WINDOW = 1 << 27  # bytes of history that a frame may ask for: what `zstd -19 --long` writes


@dataclass(frozen=True)
class Image:
    """A disk image that was built: where it is, which of its blocks count, and its partitions."""

    path: Path
    bmap: Bmap
    partitions: tuple[gpt.Partition, ...]

    @property
    def size(self) -> int:
        return self.bmap.image_size

    def partition(self, name: str) -> gpt.Partition:
        """The partition of that name; DiskError when there is none."""
        for found in self.partitions:
            if found.name == name:
                return found
        names = ", ".join(item.name for item in self.partitions)
        raise DiskError(f"{self.path}: no partition '{name}'", hint=f"there are: {names}")

    def chunks(self, start: int = 0, end: int | None = None) -> Iterator[tuple[int, bytes]]:
        """The image's bytes with where they belong, in order, pieces of at most `CHUNK`.

        Raises:
            DiskError: it cannot be read, is damaged, or is not as long as its block map says.
        """
        end = self.size if end is None else end
        with _opened(self.path) as stream:
            at = 0
            while at < end:
                data = _read(self.path, stream, min(CHUNK, (start if at < start else end) - at))
                if not data:
                    raise DiskError(f"{self.path}: ends at byte {at} of {self.size}", hint="build or copy it again")
                if at >= start:
                    yield at, data
                at += len(data)
            if end == self.size and _read(self.path, stream, 1):
                raise DiskError(f"{self.path}: longer than its block map says", hint="take the two of one build")


def open_image(path: Path) -> Image:
    """Find the block map beside an image, and read its partitions.

    Raises:
        DiskError: the image or its map is missing or damaged, or it has no partition table.
    """
    raw = path.with_suffix("") if path.suffix == ".zst" else path
    beside = raw.with_name(raw.name + ".bmap")
    try:
        with beside.open("rb") as file:
            text = file.read(bmap.MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise DiskError(f"{beside}: missing", hint="it is built with the image; copy both") from error
    except OSError as error:
        raise DiskError(f"{beside}: {error.strerror}") from error
    image = Image(path, bmap.parse(text), ())
    head = b"".join(data for _, data in image.chunks(0, min(gpt.HEAD, image.size)))
    found = Image(path, image.bmap, gpt.parse(head))
    if found.partitions and max(item.end for item in found.partitions) > found.size:
        raise DiskError(f"{path}: a partition ends past the image", hint="build it again")
    return found


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        file = path.open("rb")
    except OSError as error:
        raise DiskError(f"{path}: {error.strerror}", hint="build it with ./inv image.build") from error
    with file:
        if path.suffix != ".zst":
            yield file
            return
        with zstandard.ZstdDecompressor(max_window_size=_WINDOW).stream_reader(file, read_across_frames=True) as stream:
            yield stream


def _read(path: Path, stream: BinaryIO, size: int) -> bytes:
    """`size` bytes, less only at the end."""
    pieces: list[bytes] = []
    try:
        while size > 0 and (data := stream.read(size)):
            pieces.append(data)
            size -= len(data)
    except (OSError, zstandard.ZstdError) as error:
        raise DiskError(f"{path}: damaged: {error}", hint="build or copy it again") from error
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def copy_out(image: Image, partition: gpt.Partition, path: Path) -> None:
    """One partition of the image as a file of its own, with holes where it has zeros."""
    with path.open("wb") as file:
        for at, data in image.chunks(partition.offset, partition.end):
            if data.count(0) != len(data):
                os.pwrite(file.fileno(), data, at - partition.offset)
        file.truncate(partition.size)
