"""A provision file in an image: the data partition taken out, changed and checked as a file of its own.

The partition goes back by the same path as the rest of the image, so that what was provisioned is read back and proven
like everything else, and a target is never changed by anything but `write`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from firmware_tools.disk import gpt, write
from firmware_tools.disk.errors import DiskError, WriteError
from firmware_tools.disk.ext4 import FileSystem
from firmware_tools.disk.source import Image, copy_out
from sdk.provision import Entry, changes, differing

PARTITION = "data"


def prepare(image: Image, entries: Mapping[str, Entry], path: Path) -> list[str]:
    """Make the data partition of an image with these files, at `path`; what differs from the image's, for a person.

    Raises:
        DiskError: the image has no such partition, it is damaged, or there is no room in it.
    """
    copy_out(image, image.partition(PARTITION), path)
    return _apply(path, entries)


def change(path: Path, entries: Mapping[str, Entry], folder: Path, *, dry_run: bool = False) -> list[str]:
    """Put the files into the data partition of a raw image in place; what differed, for a person. Again: nothing.

    Args:
        folder: for a copy of the partition.

    Raises:
        DiskError: it is no raw image, or there is no room in its data partition: it is as it was.
        WriteError: it could not be written back whole.
    """
    with _raw(path, write=not dry_run) as fd:
        found = next((item for item in gpt.parse(os.pread(fd, gpt.HEAD, 0)) if item.name == PARTITION), None)
        if found is None:
            raise DiskError(f"{path}: no partition '{PARTITION}'", hint="is it an image of ./inv image.build?")
        copy = folder / "data.ext4"
        with copy.open("wb") as file:
            for at in range(0, found.size, write.PIECE):
                os.pwrite(file.fileno(), os.pread(fd, min(write.PIECE, found.size - at), found.offset + at), at)
        told = _apply(copy, entries)
        if told and not dry_run:
            _put_back(fd, copy, found, path)
        return told


def _apply(path: Path, entries: Mapping[str, Entry]) -> list[str]:
    system = FileSystem(path)
    system.check()
    present = system.present(entries)
    wanted = differing(present, entries)
    if wanted:
        system.write(wanted)
    return changes(present, entries)


def _put_back(fd: int, copy: Path, partition: gpt.Partition, path: Path) -> None:
    """Only the pieces that differ."""
    try:
        with copy.open("rb") as file:
            for at in range(0, partition.size, write.PIECE):
                size = min(write.PIECE, partition.size - at)
                new = os.pread(file.fileno(), size, at)
                if new != os.pread(fd, size, partition.offset + at):
                    os.pwrite(fd, new, partition.offset + at)
        os.fsync(fd)
    except OSError as error:
        raise WriteError(
            f"{path}: {error.strerror}", hint="its data partition may be damaged; flash it anew"
        ) from error


@contextlib.contextmanager
def _raw(path: Path, *, write: bool) -> Iterator[int]:
    try:
        fd = os.open(path, (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC)
    except OSError as error:
        raise DiskError(f"{path}: {error.strerror}") from error
    try:
        yield fd
    finally:
        os.close(fd)
