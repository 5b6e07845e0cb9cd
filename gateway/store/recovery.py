"""A damaged spool: found when it is opened, rebuilt from what can still be read, and told.

SQLite drops the end of a damaged log without a word, and with it commits that were acknowledged. That is found here: a
commit is begun only when the one before is on disk, so two or more commits behind the point where the log's checksums
end mean that the medium has lost something, not that the power failed during a write.

The damaged file is moved aside (one is kept). What can be read of it and was not delivered goes into a new file with a
new epoch, under new sequence numbers, for nobody can know any more which numbers were given out; what is missing between
is a gap, `damaged`, in the ledger and for the consumers. What a consumer had confirmed after the watermark was last
stored (minutes at most) is sent once more; each saved batch says which it was, so the receiver knows that it has it.
"""

from __future__ import annotations

import contextlib
import sqlite3
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from gateway import durable
from gateway.clock import Clock
from gateway.contract import BatchKind
from gateway.errors import StoreError
from gateway.store import retention
from gateway.store.columns import MAX_WAS, Codec, Gap, Header, with_header
from gateway.store.schema import connect, is_damage, migrate, transaction

QUICK_BYTES = 16 << 20  # a file up to this size is checked as a whole
ENDS = 64  # batches looked at on both ends of a larger one
MAX_GAP = 1 << 20
_WAL_HEADER, _FRAME_HEADER = 32, 24  # https://www.sqlite.org/fileformat2.html#walformat
_SIDES = ("", "-wal", "-shm")


class Recovered(msgspec.Struct, frozen=True):
    """What was wrong with a spool, and what became of it.

    Attributes:
        reason: what was found.
        aside: where the damaged file is now.
        batches: how many were saved.
        missing: readings and rows known to be missing between those that were saved; what was behind the last one
            that could be read is not known.
    """

    reason: str
    aside: str
    epoch_before: str
    batches: int
    missing: int

    def text(self) -> str:
        return (
            f"the spool was damaged ({self.reason}); it was rebuilt with a new epoch: {self.batches} undelivered "
            f"batches saved, {self.missing} readings or rows missing between them, what came after them unknown; the "
            f"damaged file is {self.aside}"
        )


def suspect(path: Path) -> None:
    """Have the whole file checked when it is opened next."""
    with contextlib.suppress(OSError):
        _mark(path).touch()


def open_or_rebuild(path: Path, clock: Clock, max_pages: int) -> Recovered | None:
    """Look at a spool before it is used; what happened, None when it was whole or new.

    Raises:
        sqlite3.Error, OSError: it cannot be opened for another reason than damage.
    """
    rebuilt = path.with_name(path.name + ".rebuilt")
    if not path.exists():
        if rebuilt.exists():  # stopped between the two steps of `_swap`
            _swap(path, rebuilt)
        return None
    reason = _inspect(path, max_pages)
    if not reason:
        _mark(path).unlink(missing_ok=True)
        return None
    rebuilt.unlink(missing_ok=True)
    found = _rebuild(path, rebuilt, clock, max_pages, reason)
    _swap(path, rebuilt)
    _mark(path).unlink(missing_ok=True)
    return found


def _swap(path: Path, rebuilt: Path) -> None:
    """Move the damaged file aside, first of all, and the rebuilt one in its place."""
    aside = _aside(path)
    for side in _SIDES:
        if (old := path.with_name(path.name + side)).exists():
            old.replace(aside.with_name(aside.name + side))
        else:
            aside.with_name(aside.name + side).unlink(missing_ok=True)
    durable.replace(rebuilt, path)


def _aside(path: Path) -> Path:
    return path.with_name(path.name + ".damaged")


def _mark(path: Path) -> Path:
    return path.with_name(path.name + ".suspect")


# --- finding -------------------------------------------------------------------------------------------------------


