"""Small batches made into large ones: they cost a fraction of the disk, and of the time to send them after an outage.

Delivered or not makes no difference. A batch that was sent and is not confirmed may come again as part of a larger one,
under the larger one's key: a consumer takes what it lacks of a batch, as of any that reaches over what it has
(docs/sync.md). The large batch has the id of its last part, so whoever sends on from anywhere among the parts comes by it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass

from gateway.errors import StoreError
from gateway.store.columns import Codec, joined, read_header

WORTH = 2048  # readings; fewer are left until there are more
LARGEST = 8192
LARGEST_BYTES = 120 << 10  # of the parts' bodies together; some brokers take no message above 128 KiB
AT_ONCE = 4096  # batches looked at per stream


@dataclass(frozen=True, slots=True)
class Row:
    """A batch as it stands in its table."""

    id: int
    seq_first: int
    n: int
    session: int | None
    mark: int | None
    blob: bytes


_SMALL = (
    "SELECT id, seq_first, n, session, mark, blob FROM batch WHERE stream = ? AND seq_first >= ? AND "
    "seq_first + n <= ? AND gap = 0 AND n < ? ORDER BY seq_first LIMIT ?"
)


def repack(
    db: sqlite3.Connection, codec: Codec, name: str, stream: int, packed: int, below: int
) -> tuple[int, int, int]:
    """Pack what lies between two sequence numbers of a stream of readings.

    Returns:
        Up to where it is packed now, by how many batches and by how many bytes the stream has become smaller.
    """
    if below - packed < WORTH:
        return packed, 0, 0
    rows = [Row(*row) for row in db.execute(_SMALL, (stream, packed, below, WORTH, AT_ONCE))]
    batches = size = 0
    for run in _runs(rows):
        if sum(row.n for row in run) < WORTH and run[-1] is rows[-1]:
            break  # there will be more
        packed = run[-1].seq_first + run[-1].n
        if len(run) == 1:
            continue
        try:
            blob = _together(codec, name, run)
        except StoreError:  # a damaged one among them: they stay as they are
            continue
        db.executemany("DELETE FROM batch WHERE id = ?", [(row.id,) for row in run])
        last = run[-1]
        db.execute(
            "INSERT INTO batch (id, stream, seq_first, n, session, mark, blob) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (last.id, stream, run[0].seq_first, sum(row.n for row in run), last.session, last.mark, blob),
        )
        batches += len(run) - 1
        size += sum(len(row.blob) for row in run) - len(blob)
    return packed, batches, size


def _runs(rows: list[Row]) -> Iterator[list[Row]]:
    """Rows that may become one: consecutive (in a rebuilt spool also in what they were), of one boot and schema,
    together not too large.
    """
    run: list[Row] = []
    before: tuple[object, ...] = ()
    n = size = 0
    for row in rows:
        try:
            header, at = read_header(row.blob)
            were = tuple((epoch, first - row.seq_first) for epoch, first in header.was)
            alike: tuple[object, ...] = (header.boot, header.spec, were)
            body = len(row.blob) - at
        except StoreError:
            alike, body = ("damaged", row.id), 0
        follows = bool(run) and row.seq_first == run[-1].seq_first + run[-1].n
        fits = n + row.n <= LARGEST and size + body <= LARGEST_BYTES
        if run and not (follows and alike == before and fits):
            yield run
            run, n, size = [], 0, 0
        run.append(row)
        before, n, size = alike, n + row.n, size + body
    if run:
        yield run


def _together(codec: Codec, name: str, run: list[Row]) -> bytes:
    decoded = [codec.decode_samples(row.blob) for row in run]
    first, last = decoded[0][0], decoded[-1][0]
    header = type(first)(
        first.epoch, name, first.seq_first, sum(row.n for row in run), first.kind, first.spec, first.boot,
        last.wall_offset_ns, last.wall_error_ns, first.was,
    )  # fmt: skip
    return codec.encode_samples(header, [joined([sample for _, sample in decoded])])
