"""Files that travel in blocks: model bundles that come in, pictures and diagnostics that go out. Calls block.

A bundle is named by its sha256 and grows in `<sha256>.part`, each block on disk before it is answered, so that a
transfer goes on where it was broken off, by power cuts too. Only a file whose hash is right gets its name, by a rename;
whose signature it carries is asked by the worker that loads it, as ever. What goes out is bounded: the oldest goes first.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gateway import durable
from gateway.command import Blob, Block, BlocksGetArgs, BundlePutArgs, Have
from gateway.errors import ControlError, StoreError

MAX_BUNDLES = 2 << 30  # bytes of all of them
MAX_PARTS = 2  # transfers that were begun; the oldest is forgotten for a new one
MIN_FREE = 64 << 20  # of the disk, left to the spool
MAX_BLOBS = 8
MAX_BLOB = 16 << 20


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"{folder}: {error.strerror}", hint="check the disk") from error


_REMEMBERED = 100  # more files than there ever are in one folder


class _Turns:
    """In which order files were written, whatever the clock did meanwhile; those of earlier runs by their dates."""

    def __init__(self) -> None:
        self._turn: dict[str, int] = {}

    def wrote(self, path: Path) -> None:
        last = max(self._turn.values(), default=0)
        self._turn.pop(path.name, None)
        self._turn[path.name] = last + 1
        if len(self._turn) > _REMEMBERED:
            del self._turn[next(iter(self._turn))]

    def age(self, path: Path) -> tuple[int, int]:
        """A key that sorts the oldest first."""
        return self._turn.get(path.name, 0), path.stat().st_mtime_ns


class Bundles:
    """The folder of bundles that were sent here, or of other files that come in the same blocks."""

    def __init__(self, folder: Path, suffix: str = ".octo") -> None:
        self._folder = folder
        self._suffix = suffix
        self._turns = _Turns()

    def path(self, sha256: str) -> Path:
        return self._folder / f"{sha256}{self._suffix}"

    def put(self, block: BundlePutArgs) -> Have:
        """Take one block; a block that does not join what is there is not taken, and the answer says where to go on.

        Raises:
            ControlError: no room, or the whole has another hash (then it is begun anew).
            StoreError: the disk refused.
        """
        with explained(self._folder):
            whole, part = self.path(block.sha256), self._folder / f"{block.sha256}.part"
            if whole.exists():
                return Have(block.size, str(whole))
            have = part.stat().st_size if part.exists() else 0
            if block.offset != have or not block.data:
                return Have(have)
            if have + len(block.data) > block.size:
                raise ControlError("more than the size that was told", hint="begin with the right size")
            if have == 0:
                self._make_room(block.size)
                self._turns.wrote(part)
            have += self._append(part, block.data)
            if have < block.size:
                return Have(have)
            self._complete(part, whole, block.sha256)
            return Have(have, str(whole))

    def drop(self, sha256: str) -> None:
        """Delete a bundle, or what has come of it."""
        with explained(self._folder):
            found = [path for path in (self.path(sha256), self._folder / f"{sha256}.part") if path.exists()]
            if not found:
                raise ControlError(f"no bundle {sha256[:12]} was sent here")
            for path in found:
                path.unlink()

    def _append(self, part: Path, data: bytes) -> int:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fdatasync(file.fileno())  # the new size counts only with its data
        return len(data)

    def _complete(self, part: Path, whole: Path, sha256: str) -> None:
        with part.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        durable.sync_file(part)
        if found != sha256:
            part.unlink()
            raise ControlError(
                f"what came has sha256 {found[:12]}, not {sha256[:12]}", hint="send it again from the start"
            )
        durable.replace(part, whole)

    def _make_room(self, size: int) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        parts = sorted(self._folder.glob("*.part"), key=self._turns.age)
        for path in parts[: max(0, len(parts) - MAX_PARTS + 1)]:
            path.unlink()
        taken = sum(path.stat().st_size for path in self._folder.iterdir())
        if taken + size > MAX_BUNDLES:
            raise ControlError(
                f"{taken >> 20} MiB of bundles are here, at most {MAX_BUNDLES >> 20}", hint="bundle.drop what is unused"
            )
        disk = os.statvfs(self._folder)
        if disk.f_bavail * disk.f_frsize < size + MIN_FREE:
            raise ControlError("the disk has no room for it", hint="bundle.drop what is unused")


class Blobs:
    """What was too large for an answer, by sha256, the newest few."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._turns = _Turns()

    def keep(self, data: bytes, media: str, name: str = "", seq: int = -1) -> Blob:
        """Keep it until it is one of the oldest.

        Raises:
            ControlError: larger than `MAX_BLOB`.
            StoreError: the disk refused.
        """
        if len(data) > MAX_BLOB:
            raise ControlError(f"{len(data)} bytes are more than can be fetched", hint=f"at most {MAX_BLOB}")
        sha256 = hashlib.sha256(data).hexdigest()
        with explained(self._folder):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            kept = sorted(self._folder.iterdir(), key=self._turns.age)
            for path in kept[: max(0, len(kept) - MAX_BLOBS + 1)]:
                path.unlink()
            part = self._folder / f"{sha256}.part"
            part.write_bytes(data)
            self._turns.wrote(self._folder / sha256)
            part.rename(self._folder / sha256)  # no fsync: after a power cut its hash tells, and it is asked for anew
        return Blob(sha256, len(data), media, name, seq)

    def get(self, wanted: BlocksGetArgs) -> Block:
        """One block; ControlError when the blob is no longer here."""
        path = self._folder / wanted.blob
        with explained(self._folder):
            if not path.exists():
                raise ControlError(f"{wanted.blob[:12]} is not here any more", hint="ask for it again")
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                file.seek(wanted.offset)
                return Block(wanted.offset, size, file.read(wanted.size))