def _inspect(path: Path, max_pages: int) -> str:
    """What is wrong with the file; empty when nothing is found."""
    commits = _commit_frames(path)
    try:
        with contextlib.closing(connect(path, max_pages)) as db:
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if not version:
                return ""  # new, or not even migrated once
            _, valid, _ = db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            lost = [frame for frame in commits if frame > valid] if valid >= 0 else []
            if len(lost) > 1:
                return f"its log is broken at page {valid + 1}, with {len(lost)} commits behind that"
            return _look(db, path)
    except sqlite3.Error as error:
        if is_damage(error):
            return str(error)
        raise


def _commit_frames(path: Path) -> list[int]:
    """The numbers (from 1) of the log's frames that end a commit, by their headers alone."""
    found = []
    try:
        with path.with_name(path.name + "-wal").open("rb") as file:
            head = file.read(_WAL_HEADER)
            if len(head) < _WAL_HEADER:
                return []
            (page,) = struct.unpack_from(">I", head, 8)
            if not 512 <= page <= 65536:
                return []
            number = 0
            while len(frame := file.read(_FRAME_HEADER)) == _FRAME_HEADER and frame[8:16] == head[16:24]:
                number += 1
                if struct.unpack_from(">I", frame, 4)[0]:
                    found.append(number)
                file.seek(page, 1)
    except OSError:
        return []
    return found


def _look(db: sqlite3.Connection, path: Path) -> str:
    if _mark(path).exists() or path.stat().st_size <= QUICK_BYTES:
        (answer,) = db.execute("PRAGMA quick_check(1)").fetchone()
        return "" if answer == "ok" else str(answer).splitlines()[0]
    for table in ("spool", "stream", "mark"):
        db.execute(f"SELECT * FROM {table}").fetchall()
    for order in ("", "DESC"):
        db.execute(f"SELECT * FROM batch ORDER BY id {order} LIMIT {ENDS}").fetchall()
    for (stream,) in db.execute("SELECT id FROM stream").fetchall():
        db.execute("SELECT max(seq_first) FROM batch WHERE stream = ?", (stream,)).fetchone()
    return ""


# --- saving --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Saving:
    """The new file while it is filled."""

    db: sqlite3.Connection
    clock: Clock
    epoch: bytes
    boot: int
    codec: Codec = field(default_factory=Codec)
    streams: dict[str, tuple[int, int, int]] = field(default_factory=dict)  # name -> row, next old, next new number
    batches: int = 0
    missing: int = 0

    def take(self, header: Header, blob: bytes, session: int | None, mark: int | None) -> None:
        stream, expected, seq = self.streams.get(header.stream) or self._stream(header)
        if header.seq_first + header.n <= expected:
            return
        if header.seq_first > expected:
            seq = self._gap(stream, header, seq, header.seq_first - expected)
        self._insert(self._next_id(), stream, seq, header, blob, session, mark)
        self.streams[header.stream] = (stream, header.seq_first + header.n, seq + header.n)
        self.batches += 1

    def _next_id(self) -> int:
        (id,) = self.db.execute("SELECT coalesce(max(id), 0) + 1 FROM batch").fetchone()
        return int(id)

    def _stream(self, header: Header) -> tuple[int, int, int]:
        cursor = self.db.execute("INSERT INTO stream (name, kind) VALUES (?, ?)", (header.stream, header.kind))
        return cursor.lastrowid or 0, header.seq_first, 0

    def _insert(
        self, id: int, stream: int, seq: int, header: Header, blob: bytes, session: int | None, mark: int | None
    ) -> None:
        was = ((header.epoch, header.seq_first), *header.was)[:MAX_WAS]
        changed = msgspec.structs.replace(header, epoch=self.epoch, seq_first=seq, was=was)
        self.db.execute(
            "INSERT INTO batch (id, stream, seq_first, n, session, mark, blob) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (id, stream, seq, header.n, session, mark, with_header(blob, changed)),
        )

    def _gap(self, stream: int, header: Header, seq: int, n: int) -> int:
        """`n` readings are missing from `seq` on; the number after them."""
        clock, self.missing = self.clock, self.missing + n
        retention.note_dropped(self.db, stream, seq, n, "damaged", self.boot, clock.mono_ns())
        while n:
            part = min(n, MAX_GAP)
            head = Header(self.epoch, header.stream, seq, part, BatchKind.GAP, "", clock.boot, None, 0)
            blob = self.codec.encode_gap(head, Gap("damaged", header.kind, clock.boot, clock.mono_ns()))
            self.db.execute(
                "INSERT INTO batch (id, stream, seq_first, n, blob, gap) VALUES (?, ?, ?, ?, ?, 1)",
                (self._next_id(), stream, seq, part, blob),
            )
            seq, n = seq + part, n - part
        return seq


