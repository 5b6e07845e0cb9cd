"""`octogate ledger`: what was taken, delivered, dropped and is missing, by sequence number, from the spool itself.

Every number below a stream's next one must be accounted for: it is in the spool, every uplink has confirmed it, or a
line of the ledger says when and why it was deleted. What is none of these is missing, and there should never be any.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    import sqlite3

    from gateway.store.state import Watermarks

ANSWER_S = 5.0  # a daemon that takes longer is not waited for
Range = tuple[int, int]  # from, to (exclusive)


class Dropped(msgspec.Struct, frozen=True):
    """Readings or rows that were deleted before every uplink had them."""

    stream: str
    seq_first: int
    n: int
    why: str  # full, damaged, age, bytes; packet: too large for a broker, it may still be here
    first: str  # when (UTC); or how long after which boot, where the time was never known
    last: str


class StreamLedger(msgspec.Struct, frozen=True):
    """One stream's account; all numbers are readings or rows.

    Attributes:
        taken: acknowledged to the source, since the spool was made.
        oldest: the first that is still in the spool.
        delivered: uplink -> confirmed by its consumer.
        dropped: why -> how many.
        missing: ranges (from, to exclusive) that nothing accounts for.
        unreadable: in the spool, but the checksum is wrong; only looked for when asked to.
    """

    stream: str
    kind: str
    taken: int
    oldest: int
    delivered: dict[str, int]
    dropped: dict[str, int]
    missing: tuple[Range, ...]
    unreadable: int = 0


class Ledger(msgspec.Struct, frozen=True):
    """The whole spool's account.

    Attributes:
        live: the running daemon was asked what is delivered; if not, that may be some minutes old.
        history: the times the spool was rebuilt after damage.
    """

    epoch: str
    live: bool
    streams: tuple[StreamLedger, ...]
    dropped: tuple[Dropped, ...]
    history: tuple[dict[str, Any], ...]

    @property
    def whole(self) -> bool:
        """Nothing is missing."""
        return not any(stream.missing or stream.unreadable for stream in self.streams)


def read_ledger(path: Path, uplinks: Sequence[str], *, check: bool = False, live: Watermarks | None = None) -> Ledger:
    """The account of a spool; a daemon may be writing it.

    Args:
        uplinks: who must have confirmed what is no more in the spool.
        check: read every batch and verify its checksum, too.
        live: what the daemon that writes it said just before.

    Raises:
        StoreError: there is no spool, or it cannot be read.
    """
    from gateway.store.schema import connect_reader, explained
    from gateway.store.state import load
    from gateway.store.timeline import Timeline

    with contextlib.closing(connect_reader(path)) as db, explained(path):
        db.execute("BEGIN")  # one moment for all that follows
        state, timeline = load(db), Timeline.of(db)
        if live is not None and live.epoch != state.epoch.hex():
            live = None
        known: Sequence[Mapping[str, Mapping[str, int]]] = [state.confirmed, live.confirmed if live else {}]
        names = {id: name for name, id in state.ids.items()}
        dropped = [
            Dropped(names[stream], seq, n, why, _when(timeline, boot, first), _when(timeline, boot, last))
            for stream, seq, n, why, boot, first, last in db.execute(
                "SELECT stream, seq_first, n, why, boot, first_ns, last_ns FROM dropped ORDER BY id"
            )
        ]
        streams = []
        for name, id in sorted(state.ids.items()):
            mine = [entry for entry in dropped if entry.stream == name]
            # the file may have been moved on after the daemon was asked: it never knows less than what it deleted
            delivered = {uplink: max(k.get(uplink, {}).get(name, 0) for k in known) for uplink in uplinks}
            batches, unreadable = _batches(db, id, check)
            gone = [(entry.seq_first, entry.seq_first + entry.n) for entry in mine]
            accounted = [*batches, *gone, (0, min(delivered.values(), default=0))]
            why: dict[str, int] = {}
            for entry in mine:
                why[entry.why] = why.get(entry.why, 0) + entry.n
            taken = state.next_seq[name]
            missing = tuple(holes(accounted, taken))
            oldest = min((first for first, _ in batches), default=taken)
            streams.append(StreamLedger(name, state.kinds[name], taken, oldest, delivered, why, missing, unreadable))
        history = tuple(
            {"what": what, "when": _when(timeline, boot, at), **msgspec.json.decode(detail)}
            for boot, at, what, detail in db.execute("SELECT boot, mono_ns, what, detail FROM history ORDER BY id")
        )
    return Ledger(state.epoch.hex(), live is not None, tuple(streams), tuple(dropped), history)


def _batches(db: sqlite3.Connection, stream: int, check: bool) -> tuple[list[Range], int]:
    from gateway.errors import StoreError
    from gateway.store.columns import Codec

    query = f"SELECT seq_first, n, {'blob' if check else 'NULL'} FROM batch WHERE stream = ? AND gap = 0"
    codec, found, unreadable = Codec(), [], 0
    for first, n, blob in db.execute(query, (stream,)):
        found.append((first, first + n))
        if check:
            try:
                codec.check(blob)
            except StoreError:
                unreadable += n
    return found, unreadable


def holes(accounted: Iterable[Range], end: int) -> list[Range]:
    """What of 0 to `end` none of the ranges covers."""
    found, at = [], 0
    for first, last in sorted(accounted):
        if first >= end:
            break
        if first > at:
            found.append((at, first))
        at = max(at, last)
    if at < end:
        found.append((at, end))
    return found


def _when(timeline: Any, boot: int, mono_ns: int) -> str:
    wall_ns = timeline.wall_ns(boot, mono_ns)
    if wall_ns is None:
        return f"boot {boot} + {mono_ns / 1e9:.0f} s"
    return datetime.fromtimestamp(wall_ns / 1e9, UTC).isoformat(timespec="seconds")


def ledger_text(ledger: Ledger) -> str:
    """For a terminal."""
    head = ("stream", "kind", "taken", "in spool from", "delivered", "dropped", "missing")
    rows = [
        (
            s.stream,
            s.kind,
            str(s.taken),
            str(s.oldest),
            ", ".join(f"{uplink} {seq}" for uplink, seq in s.delivered.items()) or "no uplink",
            ", ".join(f"{why} {n}" for why, n in s.dropped.items()) or "0",
            ", ".join(f"{first} to {end - 1}" for first, end in s.missing) or "0",
        )
        for s in ledger.streams
    ]
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)]
    lines += [f"{s.stream}: {s.unreadable} in damaged batches" for s in ledger.streams if s.unreadable]
    if ledger.dropped:
        lines += ["", "dropped:"]
        lines += [
            f"  {d.first} .. {d.last}  {d.stream}  {d.seq_first} to {d.seq_first + d.n - 1} ({d.n}): {d.why}"
            for d in ledger.dropped
        ]
    lines += [f"{h['when']}: {h['what']}: {h.get('reason', '')}; {h.get('batches', 0)} saved" for h in ledger.history]
    if not ledger.live:
        lines += ["", "the gateway is not running or does not answer: what is delivered may be more"]
    lines += ["", f"epoch {ledger.epoch}: {'nothing is missing' if ledger.whole else 'THERE ARE NUMBERS MISSING'}"]
    return "\n".join(lines)


async def _ask(control: Path) -> Watermarks | None:
    """What the daemon knows to be delivered; None when there is none, or an older one."""
    from gateway.control import Client
    from gateway.errors import ControlError
    from gateway.store.state import Watermarks

    with contextlib.suppress(ControlError, TimeoutError):
        async with asyncio.timeout(ANSWER_S), Client.connect(control) as client:
            return await client.ask("watermarks", Watermarks)
    return None


def command(args: argparse.Namespace) -> int:
    """`octogate ledger`; its exit status."""
    from gateway.config import load

    config = load(args.config)
    uplinks = tuple(table.name for table in config.uplink)
    ledger = read_ledger(config.spool_path, uplinks, check=args.check, live=asyncio.run(_ask(config.control_path)))
    if args.json:
        sys.stdout.write(msgspec.json.encode({"whole": ledger.whole, **msgspec.to_builtins(ledger)}).decode() + "\n")
    else:
        sys.stdout.write(ledger_text(ledger) + "\n")
    return 0 if ledger.whole else 1
