"""What the demo proves at its end: every reading the node put on the wire against what is in the consumer's table.

The node replays a known recording, so each delivered reading is compared with the record it must be: a reading that is
missing, there twice or in another's place cannot hide behind a right count.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import struct
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec

from gateway.contract import EVENTS_STREAM, BatchKind, GatewayStatus

Row = tuple[int, Sequence[float]]  # sequence number, values


class Audit(msgspec.Struct, frozen=True):
    """Readings of one stream.

    Attributes:
        delivered: different sequence numbers in the consumer's table.
        lost: sent and not delivered.
        duplicated: rows with a number that was there already, and readings beyond what was sent.
        reordered: rows behind a later number, or with values that belong elsewhere.
    """

    delivered: int
    lost: int
    duplicated: int
    reordered: int


class Stored(msgspec.Struct, frozen=True):
    """Rows of one stream on the gateway's disk and in the consumer's table."""

    kind: str
    stored: int
    delivered: int = 0


class Summary(msgspec.Struct, frozen=True):
    """The demo's result; `--plain` prints it as one JSON line.

    `sent`, `stored`, `delivered`, `lost`, `duplicated` and `reordered` count readings of the node. The last of the
    events says that the gateway stops. Inferences of its last moments may stay in its spool for the next start.
    """

    sent: int
    stored: int
    delivered: int
    lost: int
    duplicated: int
    reordered: int
    outage_s: float
    inferences: int
    inferences_delivered: int
    events: int
    events_delivered: int
    seconds: float
    node: str
    repeats_dropped: int
    rewinds: int
    reconnects: int
    restarts: int
    cpu_s: float
    rss_mib: float
    commit_p50_ms: float
    commit_p99_ms: float
    models_ms: dict[str, tuple[float, float]]  # p50, p99
    gateway_status: int  # its exit status after SIGTERM

    @property
    def ok(self) -> bool:
        """Nothing lost, doubled or out of place, everything sent was stored and delivered, a good end."""
        whole = self.sent == self.stored == self.delivered > 0
        return whole and not (self.lost or self.duplicated or self.reordered or self.gateway_status)

    def verdict(self) -> str:
        """One plain sentence."""
        if self.ok:
            away = f", through {self.outage_s:.0f} s without a broker" if self.outage_s else ""
            return f"All {self.sent:,} readings arrived, once and in order{away}."
        faults = [
            f"{getattr(self, name):,} {name}" for name in ("lost", "duplicated", "reordered") if getattr(self, name)
        ]
        if not self.sent:
            faults.append("the node sent nothing")
        elif not faults:
            faults.append(f"sent {self.sent:,}, stored {self.stored:,}, delivered {self.delivered:,}")
        if self.gateway_status:
            faults.append(f"the gateway ended with status {self.gateway_status}")
        return f"Not whole: {', '.join(faults)}."


def audit(rows: Iterable[Row], sent: int, expected: Callable[[int], Sequence[float]]) -> Audit:
    """Compare the rows, in the order the consumer gives them, with what was sent.

    Args:
        rows: sequence number and values.
        sent: readings 0 .. sent - 1 were put on the wire.
        expected: the values of reading i.
    """
    seen: set[int] = set()
    highest = -1
    repeated = displaced = 0
    for seq, values in rows:
        if seq in seen:
            repeated += 1
            continue
        if seq < highest or tuple(values) != tuple(expected(seq)):
            displaced += 1
        seen.add(seq)
        highest = max(highest, seq)
    there = sum(seq < sent for seq in seen)
    return Audit(delivered=len(seen), lost=sent - there, duplicated=repeated + len(seen) - there, reordered=displaced)


def recording(shape: Path, layout: str) -> Callable[[int], Sequence[float]]:
    """The values of reading i of a recording that is replayed over and over; `layout` is a struct format."""
    records = list(struct.iter_unpack(layout, shape.read_bytes()))
    return lambda i: records[i % len(records)]


def delivered_rows(database: Path, stream: str) -> list[Row]:
    """One stream of the consumer's table."""
    with _read_only(database) as db:
        rows = db.execute(
            "SELECT r.seq, r.value FROM reading r JOIN stream s ON s.id = r.stream WHERE s.stream = ? "
            "ORDER BY s.id, r.seq",
            (stream,),
        )
        return [(seq, json.loads(value)) for seq, value in rows]


def count(spool: Path, database: Path) -> dict[str, Stored]:
    """By stream: rows in a spool whose daemon has ended, and rows in the consumer's table."""
    with _read_only(spool) as db:
        rows = db.execute(
            "SELECT s.name, s.kind, max(s.next_seq, coalesce(max(b.seq_first + b.n), 0)) "
            "FROM stream s LEFT JOIN batch b ON b.stream = s.id GROUP BY s.id"
        )
        stored = {name: Stored(kind, n) for name, kind, n in rows}
    with _read_only(database) as db:
        arrived = db.execute(
            "SELECT s.stream, count(r.seq) FROM stream s LEFT JOIN reading r ON r.stream = s.id GROUP BY s.stream"
        )
        for name, n in arrived:
            if name in stored:
                stored[name] = msgspec.structs.replace(stored[name], delivered=n)
    return stored


def _read_only(path: Path) -> contextlib.closing[sqlite3.Connection]:
    return contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True))


def summarise(
    readings: Audit,
    streams: dict[str, Stored],
    status: GatewayStatus,
    *,
    stream: str,
    sent: int,
    outage_s: float,
    seconds: float,
    node: str,
    repeats: int,
    gateway_status: int,
) -> Summary:
    """Put together what was counted and the last status of the gateway."""
    nothing = Stored("", 0)
    inferences = [s for s in streams.values() if s.kind == BatchKind.INFERENCES]
    events = streams.get(EVENTS_STREAM, nothing)
    return Summary(
        sent=sent,
        stored=streams.get(stream, nothing).stored,
        delivered=readings.delivered,
        lost=readings.lost,
        duplicated=readings.duplicated,
        reordered=readings.reordered,
        outage_s=round(outage_s, 1),
        inferences=sum(s.stored for s in inferences),
        inferences_delivered=sum(s.delivered for s in inferences),
        events=events.stored,
        events_delivered=events.delivered,
        seconds=round(seconds, 1),
        node=node,
        repeats_dropped=repeats,
        rewinds=status.uplink.rewinds,
        reconnects=status.uplink.reconnects,
        restarts=sum(model.restarts for model in status.models),
        cpu_s=round(status.process.cpu_s, 2),
        rss_mib=round(status.process.rss_bytes / (1 << 20), 1),
        commit_p50_ms=status.spool.commit_p50_ms,
        commit_p99_ms=status.spool.commit_p99_ms,
        models_ms={model.name: (model.p50_ms, model.p99_ms) for model in status.models},
        gateway_status=gateway_status,
    )