def _rebuild(old: Path, new: Path, clock: Clock, max_pages: int, reason: str) -> Recovered:
    before = ""
    with contextlib.closing(connect(new, max_pages)) as db:
        migrate(db, new)
        with transaction(db):
            boot = db.execute(
                "INSERT INTO boot (boot, life_ns) VALUES (?, ?)", (clock.boot, -clock.mono_ns())
            ).lastrowid
            (epoch,) = db.execute("SELECT epoch FROM spool").fetchone()
            saving = _Saving(db, clock, epoch, boot or 0)
            with (
                contextlib.suppress(sqlite3.Error),
                contextlib.closing(sqlite3.connect(old, isolation_level=None)) as dead,
            ):
                before = _copy(dead, saving)
            found = Recovered(reason, str(_aside(old)), before, saving.batches, saving.missing)
            db.execute(
                "INSERT INTO history (boot, mono_ns, what, detail) VALUES (?, ?, 'rebuilt', ?)",
                (boot, clock.mono_ns(), msgspec.json.encode(found).decode()),
            )
    return found


def _copy(dead: sqlite3.Connection, saving: _Saving) -> str:
    """Everything readable that was not delivered, and how far the sources were taken; the old epoch."""
    before, confirmed = "", {}
    with contextlib.suppress(sqlite3.Error):
        before = dead.execute("SELECT epoch FROM spool").fetchone()[0].hex()
    with contextlib.suppress(sqlite3.Error):
        rows = dead.execute(
            "SELECT s.name, min(w.seq), count(*), (SELECT count(DISTINCT uplink) FROM watermark) FROM watermark w "
            "JOIN stream s ON s.id = w.stream GROUP BY s.id"
        )
        confirmed = {name: seq for name, seq, n, uplinks in rows if n == uplinks}
    with contextlib.suppress(sqlite3.Error):
        for mark in dead.execute("SELECT source, session, next_seq FROM mark").fetchall():
            saving.db.execute("INSERT INTO mark VALUES (?, ?, ?, 0)", mark)
    for _, session, mark_seq, blob in _readable(dead):
        if not isinstance(blob, bytes):
            continue
        try:
            header = saving.codec.check(blob)
        except StoreError:
            continue
        if header.kind is not BatchKind.GAP and header.seq_first + header.n > confirmed.get(header.stream, 0):
            saving.take(header, blob, session, mark_seq)
    return before


def _readable(dead: sqlite3.Connection) -> Iterator[tuple[int, int | None, int | None, object]]:
    """Every batch that can still be read, in order; broken pages are stepped over."""
    at = 0
    while True:
        try:
            for row in dead.execute("SELECT id, session, mark, blob FROM batch WHERE id > ? ORDER BY id", (at,)):
                yield row
                at = row[0]
        except sqlite3.Error:
            for step in range(42):
                with contextlib.suppress(sqlite3.Error):
                    query = "SELECT id, session, mark, blob FROM batch WHERE id > ? ORDER BY id LIMIT 1"
                    row = dead.execute(query, (at + (1 << step),)).fetchone()
                    if row is None:
                        return
                    at = row[0] - 1
                    break
            else:
                return
        else:
            return
