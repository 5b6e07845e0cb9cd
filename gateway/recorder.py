"""Writes a recording beside the daemon's work: the loop hands records over, a thread packs and writes them.

The way to the thread is bounded; what finds no room there is counted in the file (LOST), so a slow disk costs the
recording, never a reading.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path

from gateway.recording import (
    END,
    HEAD_SIZE,
    LOSS,
    LOST,
    MAGIC,
    MAX_BODY,
    META,
    Meta,
    Record,
    RecordingError,
    meta_record,
    pack_block,
)

BUFFER_BYTES = 8 << 20  # on the way to the thread; one more record than that is taken when it is empty
BLOCK_BYTES = 256 << 10
_NOT_PUT = (META, LOST, END)
BLOCK_S = 1.0  # what is lost in a power cut, and how often the disk is flushed at most


class Recorder:
    """One recording being written.

    Args:
        path: a new file.
        on_disk: called in the writing thread after each block, with how many of the records that were `put` are on disk.

    Attributes:
        error: why it does not go on; empty while it does.
        records, lost, bytes: put, without room, and the file's size so far.

    Raises:
        RecordingError: the file is there already, or cannot be made.
    """

    def __init__(self, path: Path, meta: Meta, on_disk: Callable[[int], None] = lambda _: None) -> None:
        self.path = path
        self._on_disk = on_disk
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            hint = "choose a new name" if isinstance(error, FileExistsError) else "check the folder"
            raise RecordingError(f"{path}: cannot record to it: {error.strerror}", hint=hint) from error
        self.error = ""
        self.records = self.lost = 0
        self.bytes = 0
        self._put = self._taken = 0  # bytes, by the loop and by the thread: neither writes the other's
        self._unsaid = (0, 0)
        self._queue: queue.SimpleQueue[Record | None] = queue.SimpleQueue()
        self._queue.put(meta_record(meta))
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    def put(self, kind: int, source: int, body: bytes, mono_ns: int | None = None) -> bool:
        """Record something that happened now; False when there was no room."""
        now = time.monotonic_ns() if mono_ns is None else mono_ns
        waiting, size = self._put - self._taken, len(body) + HEAD_SIZE
        if self.error or len(body) > MAX_BODY or (waiting and waiting + size > BUFFER_BYTES):
            self.lost += 1
            self._unsaid = (self._unsaid[0] + 1, self._unsaid[1] + len(body))
            return False
        self._say_lost(now)
        self._put += size
        self.records += 1
        self._queue.put(Record(kind, source, now, body))
        return True

    def close(self) -> None:
        """End it in good order; blocks until it is on disk."""
        now = time.monotonic_ns()
        self._say_lost(now)
        self._queue.put(Record(END, 0, now))
        self._queue.put(None)
        self._thread.join()

    def _say_lost(self, now: int) -> None:
        if self._unsaid[0]:
            self._queue.put(Record(LOST, 0, now, LOSS.pack(*self._unsaid)))
            self._unsaid = (0, 0)

    # --- in the thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._write(MAGIC)
            while self._write_block():
                pass
        except OSError as error:
            self.error = f"{self.path}: cannot write: {error.strerror}"
            while self._queue.get() is not None:  # nothing is kept in memory for a disk that takes nothing
                pass
        finally:
            os.close(self._fd)

    def _write_block(self) -> bool:
        """Gather for a second at most, then write; False at the end. META has the first block for itself."""
        block: list[Record] = []
        size = 0
        record, due = self._queue.get(), time.monotonic() + BLOCK_S
        while record is not None:
            block.append(record)
            size += len(record.body) + HEAD_SIZE
            wait = due - time.monotonic()
            if size >= BLOCK_BYTES or wait <= 0 or record.kind == META:
                break
            try:
                record = self._queue.get(timeout=wait)
            except queue.Empty:
                break
        if block:
            self._write(pack_block(block))
            os.fdatasync(self._fd)
            put = [len(r.body) + HEAD_SIZE for r in block if r.kind not in _NOT_PUT]
            self._taken += sum(put)
            self._on_disk(len(put))
        return record is not None

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]
        self.bytes += len(data)
