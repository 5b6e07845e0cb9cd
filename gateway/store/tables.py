"""The spool's SQLite file: its tables, and the statements that touch them.

Everything but `read_after` and `rewind_point` runs in the writer thread; those two have a connection of their own, so
that sending never waits for a commit.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gateway.clock import Clock
from gateway.contract import Batch, BatchKind, Mark, Sample
from gateway.errors import StoreError
from gateway.store.columns import Codec, Header

PAGE = 4096
MAX_READINGS = 8192  # per batch: bounds what a consumer must hold at once
TRIM_AT_ONCE = 500  # batches deleted per commit, so that no commit becomes long
TRIM_EVERY = 64  # commits between two looks whether there is something to trim

# One entry a version; each is run once, in order, in one transaction (PRAGMA user_version counts them).
#
# A commit touches as few pages as it can, for the latency and for the flash: it only inserts batches. How far a stream
# and a source have come is read from their last batch; the columns `next_seq`, `head` and the table `mark` hold it for
# what was trimmed.
MIGRATIONS = (
    """
    CREATE TABLE spool (epoch BLOB NOT NULL, head INTEGER NOT NULL);
    CREATE TABLE stream (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        kind TEXT NOT NULL,
        next_seq INTEGER NOT NULL DEFAULT 0,
        confirmed INTEGER NOT NULL DEFAULT 0
    );
    CREATE TABLE batch (
        id INTEGER PRIMARY KEY,
        stream INTEGER NOT NULL REFERENCES stream (id),
        seq_first INTEGER NOT NULL,
        n INTEGER NOT NULL,
        session INTEGER,
        mark INTEGER,
        blob BLOB NOT NULL
    );
    CREATE UNIQUE INDEX batch_by_seq ON batch (stream, seq_first);
    CREATE TABLE mark (
        source TEXT PRIMARY KEY, session INTEGER NOT NULL, next_seq INTEGER NOT NULL, head INTEGER NOT NULL
    );
    """,
)
_LAST_BATCHES = """
    SELECT b.stream, b.id, b.seq_first + b.n, b.session, b.mark FROM stream s JOIN batch b ON b.stream = s.id
    AND b.seq_first = (SELECT max(seq_first) FROM batch WHERE stream = s.id)
