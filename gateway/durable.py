"""Files that outlive a power cut: each step is on disk when it returns, and `write_whole` is all or nothing.

Plain functions over descriptors, which block. All raise `OSError` when the disk refuses.
"""

from __future__ import annotations

import os
from pathlib import Path


def write(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Write a file anew; a power cut may leave half of it. `mode` is that of a file which was not there."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_whole(path: Path, data: bytes, mode: int = 0o600, part: Path | None = None) -> None:
    """Replace a file: after a power cut there is the old or the new one.

    Args:
        part: where it is written first, in the same folder; needed where two may write at the same time.
    """
    part = part or path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)  # what an earlier try has left may have another mode
    try:
        write(part, data, mode)
        replace(part, path)
    except OSError:  # of a full disk, too: half a file is of no use to anybody
        part.unlink(missing_ok=True)
        raise


def replace(old: Path, new: Path) -> None:
    """Rename a file, whose bytes are on disk, over what has the other name."""
    os.replace(old, new)
    sync_folder(new.parent)


def remove(path: Path) -> None:
    """Delete a file if it is there."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """What others have written of it."""
    _sync(path)


def sync_folder(folder: Path) -> None:
    """The names in it: a rename or a deletion counts only then."""
    _sync(folder)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
