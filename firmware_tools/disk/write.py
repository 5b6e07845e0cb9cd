"""Writing an image so that a target is complete or has no partition table, and reading back what was written.

The first and the last MiB, which hold the partition table and its copy, are zeros until all else is on the target and
was read back. Whoever pulls the card earlier has a card that no machine takes for anything.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from firmware_tools.disk.errors import DiskError, VerifyError, WriteError
from firmware_tools.disk.source import Image
from firmware_tools.disk.spans import Span, union, within, without

EDGE = 1 << 20  # bytes at both ends that are written last
PIECE = 1 << 20  # bytes that are verified together, and named when they differ
# Bytes after which the disk must have what it was given, so that what the bar shows is on the disk: as many as it takes
# in about a second, as waiting costs a fast disk half its speed.
FLUSH = (4 << 20, 128 << 20)
SPARSE = ("boot", "rootA", "rootB")  # file systems without a journal: old bytes in their free blocks mean nothing
_BLKFLSBUF = 0x1261  # linux/fs.h

Progress = Callable[[str, int, int], None]  # stage, bytes done, bytes in all


@dataclass(frozen=True)
class Written:
    """What was put on the target: bytes of the image, bytes written of them, and the digest of the pieces."""

    image_size: int
    bytes: int
    sha256: str


@dataclass
class _Pieces:
    """Digests of what was written, in pieces, for reading it back."""

    done: list[tuple[int, int, bytes]] = field(default_factory=list)
    total: int = 0

    def add(self, at: int, data: memoryview | bytes) -> None:
        self.done.append((at, len(data), hashlib.blake2b(data, digest_size=16).digest()))
        self.total += len(data)

    def sha256(self) -> str:
        digest = hashlib.sha256()
        for at, size, piece in sorted(self.done):
            digest.update(f"{at} {size} {piece.hex()}\n".encode())
        return digest.hexdigest()


def plan(image: Image) -> list[Span]:
    """The spans to write: what the map names, and all of each partition whose free blocks mean something.

    A journal is such a thing: after an unclean end, ext4 goes on reading it as long as sequence numbers fit, and those of
    an earlier life of the same card with the same image may fit. So is U-Boot's environment.
    """
    mapped = [image.bmap.span(item) for item in image.bmap.ranges]
    whole = [(item.offset, item.end) for item in image.partitions if item.name not in SPARSE]
    return union([*mapped, *whole, *_edges(image.size)])


def write(image: Image, target: Path, *, replaced: dict[str, Path], progress: Progress = lambda *_: None) -> Written:
    """Write the image, read it back, and only then make it visible by its partition table.

    Args:
        target: a block device that is at least as large as the image, or a regular file, made or overwritten.
        replaced: partitions by name -> files of their size that go there instead of the image's.

    Raises:
        DiskError: the target cannot be opened, or is too small: it is as it was.
        WriteError: the image is damaged or the target refused; VerifyError: it gave back other bytes.
    """
    instead = {item.name: (item.offset, item.end) for item in image.partitions if item.name in replaced}
    spans = plan(image)
    total = sum(end - start for start, end in spans)
    with _opened(target, image.size) as fd:
        edges = _Edges(image.size)
        pieces = _Pieces()
        sink = _Sink(fd, target, pieces, lambda done: progress("writing", done, total))
        edges.erase(fd, target)
        for at, data in _checked(image):
            edges.keep(at, data)
            taken = within(spans, at, at + len(data))
            for start, end in without(taken, union([*instead.values(), *edges.spans])):
                sink.put(start, memoryview(data)[start - at : end - at])
        for name, (start, end) in instead.items():
            _copy(replaced[name], sink, list(without([(start, end)], edges.spans)), start)
            edges.fill(replaced[name], start, end)
        sink.flush()
        _verify(fd, target, pieces.done, lambda done: progress("verifying", done, total))
        # last: what makes a disk of it; the table itself at the very end
        edge = _Pieces()
        for at, data in edges.kept():
            sink.put(at, memoryview(data), edge)
        sink.flush()
        progress("writing", total, total)
        _verify(fd, target, edge.done, lambda done: progress("verifying", pieces.total + done, total))
        return Written(image.size, total, pieces.sha256())


def _edges(size: int) -> list[Span]:
    head = min(EDGE, size)
    return [(0, head), *([(max(head, size - EDGE), size)] if size > head else [])]


class _Edges:
    """The first and last MiB of an image, kept back."""

    def __init__(self, size: int) -> None:
        self.spans = _edges(size)
        self._data = [bytearray(end - start) for start, end in self.spans]

    def keep(self, at: int, data: bytes) -> None:
        for (start, _), kept in zip(self.spans, self._data, strict=True):
            for one, two in within([(at, at + len(data))], start, start + len(kept)):
                kept[one - start : two - start] = data[one - at : two - at]

    def fill(self, path: Path, start: int, end: int) -> None:
        """Take what of a partition's replacement lies in the edges."""
        with path.open("rb") as file:
            for span in self.spans:
                for one, two in within([span], start, end):
                    self.keep(one, os.pread(file.fileno(), two - one, one - start))

    def kept(self) -> list[tuple[int, bytes]]:
        """The last MiB first: a disk is one by what stands at its beginning."""
        return [(start, bytes(data)) for (start, _), data in reversed(list(zip(self.spans, self._data, strict=True)))]

    def erase(self, fd: int, target: Path) -> None:
        """No table at the beginning, at the image's end, nor at the end of the disk, where an earlier one left a copy."""
        size = os.lseek(fd, 0, os.SEEK_END)
        tail = (max(self.spans[-1][1], size - EDGE), size)
        with _refusals(target):
            for start, end in union([*self.spans, tail]):
                _pwrite(fd, memoryview(bytes(end - start)), start)
            os.fsync(fd)