"""


def source_of(stream: str) -> str:
    """The source whose readings a stream holds: streams are named `<source>/<node stream>`."""
    return stream.partition("/")[0]


Samples = Mapping[str, Sequence[Sample]]
Rows = Mapping[tuple[str, BatchKind], Sequence[bytes]]


@dataclass(frozen=True, slots=True)
class _Run:
    """What becomes one batch: readings of one schema, or rows."""

    stream: str
    kind: BatchKind
    n: int
    spec: str = ""
    samples: Sequence[Sample] = ()
    rows: Sequence[bytes] = ()


def _runs(samples: Samples, rows: Rows) -> Iterator[_Run]:
    for stream, pieces in samples.items():
        run: list[Sample] = []
        n = 0
        for piece in pieces:
            count = piece.n
            if run and (n + count > MAX_READINGS or piece.schema != run[0].schema):
                yield _Run(stream, BatchKind.SAMPLES, n, run[0].schema.spec(), run)
                run, n = [], 0
            run.append(piece)
            n += count
        if run:
            yield _Run(stream, BatchKind.SAMPLES, n, run[0].schema.spec(), run)
    for (stream, kind), texts in rows.items():
        for at in range(0, len(texts), MAX_READINGS):
            part = texts[at : at + MAX_READINGS]
            yield _Run(stream, kind, len(part), rows=part)


class Tables:
    """The open file.

    Raises:
        StoreError: it cannot be opened, is damaged or was made by a newer version.
    """

    def __init__(self, path: Path, clock: Clock, max_bytes: int) -> None:
        self._path = path
        self._clock = clock
        self._codec = Codec()
        self._max_pages = max(max_bytes // PAGE, 256)
        self._until_trim = 0
        self._reader_turn = threading.Lock()
        with contextlib.ExitStack() as opened:
            with self._explained():
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                self._writer = opened.enter_context(contextlib.closing(self._connect()))
                self._migrate()
                self._reader = opened.enter_context(contextlib.closing(self._connect()))
            self._load()
            self._opened = opened.pop_all()

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, timeout=10, isolation_level=None, check_same_thread=False)
        try:
            db.execute(f"PRAGMA page_size = {PAGE}")
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA cache_size = -1024")
            db.execute(f"PRAGMA max_page_count = {self._max_pages}")
        except sqlite3.Error:
            db.close()
            raise
        return db

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise StoreError(
                f"{self._path}: cannot open the spool: {error}",
                hint="check gateway.data_dir and its disk; move a damaged file aside to start a new epoch",
            ) from error

    def _migrate(self) -> None:
        db = self._writer
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version > len(MIGRATIONS):
            raise StoreError(
                f"{self._path}: made by a newer version of Octogate", hint="update, or use another data_dir"
            )
        for number, script in enumerate(MIGRATIONS[version:], version + 1):
            db.execute("BEGIN IMMEDIATE")
            for statement in filter(str.strip, script.split(";")):
                db.execute(statement)
            if number == 1:
                db.execute("INSERT INTO spool VALUES (?, 0)", (os.urandom(16),))
            db.execute(f"PRAGMA user_version = {number}")
            db.execute("COMMIT")
        self._path.chmod(0o600)

    def _load(self) -> None:
        db = self._writer
        with self._explained():
            self.epoch: bytes
            self.epoch, head = db.execute("SELECT epoch, head FROM spool").fetchone()
            last, self.batches = db.execute("SELECT max(id), count(*) FROM batch").fetchone()
            streams = db.execute("SELECT id, name, kind, next_seq, confirmed FROM stream").fetchall()
            marks = db.execute("SELECT head, source, session, next_seq FROM mark").fetchall()
            ends = {row[0]: row[1:] for row in db.execute(_LAST_BATCHES)}
        self.head: int = max(head, last or 0)
        self._ids: dict[str, int] = {name: id for id, name, *_ in streams}
        self.kinds = {name: BatchKind(kind) for _, name, kind, *_ in streams}
        self.confirmed: dict[str, int] = {name: seq for _, name, _, _, seq in streams}
        self.next_seq: dict[str, int] = {}
        for id, name, _, next_seq, _ in streams:
            batch_id, end, session, mark = ends.get(id, (0, 0, None, None))
            self.next_seq[name] = max(next_seq, end)
            if session is not None:
                marks.append((batch_id, source_of(name), session, mark))
        marks.sort()  # by batch: a later one wins
        self.marks = {source: Mark(source, session, seq) for _, source, session, seq in marks}

    # --- in the writer thread ---------------------------------------------------------------------------------

    def commit(
        self, samples: Samples, rows: Rows, marks: Mapping[str, Mark], confirmed: Mapping[str, int]
    ) -> list[Batch]:
        """Encode and store one group; all of it is on disk when this returns, nothing when it raises.

        Raises:
            sqlite3.Error: the file or its disk refused; the group can be handed in again.
        """
        db = self._writer
        next_seq, ids = dict(self.next_seq), dict(self._ids)
        moved: dict[str, int] = {}
        trimmed = 0
        batches: list[Batch] = []
        look = self._until_trim <= 0
        db.execute("BEGIN IMMEDIATE")
        try:
            if look:  # before the inserts: in a full file it makes the room
                moved = self._move_watermark(ids, confirmed)
                trimmed = self._trim()
            for run in _runs(samples, rows):
                mark = marks.get(source_of(run.stream)) if run.samples else None
                batches.append(self._insert(run, mark, self.head + 1 + len(batches), ids, next_seq))
            self._keep_marks(marks[source] for source in marks.keys() - {source_of(s) for s in samples})
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:  # SQLite rolls some failures back by itself
                db.execute("ROLLBACK")
            self._until_trim = 0
            raise
        self.next_seq, self._ids = next_seq, ids
        self.kinds.update(dict.fromkeys(samples, BatchKind.SAMPLES))
        self.kinds.update(rows.keys())  # pairs of stream and kind
        self.marks.update(marks)
        self.confirmed.update(moved)
        self.batches += len(batches) - trimmed
        self.head += len(batches)
        self._until_trim = self._until_trim - 1 if not look else 0 if trimmed else TRIM_EVERY
        return batches

    def keep_watermark(self, confirmed: Mapping[str, int]) -> None:
        """Store how far the consumer is; done at the end, for while running it is stored along with trimming."""
        with contextlib.suppress(sqlite3.Error):  # the consumer retains it as well
            self.confirmed.update(self._move_watermark(self._ids, confirmed))

    def _insert(self, run: _Run, mark: Mark | None, id: int, ids: dict[str, int], next_seq: dict[str, int]) -> Batch:
        db = self._writer
        if run.stream not in ids:
            cursor = db.execute("INSERT INTO stream (name, kind) VALUES (?, ?)", (run.stream, run.kind))
            ids[run.stream], next_seq[run.stream] = cursor.lastrowid or 0, 0
        seq = next_seq[run.stream]
        next_seq[run.stream] = seq + run.n
        offset = self._clock.wall_offset_ns()
        header = Header(
            self.epoch, run.stream, seq, run.n, run.kind, run.spec, self._clock.boot, offset, self._clock.wall_error_ns
        )
        if run.samples:
            blob = self._codec.encode_samples(header, run.samples)
        else:
            blob = self._codec.encode_rows(header, run.rows)
        session, next_frame = (mark.session, mark.next_seq) if mark else (None, None)
        db.execute(
            "INSERT INTO batch VALUES (?, ?, ?, ?, ?, ?, ?)",
            (id, ids[run.stream], seq, run.n, session, next_frame, blob),
        )
        return Batch(id, run.stream, seq, run.n, blob)

    def _keep_marks(self, marks: Iterable[Mark]) -> None:
        self._writer.executemany(
            "INSERT OR REPLACE INTO mark VALUES (?, ?, ?, ?)",
            [(mark.source, mark.session, mark.next_seq, self.head) for mark in marks],
        )

    def _move_watermark(self, ids: Mapping[str, int], confirmed: Mapping[str, int]) -> dict[str, int]:
        moved = {s: seq for s, seq in confirmed.items() if s in ids and seq > self.confirmed.get(s, 0)}
        self._writer.executemany(
            "UPDATE stream SET confirmed = ? WHERE id = ?", [(seq, ids[s]) for s, seq in moved.items()]
        )
        return moved

    def _trim(self) -> int:
        """Forget the oldest batches that the consumer has, while the file is more than half full."""
        db = self._writer
        (pages,) = db.execute("PRAGMA page_count").fetchone()
        (free,) = db.execute("PRAGMA freelist_count").fetchone()
        if pages - free < self._max_pages // 2:
            return 0
        db.execute("UPDATE spool SET head = ?", (self.head,))
        db.executemany(
            "UPDATE stream SET next_seq = ? WHERE id = ?", [(seq, self._ids[s]) for s, seq in self.next_seq.items()]
        )
        self._keep_marks(self.marks.values())
        return db.execute(
            "DELETE FROM batch WHERE id IN (SELECT b.id FROM batch b JOIN stream s ON s.id = b.stream "
            "WHERE b.seq_first + b.n <= s.confirmed ORDER BY b.id LIMIT ?)",
            (TRIM_AT_ONCE,),
        ).rowcount

    # --- by the reader ----------------------------------------------------------------------------------------

    def read_after(self, batch_id: int, max_bytes: int) -> list[Batch]:
        """Batches with greater ids, in order, until `max_bytes` are passed."""
        batches: list[Batch] = []
        size = 0
        with self._reader_turn, self._explained():
            rows = self._reader.execute(
                "SELECT b.id, s.name, b.seq_first, b.n, b.blob FROM batch b JOIN stream s ON s.id = b.stream "
                "WHERE b.id > ? ORDER BY b.id",
                (batch_id,),
            )
            for row in rows:
                batches.append(Batch(*row))
                size += len(batches[-1].blob)
                if size >= max_bytes:
                    break
            rows.close()
        return batches

    def rewind_point(self, watermark: Mapping[str, int]) -> int:
        """The id before the first batch that is not wholly below the watermark; `head` when all are."""
        with self._reader_turn, self._explained():
            db = self._reader
            (head,) = db.execute("SELECT coalesce(max(id), 0) FROM batch").fetchone()
            first = head + 1
            for stream, name in db.execute("SELECT id, name FROM stream").fetchall():
                seq = watermark.get(name, 0)
                # seq_first is indexed: look from the last batch that starts at or before the watermark
                row = db.execute(
                    "SELECT min(id) FROM batch WHERE stream = :stream AND seq_first + n > :seq AND seq_first >= "
                    "coalesce((SELECT max(seq_first) FROM batch WHERE stream = :stream AND seq_first <= :seq), 0)",
                    {"stream": stream, "seq": seq},
                ).fetchone()
                if row[0] is not None:
                    first = min(first, row[0])
        return int(first) - 1

    def size_bytes(self) -> int:
        return self._path.stat().st_size

    def close(self) -> None:
        self._opened.close()
