"""Which commands were begun, and what was answered: so that each id is executed once, across crashes too.

A SQLite file of its own, opened with the first command. An id is on disk before its command runs; one that was begun
and has no answer was interrupted, and is not run again. Calls block: use a thread.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from gateway.errors import StoreError

REMEMBERED = 1000  # ids, the newest; and every one whose absolute deadline has not passed


class Entry(msgspec.Struct, frozen=True):
    """One id: the sha256 of its request, and the answer (JSON), empty while there is none."""

    digest: str
    answer: bytes


class Journal:
    """The file of ids at `path`, made when missing.

    Raises (each call):
        StoreError: the file or its disk refuses.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._turn = threading.Lock()
        self._db: sqlite3.Connection | None = None

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        with self._turn:
            try:
                if self._db is None:
                    self._db = self._open()
                yield self._db
            except (sqlite3.Error, OSError) as error:
                raise StoreError(
                    f"{self._path}: cannot keep the journal of commands: {error}", hint="check the disk"
                ) from error

    def _open(self) -> sqlite3.Connection:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        db = sqlite3.connect(self._path, timeout=5, isolation_level=None, check_same_thread=False)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA cache_size = -256")
        db.execute("PRAGMA wal_autocheckpoint = 64")
        db.execute(
            "CREATE TABLE IF NOT EXISTS command (number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, "
            "digest TEXT NOT NULL, late_ms INTEGER NOT NULL, answer BLOB NOT NULL DEFAULT x'')"
        )
        self._path.chmod(0o600)
        return db

    def find(self, id: str) -> Entry | None:
        """What is known of an id."""
        with self._opened() as db:
            row = db.execute("SELECT digest, answer FROM command WHERE id = ?", (id,)).fetchone()
        return Entry(*row) if row else None

    def begin(self, id: str, digest: str, late_ms: int, now_ms: int | None = None) -> None:
        """This id is about to be executed; `late_ms` is its deadline in UTC, or 0.

        `now_ms` is the time in UTC, by which the deadlines of others may have passed; None: that is not known.
        """
        with self._opened() as db:
            db.execute("INSERT OR REPLACE INTO command (id, digest, late_ms) VALUES (?, ?, ?)", (id, digest, late_ms))
            db.execute(
                "DELETE FROM command WHERE number <= (SELECT max(number) FROM command) - ? AND late_ms < ?",
                (REMEMBERED, now_ms or 1),
            )

    def finish(self, id: str, answer: bytes) -> None:
        """It was executed, and this is what is answered, now and whenever it is asked again."""
        with self._opened() as db:
            db.execute("UPDATE command SET answer = ? WHERE id = ?", (answer, id))

    def close(self) -> None:
        with self._turn:
            if self._db is not None:
                self._db.close()
                self._db = None