class _Sink:
    """Writes, and waits for the disk every now and then, so that the progress is the disk's and not the cache's."""

    def __init__(self, fd: int, target: Path, pieces: _Pieces, progress: Callable[[int], None]) -> None:
        self._fd, self._target, self._pieces, self._progress = fd, target, pieces, progress
        self._waiting, self._limit = 0, FLUSH[0]
        self._since = time.monotonic()

    def put(self, at: int, data: memoryview, pieces: _Pieces | None = None) -> None:
        with _refusals(self._target, at):
            _pwrite(self._fd, data, at)
        for start in range(0, len(data), PIECE):
            (pieces or self._pieces).add(at + start, data[start : start + PIECE])
        self._waiting += len(data)
        if self._waiting >= self._limit:
            self.flush()

    def flush(self) -> None:
        with _refusals(self._target):
            os.fdatasync(self._fd)
        now = time.monotonic()
        rate = self._waiting / max(now - self._since, 1e-3)
        self._waiting, self._since, self._limit = 0, now, int(min(max(rate, FLUSH[0]), FLUSH[1]))
        self._progress(self._pieces.total)


def _checked(image: Image) -> Iterator[tuple[int, bytes]]:
    """The image's pieces, held against its map: the sha256 of each range, as soon as its last byte has come."""
    ranges = iter(image.bmap.ranges)
    item = next(ranges, None)
    digest = hashlib.sha256()
    try:
        for at, data in image.chunks():
            yield at, data
            while item is not None:
                start, end = image.bmap.span(item)
                digest.update(memoryview(data)[max(start - at, 0) : max(end - at, 0)])
                if end > at + len(data):
                    break
                if digest.hexdigest() != item.sha256:
                    raise WriteError(
                        f"{image.path}: bytes {start} to {end} are not those of its block map",
                        hint="the image is damaged, or of another build; build or copy both again",
                    )
                item, digest = next(ranges, None), hashlib.sha256()
    except DiskError as error:
        raise error if isinstance(error, WriteError) else WriteError(error.what, hint=error.hint) from error


def _copy(path: Path, sink: _Sink, spans: list[Span], offset: int) -> None:
    with path.open("rb") as file:
        for start, end in spans:
            for at in range(start, end, PIECE):
                size = min(PIECE, end - at)
                data = os.pread(file.fileno(), size, at - offset)
                if len(data) != size:
                    raise WriteError(f"{path}: shorter than its partition")
                sink.put(at, memoryview(data))


def _verify(fd: int, target: Path, pieces: list[tuple[int, int, bytes]], progress: Callable[[int], None]) -> None:
    """Read back from the disk, not from the cache."""
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    if stat.S_ISBLK(os.fstat(fd).st_mode):
        fcntl.ioctl(fd, _BLKFLSBUF, 0)
    done = 0
    for at, size, expected in pieces:
        with _refusals(target, at, "reading it back"):
            data = os.pread(fd, size, at)
        if hashlib.blake2b(data, digest_size=16).digest() != expected:
            raise VerifyError(
                f"{target}: bytes {at} to {at + size} read back differ from what was written",
                hint="the card or stick is worn out or not of the size it claims; take another",
            )
        done += size
        progress(done)


@contextmanager
def _refusals(target: Path, at: int = -1, doing: str = "writing") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = f" at byte {at}" if at >= 0 else ""
        raise WriteError(
            f"{target}: {doing}{where}: {error.strerror}", hint="is it full, or was it unplugged?"
        ) from error


def _pwrite(fd: int, data: memoryview, at: int) -> None:
    while data:
        count = os.pwrite(fd, data, at)
        data, at = data[count:], at + count


@contextmanager
def _opened(target: Path, size: int) -> Iterator[int]:
    """The target, for us alone (O_EXCL on a block device fails while anything has it mounted)."""
    device = target.is_block_device()
    flags = os.O_RDWR | os.O_CLOEXEC | (os.O_EXCL if device else os.O_CREAT)
    try:
        fd = os.open(target, flags, 0o644)
    except OSError as error:
        raise DiskError(f"{target}: {error.strerror}", hint="is it mounted, or do you need sudo?") from error
    try:
        if not device:
            try:
                os.ftruncate(fd, 0)
                os.ftruncate(fd, size)
            except OSError as error:
                raise WriteError(f"{target}: {error.strerror}", hint="choose another place") from error
        if (room := os.lseek(fd, 0, os.SEEK_END)) < size:
            raise DiskError(f"{target}: {room} bytes, the image needs {size}", hint="take a larger one")
        yield fd
    finally:
        os.close(fd)
