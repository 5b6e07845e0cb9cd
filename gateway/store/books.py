"""The spool's books: what can be told from its batches, written now and then in one transaction.

A commit only inserts. Bytes per stream, statistics per minute, wear, the offset of this boot's clock: all of it is
gathered in memory from what was committed, and written together after some hundred commits. After a power cut the
batches that are newer than `spool.counted` are read once more, so that the books never miss or count anything twice.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gateway.clock import STEP_NS, UNDISCIPLINED_NS, Clock
from gateway.contract import BatchKind, Sample
from gateway.errors import StoreError
from gateway.store import wear
from gateway.store.columns import Codec, joined, read_header
from gateway.store.rollup import MINUTE_NS, Minute, minutes, unpack
from gateway.store.state import State

RUN = 512  # readings whose statistics are made in one go
RECOVER_BYTES = 16 << 20  # read once more after a power cut, at most; what is beyond has no statistics


@dataclass(slots=True)
class Totals:
    """What a stream has in the spool."""

    batches: int = 0
    bytes: int = 0


class Books:
    """What has been committed since the books were last written, and the totals."""

    def __init__(self, db: sqlite3.Connection, state: State, clock: Clock) -> None:
        self._db = db
        self._clock = clock
        self.totals: dict[int, Totals] = {
            id: Totals(batches, size) for id, batches, size in db.execute("SELECT id, batches, bytes FROM stream")
        }
        self._boots: dict[str, int] = dict(db.execute("SELECT boot, id FROM boot").fetchall())
        self._new_boots: list[tuple[int, str, int]] = []  # row, boot, life offset
        self._offset: tuple[int | None, int] = (None, 0)
        self._trust = _trust(*clock.wall())  # the best of this run
        self._runs: dict[int, list[tuple[int, Sample]]] = {}
        self._run_lengths: dict[int, int] = {}
        self._minutes: dict[tuple[int, int, int, str], Minute] = {}  # stream, boot, minute, schema
        self._fresh: dict[int, list[int]] = {}  # stream -> bytes, readings
        self._written = wear.process_written()
        self._measured_ns = self.since_ns = clock.mono_ns()
        self._written_at_start = self._written
        (self._written_before,) = db.execute("SELECT coalesce(sum(written), 0) FROM wear").fetchone()
        self.commits = 0
        self.wal = wear.WalMeter(_file_of(db))
        self._wal_noted = 0
        self.boot = 0
        self._recover(state)
        self.boot = self._boot_row(clock.boot, state.life_ns - clock.mono_ns())
        self._life_offset = self._boot_life(self.boot)

    def _boot_row(self, boot: str, life_offset_ns: int) -> int:
        """The row of a boot; a new one is inserted with the books, for a full disk must not keep the spool shut."""
        if boot not in self._boots:
            self._boots[boot] = id = max(self._boots.values(), default=0) + 1
            self._new_boots.append((id, boot, life_offset_ns))
        return self._boots[boot]

    def _boot_life(self, boot: int) -> int:
        for id, _, offset in self._new_boots:
            if id == boot:
                return offset
        (known,) = self._db.execute("SELECT life_ns FROM boot WHERE id = ?", (boot,)).fetchone()
        return int(known)

    def life_ns(self) -> int:
        """The spool's life now."""
        return self._clock.mono_ns() + self._life_offset

    def mono_ns(self) -> int:
        """This boot's monotonic time now."""
        return self._clock.mono_ns()

    # --- gathering ----------------------------------------------------------------------------------------------

    def note(self, stream: int, seq: int, n: int, size: int, samples: Sequence[Sample] = ()) -> None:
        """A batch of this boot was committed."""
        self._add(stream, n, size)
        if not samples:
            self._merge((stream, self.boot, self._clock.mono_ns() // MINUTE_NS, ""), Minute(seq, n))
            return
        runs = self._runs.setdefault(stream, [])
        for sample in samples:
            runs.append((seq, sample))
            seq += sample.n
        self._run_lengths[stream] = self._run_lengths.get(stream, 0) + n
        if self._run_lengths[stream] >= RUN:
            self._digest(stream)

    def _add(self, stream: int, n: int, size: int) -> None:
        totals = self.totals.setdefault(stream, Totals())
        totals.batches += 1
        totals.bytes += size
        fresh = self._fresh.setdefault(stream, [0, 0])
        fresh[0] += size
        fresh[1] += n

    def _digest(self, stream: int) -> None:
        """Make the statistics of what was gathered of one stream."""
        self._run_lengths[stream] = 0
        run: list[Sample] = []
        at = 0
        for seq, sample in self._runs.pop(stream, ()):
            if run and sample.schema != run[0].schema:
                self._count(stream, at, run)
                run = []
            if not run:
                at = seq
            run.append(sample)
        if run:
            self._count(stream, at, run)

    def _count(self, stream: int, seq: int, run: Sequence[Sample]) -> None:
        spec = run[0].schema.spec()
        for minute, found in minutes(seq, run[0] if len(run) == 1 else joined(run)):
            self._merge((stream, self.boot, minute, spec), found)

    def _merge(self, key: tuple[int, int, int, str], found: Minute) -> None:
        if (known := self._minutes.get(key)) is None:
            self._minutes[key] = found
        else:
            known.merge(found)

    def _recover(self, state: State) -> None:
        """Gather what was committed after the books were last written, perhaps in another boot."""
        codec, size = Codec(), 0
        rows = self._db.execute(
            "SELECT id, stream, seq_first, n, length(blob), gap FROM batch WHERE id > ? ORDER BY id", (state.counted,)
        ).fetchall()
        for id, stream, seq, n, length, gap in rows:
            self._add(stream, n, length)
            size += length
            if gap or size > RECOVER_BYTES:
                continue
            (blob,) = self._db.execute("SELECT blob FROM batch WHERE id = ?", (id,)).fetchone()
            with contextlib.suppress(StoreError):  # damaged: found, told and mended when it is sent
                header, _ = read_header(blob)
                if header.kind is not BatchKind.SAMPLES:
                    continue
                sample = codec.decode_samples(blob)[1]
                boot = self._boot_row(header.boot, state.life_ns - sample.firsts[0])
                for minute, found in minutes(seq, sample):
                    self._merge((stream, boot, minute, header.spec), found)

    # --- writing (inside a transaction) ------------------------------------------------------------------------

    def write(self, state: State) -> None:
        """Write everything gathered; call `written` when the transaction is on disk."""
        db = self._db
        for stream in list(self._runs):
            self._digest(stream)
        db.executemany("INSERT OR IGNORE INTO boot (id, boot, life_ns) VALUES (?, ?, ?)", self._new_boots)
        self._write_minutes()
        self._write_offset(*self._clock.wall())
        db.execute("UPDATE spool SET head = ?, counted = ?, life_ns = ?", (state.head, state.head, self.life_ns()))
        db.executemany(
            "UPDATE stream SET next_seq = ? WHERE id = ?",
            [(seq, state.ids[name]) for name, seq in state.next_seq.items() if state.ids[name] in self._fresh],
        )
        db.executemany(
            "INSERT OR REPLACE INTO mark VALUES (?, ?, ?, ?)",
            [(mark.source, mark.session, mark.next_seq, state.head) for mark in state.marks.values()],
        )
        self._write_wear()

    def _write_minutes(self) -> None:
        db = self._db
        specs = dict(db.execute("SELECT spec, id FROM spec").fetchall())
        for (stream, boot, minute, spec), found in self._minutes.items():
            if spec not in specs:
                specs[spec] = db.execute("INSERT INTO spec (spec) VALUES (?)", (spec,)).lastrowid or 0
            key = (stream, boot, minute, specs[spec])
            row = db.execute(
                "SELECT seq, n, data FROM rollup WHERE stream = ? AND boot = ? AND minute = ? AND spec = ?", key
            ).fetchone()
            if row is not None:
                known = unpack(*row)
                known.merge(found)
                found = known
            db.execute(
                "INSERT OR REPLACE INTO rollup VALUES (?, ?, ?, ?, ?, ?, ?)", (*key, found.seq, found.n, found.pack())
            )

    def knows_better(self) -> bool:
        """Whether the clock has become known or disciplined since the last `write`, or was set and is trusted no less."""
        offset, error = self._clock.wall()
        if offset is None or self._offset[0] is None:
            return _trust(offset, error) > self._trust
        was_set = abs(offset - self._offset[0]) > STEP_NS
        return (was_set and error <= self._offset[1]) or _trust(offset, error) > self._trust

    def _write_offset(self, offset: int | None, error: int) -> None:
        """The best offset of this boot's clock: the smaller error wins, a later one among equals."""
        self._trust = max(self._trust, _trust(offset, error))
        if offset is not None and (self._offset[0] is None or error <= self._offset[1]):
            if (offset, error) != self._offset:
                self._db.execute(
                    "UPDATE boot SET wall_offset_ns = ?1, wall_error_ns = ?2 WHERE id = ?3 AND "
                    "(wall_error_ns IS NULL OR wall_error_ns >= ?2)",
                    (offset, error, self.boot),
                )
            self._offset = (offset, error)

    def _write_wear(self) -> None:
        db, now = self._db, self._clock.mono_ns()
        day, written = self.life_ns() // wear.DAY_NS, wear.process_written()
        self._wear_delta = (written, now)
        db.execute(
            "INSERT INTO wear VALUES (?, ?, ?, ?, ?) ON CONFLICT (day) DO UPDATE SET written = written + excluded.written,"
            " wal = wal + excluded.wal, commits = commits + excluded.commits, seconds = seconds + excluded.seconds",
            (day, written - self._written, self.wal.bytes - self._wal_noted, self.commits,
             (now - self._measured_ns) // 10**9),
        )  # fmt: skip
        db.executemany(
            "INSERT INTO wear_stream VALUES (?, ?, ?, ?) ON CONFLICT (day, stream) DO UPDATE SET "
            "bytes = bytes + excluded.bytes, n = n + excluded.n",
            [(day, stream, size, n) for stream, (size, n) in self._fresh.items()],
        )

    def written(self, state: State) -> None:
        """What `write` wrote is on disk: begin anew."""
        written, now = self._wear_delta
        self._written_before += written - self._written
        self._written, self._wal_noted, self.commits = written, self.wal.bytes, 0
        self._measured_ns += (now - self._measured_ns) // 10**9 * 10**9
        self._minutes, self._fresh, self._new_boots = {}, {}, []
        state.counted, state.life_ns = state.head, self.life_ns()

    def is_fresh(self, stream: int) -> bool:
        """Whether the stream has got something that is not in the books yet."""
        return stream in self._fresh

    def pending(self) -> bool:
        """Whether anything was gathered since."""
        return bool(self._fresh)

    def wear(self) -> wear.Wear:
        """What the disk had to take, this moment included."""
        written = wear.process_written()
        seconds = (self._clock.mono_ns() - self.since_ns) / 1e9
        per_day = wear.pace(written - self._written_at_start, seconds)
        return wear.Wear(int(self._written_before) + written - self._written, per_day)


def _trust(offset: int | None, error: int) -> int:
    """0: the time of day is not known, 1: it is somebody's word, 2: something keeps it right."""
    return 0 if offset is None else 1 if error >= UNDISCIPLINED_NS else 2


def _file_of(db: sqlite3.Connection) -> Path:
    (_, _, name) = db.execute("PRAGMA database_list").fetchone()
    return Path(name)
