"""The spool's SQLite file: committing, and reading back for the uplinks.

Everything but `read_after` and `rewind_point` runs in the writer thread; those two have a connection of their own, so
that sending never waits for a commit.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gateway.clock import Clock
from gateway.contract import Batch, BatchKind, Mark, Sample
from gateway.errors import StoreError
from gateway.store import recovery
from gateway.store.ballast import Ballast
from gateway.store.columns import Codec, Header, read_header
from gateway.store.retention import Policy
from gateway.store.schema import PAGE, connect, explained, is_damage, migrate, transaction
from gateway.store.split import Part, split
from gateway.store.state import State, Watermark, load, source_of
from gateway.store.upkeep import Confirmed, Upkeep

_NEWEST = "SELECT blob FROM batch WHERE stream = ? AND gap = 0 ORDER BY seq_first DESC LIMIT 1"
MAX_READINGS = 8192  # per batch: bounds what a consumer must hold at once

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


class DamagedBatch(StoreError):
    """One batch cannot be read; the rest can. `id` is which."""

    def __init__(self, id: int, what: str) -> None:
        super().__init__(what)
        self.id = id


class Tables:
    """The open file.

    Attributes:
        recovered: what was found damaged when it was opened, and what became of it; None when it was whole.

    Raises:
        StoreError: it cannot be opened or was made by a newer version.
    """

    def __init__(
        self, path: Path, clock: Clock, max_bytes: int, policy: Policy | None = None, ballast: int = 0
    ) -> None:
        self.path = path
        self._clock = clock
        self._codec, self._checker = Codec(), Codec()
        self._noted: list[tuple[Batch, _Run]] = []
        max_pages = max(max_bytes // PAGE, 256)
        ballast = min(ballast, max_bytes // 8)
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            try:
                self._open(path, max_pages, policy or Policy(), ballast)
            except sqlite3.Error:
                # SQLite cannot even open a file on a full disk: it needs a page or two for its log
                if not Ballast(path, ballast).drop():
                    raise
                self._open(path, max_pages, policy or Policy(), ballast)
        self._reader_turn = threading.Lock()

    def _open(self, path: Path, max_pages: int, policy: Policy, ballast: int) -> None:
        with contextlib.ExitStack() as opened:
            self.recovered = recovery.open_or_rebuild(path, self._clock, max_pages)
            self._writer = opened.enter_context(contextlib.closing(connect(path, max_pages)))
            migrate(self._writer, path)
            self.state: State = load(self._writer)
            self.upkeep = Upkeep(self._writer, path, self.state, self._clock, policy, max_pages, ballast)
            self._reader = opened.enter_context(contextlib.closing(connect(path, max_pages)))
            self._opened = opened.pop_all()

    def newest(self, source: str) -> dict[str, int]:
        """See `Spool.newest`; a batch that cannot be read says nothing."""
        found: dict[str, int] = {}
        for name, id in self.state.ids.items():
            if source_of(name) == source and self.state.kinds[name] is BatchKind.SAMPLES:
                row = self._reader.execute(_NEWEST, (id,)).fetchone()
                with contextlib.suppress(StoreError):
                    if row is not None and read_header(row[0])[0].boot == self._clock.boot:
                        sample = Codec().decode_samples(row[0])[1]
                        found[name] = sample.firsts[-1] + (sample.counts[-1] - 1) * sample.steps[-1]
        return found

    # --- in the writer thread ---------------------------------------------------------------------------------

    def commit(self, samples: Samples, rows: Rows, marks: Mapping[str, Mark]) -> list[Batch]:
        """Encode and store one group; all of it is on disk when this returns, nothing when it raises.

        Raises:
            sqlite3.Error: the file or its disk refused; the group can be handed in again.
        """
        state = self.state
        next_seq, ids = dict(state.next_seq), dict(state.ids)
        noted: list[tuple[Batch, _Run]] = []
        with transaction(self._writer):
            for run in _runs(samples, rows):
                mark = marks.get(source_of(run.stream)) if run.samples else None
                noted.append((self._insert(run, mark, state.head + 1 + len(noted), ids, next_seq), run))
            self._keep_marks(marks[source] for source in sorted(marks.keys() - {source_of(s) for s in samples}))
        state.next_seq, state.ids = next_seq, ids
        fresh = {run.stream: run.kind for _, run in noted}
        if not fresh.keys() <= state.kinds.keys():
            state.kinds = {**state.kinds, **fresh}
        state.marks = {**state.marks, **marks}
        state.head += len(noted)
        self._noted += noted
        return [batch for batch, _ in noted]

    def after_commit(self, confirmed: Confirmed) -> None:
        """Once the group is acknowledged: what can wait. Nothing of it fails for want of room.

        Raises:
            sqlite3.Error: the books could not be written; the next commit tries again.
        """
        upkeep, ids = self.upkeep, self.state.ids
        for batch, run in self._noted:
            upkeep.books.note(ids[run.stream], batch.seq_first, batch.n, len(batch.blob), run.samples)
        upkeep.committed(len(self._noted), sum(len(batch.blob) for batch, _ in self._noted))
        self._noted = []
        if upkeep.due():
            upkeep.run(confirmed)
        upkeep.checkpoint()

    def _insert(self, run: _Run, mark: Mark | None, id: int, ids: dict[str, int], next_seq: dict[str, int]) -> Batch:
        db, clock = self._writer, self._clock
        if run.stream not in ids:
            cursor = db.execute("INSERT INTO stream (name, kind) VALUES (?, ?)", (run.stream, run.kind))
            ids[run.stream], next_seq[run.stream] = cursor.lastrowid or 0, 0
        seq = next_seq[run.stream]
        next_seq[run.stream] = seq + run.n
        header = Header(self.state.epoch, run.stream, seq, run.n, run.kind, run.spec, clock.boot, *clock.wall())
        if run.samples:
            blob = self._codec.encode_samples(header, run.samples)
        else:
            blob = self._codec.encode_rows(header, run.rows)
        session, next_frame = (mark.session, mark.next_seq) if mark else (None, None)
        db.execute(
            "INSERT INTO batch (id, stream, seq_first, n, session, mark, blob) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (id, ids[run.stream], seq, run.n, session, next_frame, blob),
        )
        return Batch(id, run.stream, seq, run.n, blob)

    def _keep_marks(self, marks: Iterable[Mark]) -> None:
        self._writer.executemany(
            "INSERT OR REPLACE INTO mark VALUES (?, ?, ?, ?)",
            [(mark.source, mark.session, mark.next_seq, self.state.head) for mark in marks],
        )

    # --- by the reader ----------------------------------------------------------------------------------------

    def read_after(self, batch_id: int, max_bytes: int) -> list[Batch]:
        """Batches with greater ids, in order, until `max_bytes` are passed; each one's checksum is right.

        Raises:
            DamagedBatch: the first one is damaged.
            StoreError: the file is.
        """
        batches: list[Batch] = []
        size = 0
        with self._reader_turn:
            try:
                rows = self._reader.execute(
                    "SELECT b.id, s.name, b.seq_first, b.n, b.blob FROM batch b JOIN stream s ON s.id = b.stream "
                    "WHERE b.id > ? ORDER BY b.id",
                    (batch_id,),
                )
                for row in rows:
                    batch = Batch(*row)
                    if (wrong := self._wrong(batch)) and not batches:
                        rows.close()
                        raise DamagedBatch(batch.id, wrong)
                    if wrong:
                        break
                    batches.append(batch)
                    size += len(batch.blob)
                    if size >= max_bytes:
                        break
                rows.close()
            except sqlite3.Error as error:
                if not batches:
                    self._explain(batch_id, error)
        return batches

    def split(self, batch: Batch, largest: int) -> list[Part]:
        """A batch as parts of at most `largest` bytes."""
        with self._reader_turn:
            return split(self._checker, batch, largest, self._clock)

    def _wrong(self, batch: Batch) -> str:
        try:
            header = self._checker.check(batch.blob)
        except StoreError as error:
            return str(error)
        if (header.stream, header.seq_first, header.n) != (batch.stream, batch.seq_first, batch.n):
            return f"batch {batch.id} says that it is {header.stream!r} at {header.seq_first}"
        return ""

    def _explain(self, batch_id: int, error: sqlite3.Error) -> None:
        """The next batch cannot be read: is it that one, or the file?"""
        if is_damage(error):
            try:
                (id,) = self._reader.execute("SELECT min(id) FROM batch WHERE id > ?", (batch_id,)).fetchone()
            except sqlite3.Error:
                id = None
            if id is not None:
                raise DamagedBatch(id, f"{self.path}: batch {id}: {error}") from error
            recovery.suspect(self.path)
        raise StoreError(f"{self.path}: cannot read the spool: {error}", hint="start again: it is rebuilt") from error

    def rewind_point(self, watermark: Watermark) -> int:
        """The id before the first batch that is not wholly below the watermark; `head` when all are."""
        with self._reader_turn, explained(self.path):
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

    def at_limit(self) -> bool:
        """Whether the file has all the pages it may have (else a refusal is the disk's)."""
        (pages,) = self._writer.execute("PRAGMA page_count").fetchone()
        (limit,) = self._writer.execute("PRAGMA max_page_count").fetchone()
        return int(pages) >= int(limit)

    def size_bytes(self) -> int:
        return self.path.stat().st_size

    def close(self) -> None:
        self._opened.close()
