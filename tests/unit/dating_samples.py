"""Batches of gateways whose clock was not known, then somebody's word, then kept right; and what dates they must get."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import msgspec

from gateway.clock import UNDISCIPLINED_NS
from gateway.contract import BatchKind, Event, Severity, Stamp
from gateway.store.columns import Codec, Header
from sdk.ingest.batches import Arrived, Counts
from sdk.ingest.store import Sink, Table
from tests.unit.ingest_samples import EPOCH, POWER, STREAM, sample

TRUE_NS = 1_800_000_000_000_000_000  # UTC minus monotonic time of boot a
ERROR_NS = 1_000_000
_codec = Codec()


@dataclass(frozen=True)
class Moment:
    """What a gateway thinks of its clock when it makes a batch."""

    offset_ns: int | None
    error_ns: int = UNDISCIPLINED_NS
    boot: str = "boot-a"


UNKNOWN = Moment(None)
RTC = Moment(TRUE_NS - 5 * 365 * 86_400 * 10**9)  # five years behind
NTP = Moment(TRUE_NS, ERROR_NS)


def header(first: int, n: int, kind: BatchKind, moment: Moment, stream: str = STREAM, spec: str = "") -> Header:
    return Header(EPOCH, stream, first, n, kind, spec, moment.boot, moment.offset_ns, moment.error_ns)


def readings(first: int, n: int, moment: Moment, *, gateway: str = "g1", stream: str = STREAM) -> Arrived:
    """Reading i was taken i milliseconds after the boot."""
    head = header(first, n, BatchKind.SAMPLES, moment, stream, POWER.spec())
    return Arrived(gateway, head, _codec.encode_samples(head, [sample(first, n, POWER, stream)]))


def event(first: int, moment: Moment, stamped: Moment | None = None, *, gateway: str = "g1") -> Arrived:
    """An event that happened `first` milliseconds after the boot, stamped when the clock was as `stamped` says."""
    said = stamped or moment
    mono_ns = first * 1_000_000
    wall_ns = None if said.offset_ns is None else mono_ns + said.offset_ns
    stamp = Stamp(moment.boot, mono_ns, wall_ns, said.error_ns)
    row = msgspec.json.encode(Event("door", "press", "raised", Severity.ALARM, stamp, "open"))
    head = header(first, 1, BatchKind.EVENTS, moment, "events")
    return Arrived(gateway, head, _codec.encode_rows(head, [row]))


Shown = Callable[[], Awaitable[dict[int, int | None]]]  # sequence number -> UTC in ms, None where there is none


async def any_dating(sink: Sink, choose: random.Random, shown: Shown, total: int = 300) -> None:
    """A boot's clock becomes better and better while batches come late, early and twice; then another boot is never known.

    Afterwards every reading of the first boot has its true date, and none of the second has any.
    """
    table, counts = Table(sink), Counts()
    moments = sorted(
        (choose.choice((UNKNOWN, RTC, NTP)) for _ in range(total // 20)), key=lambda m: (m is not UNKNOWN, m is NTP)
    )
    batches, at = [], 0
    for moment in [*moments, NTP, *([replace(UNKNOWN, boot="boot-b")] * 3)]:
        n = choose.randint(1, 30)
        batches.append(readings(at, n, moment))
        at += n
    known = at - sum(batch.header.n for batch in batches[-3:])
    while (begin := table.next.get(batches[0].key, 0)) < at:
        sent = [b for b in batches if b.end > begin for _ in range(choose.choice((0, 1, 1, 2)))]
        if choose.random() < 0.5:
            choose.shuffle(sent)
        while sent:
            size = choose.randint(1, 6)
            await table.take(sent[:size], counts)
            sent = sent[size:]
            if choose.random() < 0.3:
                await table.dating.step()
    while await table.dating.step():
        pass
    assert await shown() == {i: TRUE_NS // 1_000_000 + i if i < known else None for i in range(at)}
