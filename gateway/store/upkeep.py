"""What the writer does besides committing: books, watermarks, retention, packing, checkpoints, and room when there is none.

Runs in the writer thread, after a group was acknowledged, so that none of it is in the way of a reading. One
transaction now and then; nothing while nothing is committed.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path

from gateway.clock import Clock
from gateway.contract import BatchKind
from gateway.store import retention
from gateway.store.ballast import Ballast
from gateway.store.books import Books
from gateway.store.columns import Codec, Gap, Header
from gateway.store.repack import repack
from gateway.store.retention import Found, Policy
from gateway.store.rollup import MINUTE_NS
from gateway.store.schema import transaction
from gateway.store.state import State, Watermark, lowest
from gateway.store.wear import DAY_NS

COMMITS = 512  # between two upkeeps, or
PERIOD_NS = 600 * 10**9  # so long after the last, whichever comes first
WAL_PAGES = 1500  # about so many in the log (6 MB): checkpoint; fewer where the ballast is smaller than that
SPARED, SPARED_SHARE = 500, 4  # of what waits for confirmation, batches and part of the file that are dropped last
ROLLUP_SHARE = 8  # statistics take at most this part of the file
ROLLUP_ROW = 128  # bytes of one, about

Confirmed = Mapping[str, Watermark]  # uplink -> stream -> next sequence number


class Upkeep:
    """Keeps one spool's file in order.

    Attributes:
        maybe_sent: stream -> what follows the newest reading that may have been sent to anybody; moved by the loop.
    """

    def __init__(
        self,
        db: sqlite3.Connection,
        path: Path,
        state: State,
        clock: Clock,
        policy: Policy,
        max_pages: int,
        ballast: int,
    ) -> None:
        self._db = db
        self._state = state
        self._policy = policy
        self._max_pages = max_pages
        self._clock = clock
        self._codec = Codec()
        self._commits = 0
        self._pages = 0  # in the log, estimated
        self._batches = 0  # since the last upkeep
        self._last_ns = clock.mono_ns()
        self._hour = -1
        self._less: dict[int, tuple[int, int]] = {}  # stream -> batches and bytes that this transaction took away
        self._moving: dict[str, dict[str, int]] | None = None  # watermarks that this transaction stores
        self._ballast = Ballast(path, ballast)
        self._ballast.make()
        held = self._ballast.size
        self._wal_pages = max(50, min(WAL_PAGES, held * 3 // 4 // 4120)) if held else WAL_PAGES
        self._frozen = False  # the disk is full: the file must do with the pages it has
        self.books = Books(db, state, clock)
        self.maybe_sent = dict(state.next_seq)  # what an earlier run has sent is not known
        self.dropped, self.damaged = self._ledgered()
        self.dropping = False  # nothing but dropping has made room, of late

    def _ledgered(self) -> tuple[int, int]:
        rows = dict(self._db.execute("SELECT why = 'damaged', sum(n) FROM dropped GROUP BY 1").fetchall())
        return sum(rows.values()), rows.get(1, 0)

    # --- after a commit ----------------------------------------------------------------------------------------

    def committed(self, batches: int, size: int) -> None:
        """A group is on disk."""
        self.books.commits += 1
        self._commits += 1
        self._batches += batches
        self._pages += 2 * batches + size // 4096

    def due(self) -> bool:
        if self._commits >= COMMITS or self._clock.mono_ns() - self._last_ns >= PERIOD_NS:
            return True
        return self.books.knows_better()

    def run(self, confirmed: Confirmed) -> None:
        """Books, watermarks, retention, packing.

        Raises:
            sqlite3.Error: nothing of it was done; it can be tried again.
        """
        with self._transaction():
            self._move_watermarks(confirmed)
            self._trim(confirmed, 1000 + 2 * self._batches, always=False)
            self._limits(confirmed)
            self._repack()
            self._prune_rollups()
            self.books.write(self._state)
        self._finish()
        if self.dropping and self._used() < self._max_pages * 9 // 10:
            self.dropping = False
        self._settle()

    def checkpoint(self, *, now: bool = False) -> None:
        """Move the log into the file when it has become long; readers and the next commit are not kept waiting."""
        if not now and self._pages < self._wal_pages:
            return
        self._pages = 0
        with contextlib.suppress(sqlite3.Error):  # busy or full: the next one does it
            _, frames, _ = self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            self.books.wal.checkpointed(frames)

    def make_room(self, confirmed: Confirmed, *, disk: bool) -> bool:
        """There was none for a commit: delete what may go; whether anything did.

        Args:
            disk: the disk is full, not only the file at its limit: the ballast is thrown for the deleting itself.

        Raises:
            sqlite3.Error: not even this could be written.
        """
        if disk or self._frozen:
            self._ballast.drop()
            self._truncate()
            self._freeze()
        try:
            with self._transaction():
                found = self._trim(confirmed, retention.DELETE_AT_ONCE, always=True)
                found = found or self._limits(confirmed)
                if not found and self._policy.drop:
                    found = self._drop(confirmed)
                    self.dropping = self.dropping or found
                if found:
                    self._move_watermarks(confirmed)
                    self.books.write(self._state)
            if found:
                self._finish()
        finally:
            if self._frozen:
                self._truncate()
                self._settle()
        return found

    def _truncate(self) -> None:
        """Give the log's room back to the disk; what is in it goes into the file, which may have to grow for that."""
        with contextlib.suppress(sqlite3.Error):
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            self._pages = 0

    def _freeze(self) -> None:
        """The file grows no more: else the next checkpoint would find no room for what is in the log."""
        (pages,) = self._db.execute("PRAGMA page_count").fetchone()
        self._db.execute(f"PRAGMA max_page_count = {pages}")
        self._frozen = True

    def _settle(self) -> None:
        """Have the ballast again, if the disk has room; then the file may grow."""
        if (self._ballast.make() or not self._ballast.size) and self._frozen:
            self._db.execute(f"PRAGMA max_page_count = {self._max_pages}")
            self._frozen = False

    def mend(self, id: int) -> int:
        """A batch cannot be read any more: noted in the ledger, and a gap in its place; how many readings that were.

        Raises:
            sqlite3.Error: the file is damaged so that not even this can be done.
        """
        row = self._db.execute("SELECT stream, seq_first, n, length(blob) FROM batch WHERE id = ?", (id,)).fetchone()
        if row is None:
            return 0
        with self._transaction():
            self.give_up(row[0], [Found(id, row[1], row[2], row[3], 0)], "damaged")
            self.books.write(self._state)
        self._finish()
        return int(row[2])

    def unfit(self, name: str, seq: int, n: int) -> bool:
        """Too large for an uplink's broker: noted, once, and kept; whether that was new. May raise sqlite3.Error."""
        stream = self._state.ids[name]
        if retention.is_noted(self._db, stream, seq, n, "packet"):
            return False
        with self._transaction():
            retention.note_dropped(self._db, stream, seq, n, "packet", self.books.boot, self.books.mono_ns())
            self.books.write(self._state)
        self._finish()
        return True

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._less, self._moving = {}, None
        with transaction(self._db):
            yield
            self._db.executemany(
                "UPDATE stream SET batches = ?, bytes = ? WHERE id = ?",
                [
                    (totals.batches - less[0], totals.bytes - less[1], stream)
                    for stream, totals in self.books.totals.items()
                    if (less := self._less.get(stream, (0, 0))) != (0, 0) or self.books.is_fresh(stream)
                ],
            )

    def _finish(self) -> None:
        """The transaction is on disk."""
        for stream, (batches, size) in self._less.items():
            totals = self.books.totals[stream]
            totals.batches -= batches
            totals.bytes -= size
        self._less = {}
        if self._moving is not None:
            self._state.confirmed = self._moving
        self.books.written(self._state)
        self._commits = self._batches = 0
        self._last_ns = self._clock.mono_ns()
        self._pages += 8
        self.dropped, self.damaged = self._ledgered()

    # --- deleting (inside a transaction) -----------------------------------------------------------------------

    def _used(self) -> int:
        (pages,) = self._db.execute("PRAGMA page_count").fetchone()
        (free,) = self._db.execute("PRAGMA freelist_count").fetchone()
        return int(pages) - int(free)

    def _delete(self, stream: int, batches: list[Found]) -> None:
        size = retention.delete(self._db, batches)
        before = self._less.get(stream, (0, 0))
        self._less[stream] = (before[0] + len(batches), before[1] + size)

    def _delivered(self, confirmed: Confirmed) -> dict[int, int]:
        """Stream -> the sequence number below which every uplink has it."""
        uplinks = self._policy.uplinks
        return {id: lowest(confirmed, uplinks, name) for name, id in self._state.ids.items()}

    def _trim(self, confirmed: Confirmed, limit: int, *, always: bool) -> bool:
        """Forget the oldest of what is delivered, while the file is more than half full."""
        if not always and self._used() < self._max_pages // 2:
            return False
        found = retention.oldest_of_all(self._db, self._delivered(confirmed), limit)
        for stream in {stream for stream, _ in found}:
            self._delete(stream, [batch for s, batch in found if s == stream])
        return bool(found)

    def _limits(self, confirmed: Confirmed) -> bool:
        """Each stream's own limits. Without an uplink nobody waits for what they delete, so the ledger notes it."""
        deleted = False
        for name, stream in self._state.ids.items():
            rule = self._policy.rule(name)
            if not (rule.keep_bytes or rule.keep_ns):
                continue
            following = self._state.next_seq[name]
            below = lowest(confirmed, self._policy.uplinks, name) if self._policy.uplinks else following
            for why, batches in (
                ("age", self._aged(stream, rule, below)),
                ("bytes", self._excess(stream, rule, below)),
            ):
                if not batches:
                    continue
                self._delete(stream, batches)
                deleted = True
                if not self._policy.uplinks:
                    self._note(stream, batches, why)
        return deleted

    def _aged(self, stream: int, rule: retention.Rule, below: int) -> list[Found]:
        if not rule.keep_ns:
            return []
        cut = retention.older_than(self._db, stream, self.books.life_ns() - rule.keep_ns)
        return retention.oldest(self._db, stream, min(below, cut))

    def _excess(self, stream: int, rule: retention.Rule, below: int) -> list[Found]:
        excess = self.books.totals[stream].bytes - self._less.get(stream, (0, 0))[1] - rule.keep_bytes
        found: list[Found] = []
        if not rule.keep_bytes or excess <= 0:
            return found
        for batch in retention.oldest(self._db, stream, below):
            if excess <= 0:
                break
            found.append(batch)
            excess -= batch.size
        return found

    def _drop(self, confirmed: Confirmed) -> bool:
        """Make room by what is not delivered: the oldest of the lowest class that has any."""
        classes: dict[int, dict[int, int]] = {}
        for name, stream in self._state.ids.items():
            classes.setdefault(self._policy.rule(name).priority, {})[stream] = self._state.next_seq[name]
        for _, streams in sorted(classes.items()):
            if found := self._droppable(streams, spare=True) or self._droppable(streams, spare=False):
                for stream, batches in found.items():
                    self.give_up(stream, batches, "full")
                return True
        return False

    def _droppable(self, streams: Mapping[int, int], *, spare: bool) -> dict[int, list[Found]]:
        """The oldest of these, enough for now; `spare` what was sent and is not confirmed: a consumer may have it."""
        sent = {self._state.ids[name]: seq for name, seq in self.maybe_sent.items() if name in self._state.ids}
        room, spared = (self._max_pages * 4096 // SPARED_SHARE, SPARED) if spare else (0, 0)
        found, size = dict[int, list[Found]](), 0
        for stream, batch in retention.oldest_of_all(self._db, streams, retention.DELETE_AT_ONCE):
            if spared and batch.end <= sent.get(stream, 0) and batch.size <= room:
                room, spared = room - batch.size, spared - 1
            elif not batch.gap:
                if size >= min(retention.DROP_BYTES, self._max_pages * 4096 // 64):
                    break
                found.setdefault(stream, []).append(batch)
                size += batch.size
        return found

    def give_up(self, stream: int, batches: list[Found], why: str) -> None:
        """Delete what is not delivered: noted in the ledger, and a gap in its place for the consumers."""
        self._delete(stream, batches)
        self._note(stream, batches, why)
        if self._policy.uplinks:
            for run in retention.neighbours(batches):
                self._leave_gap(stream, run, why)

    def _note(self, stream: int, batches: list[Found], why: str) -> None:
        for run in retention.neighbours([batch for batch in batches if not batch.gap]):
            n = run[-1].end - run[0].seq_first
            retention.note_dropped(self._db, stream, run[0].seq_first, n, why, self.books.boot, self.books.mono_ns())

    def _leave_gap(self, stream: int, run: list[Found], why: str) -> None:
        """One batch in place of many, with the id of the last: who sends on from before it comes by it."""
        first, end, id = run[0].seq_first, run[-1].end, run[-1].id
        before = self._db.execute(
            "SELECT id, seq_first, n, length(blob), gap, blob FROM batch WHERE stream = ? AND seq_first < ? "
            "ORDER BY seq_first DESC LIMIT 1",
            (stream, first),
        ).fetchone()
        if before is not None and before[4] and self._codec.decode_gap(before[5])[1].why == why:
            gap = Found(*before[:5])
            if gap.end == first and end - gap.seq_first <= retention.MAX_GAP:
                self._delete(stream, [gap])
                first = gap.seq_first
        name = next(name for name, id_ in self._state.ids.items() if id_ == stream)
        header = Header(
            self._state.epoch, name, first, end - first, BatchKind.GAP, "", self._clock.boot, *self._clock.wall()
        )
        blob = self._codec.encode_gap(
            header, Gap(why, self._state.kinds[name], self._clock.boot, self._clock.mono_ns())
        )
        self._db.execute(
            "INSERT INTO batch (id, stream, seq_first, n, blob, gap) VALUES (?, ?, ?, ?, ?, 1)",
            (id, stream, first, end - first, blob),
        )
        before_less = self._less.get(stream, (0, 0))
        self._less[stream] = (before_less[0] - 1, before_less[1] - len(blob))

    # --- the rest ----------------------------------------------------------------------------------------------

    def _move_watermarks(self, confirmed: Confirmed) -> None:
        ids = self._state.ids
        moved = [
            (uplink, ids[stream], seq)
            for uplink, watermark in confirmed.items()
            for stream, seq in watermark.items()
            if stream in ids and seq != self._state.confirmed.get(uplink, {}).get(stream)
        ]
        self._db.executemany("INSERT OR REPLACE INTO watermark VALUES (?, ?, ?)", moved)
        self._moving = {uplink: dict(watermark) for uplink, watermark in confirmed.items()}

    def _repack(self) -> None:
        for name, stream in self._state.ids.items():
            if self._state.kinds[name] is not BatchKind.SAMPLES:
                continue
            (packed,) = self._db.execute("SELECT packed FROM stream WHERE id = ?", (stream,)).fetchone()
            now, batches, size = repack(self._db, self._codec, name, stream, packed, self._state.next_seq[name])
            if now != packed:
                self._db.execute("UPDATE stream SET packed = ? WHERE id = ?", (now, stream))
                before = self._less.get(stream, (0, 0))
                self._less[stream] = (before[0] + batches, before[1] + size)

    def _prune_rollups(self) -> None:
        """Once an hour: statistics that are too many for their share of the file, oldest first."""
        hour = self.books.life_ns() // (3600 * 10**9)
        if hour == self._hour or not self._state.ids:
            return
        self._hour = hour
        rows = self._max_pages * 4096 // ROLLUP_SHARE // ROLLUP_ROW // len(self._state.ids)
        boots = self._db.execute("SELECT id, life_ns FROM boot").fetchall()
        for name, stream in self._state.ids.items():
            # the statistics are also what tells the age of readings
            keep_ns = max(rows * MINUTE_NS, self._policy.rule(name).keep_ns + DAY_NS)
            for boot, offset in boots:
                self._db.execute(
                    "DELETE FROM rollup WHERE stream = ? AND boot = ? AND minute < ?",
                    (stream, boot, (self.books.life_ns() - keep_ns - offset) // MINUTE_NS),
                )
