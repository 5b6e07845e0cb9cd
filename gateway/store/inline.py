"""A spool for replays: written by the loop itself, and brought into one form at the end, so that it is the same each time."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from pathlib import Path

from gateway.errors import StoreError
from gateway.store.schema import PAGE, connect, connect_reader, explained, migrate
from gateway.store.spool import Spool
from gateway.store.writer import Group, Mend, Unfit, Writer


class InlineWriter(Writer):
    """Commits when it is told to, before it returns."""

    def start(self) -> None:
        """There is no thread."""

    def put(self, work: Group | Mend | Unfit) -> None:
        if not isinstance(work, Group):
            raise StoreError("a replay's spool is not sent")  # only uplinks ask for the rest
        try:
            batches = self._tables.commit(work.samples, work.rows, work.marks)
            self._loop.call_soon(self._told.committed, work, batches, 0.0)
            self._tables.after_commit({})
        except sqlite3.Error as error:  # nothing is tried again: `Spool.status` says why the replay is not whole
            self._told.refused("failing", str(error))

    def close(self) -> None:
        with explained(self._tables.path):
            self._tables.upkeep.run({})
            self._tables.upkeep.checkpoint(now=True)


class InlineSpool(Spool):
    make_writer = InlineWriter


def prepare(path: Path, epoch: bytes) -> None:
    """Make a new spool with a given epoch.

    Raises:
        StoreError: there is one already, or it cannot be made.
    """
    if path.exists():
        raise StoreError(f"{path}: there is a spool already", hint="a replay needs a folder of its own")
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with contextlib.closing(connect(path, (1 << 40) // PAGE)) as db:
            migrate(db, path)
            db.execute("UPDATE spool SET epoch = ?", (epoch,))


def settle(path: Path) -> None:
    """Rebuild the file without what depends on the machine: what was written to its disk, and the order of free pages.

    Raises:
        StoreError: the disk refused.
    """
    part = path.with_name(path.name + ".part")
    with explained(path):
        part.unlink(missing_ok=True)
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("UPDATE wear SET written = 0, wal = 0")
            db.execute("VACUUM INTO ?", (str(part),))
        part.chmod(0o600)
        for ending in ("-wal", "-shm"):
            path.with_name(path.name + ending).unlink(missing_ok=True)
        part.replace(path)


def digest(path: Path) -> str:
    """SHA-256 of all batches in their order, as they are stored and would be sent."""
    sha = hashlib.sha256()
    with contextlib.closing(connect_reader(path)) as db, explained(path):
        for (blob,) in db.execute("SELECT blob FROM batch ORDER BY id"):
            sha.update(len(blob).to_bytes(8, "little") + blob)
    return sha.hexdigest()
