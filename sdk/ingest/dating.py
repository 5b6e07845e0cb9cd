"""Readings get their time of day as soon as their gateway knows it, also those that were committed before.

Every batch says in its header how far UTC was from the monotonic time of its boot when it was made, or that this was not
known, and how wrong that may be. So the first batch of a boot with a better word (the event that the clock became known
makes one, if nothing else does) dates all rows of that boot that had none, or only that of a clock which nothing kept
right. Both the word and which rows wait for one are written in the transaction of the batches; the dating itself follows
in steps of its own, so that a million rows keep nobody waiting, and whoever is killed in the middle leaves the rest noted.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from gateway.clock import UNDISCIPLINED_NS, UNKNOWN_BOOT
from gateway.store.columns import Header
from sdk.ingest.batches import MAX_NAME, Arrived, Gap, Take

STEP_ROWS = 20_000  # dated in one transaction
MAX_MONO_NS = 1 << 61  # of what can be dated: a machine that has been on for 73 years
MAX_OFFSET_NS = 1 << 62


class Trust(enum.IntEnum):
    """What a date is worth. Rows are dated anew only when their boot's offset is worth more."""

    NONE = 0  # there is none
    WORD = 1  # the clock said so, and nothing kept it right
    KEPT = 2  # NTP or the like kept it right


@dataclass(frozen=True, slots=True)
class Offset:
    """UTC minus the monotonic time of one boot of a gateway, and how wrong that may be."""

    gateway: str
    boot: str
    offset_ns: int
    error_ns: int
    trust: Trust


@dataclass(frozen=True, slots=True)
class Undated:
    """Rows of a stream and boot, from sequence number `first` to before `end`, whose dates are worth only `trust`."""

    stream: int
    trust: Trust
    first: int
    end: int
    boot: str


def trust(header: Header) -> Trust:
    """What the dates are worth that a batch gives its own rows."""
    if header.wall_offset_ns is None or not 0 <= header.wall_offset_ns < MAX_OFFSET_NS:
        return Trust.NONE
    return Trust.KEPT if 0 <= header.wall_error_ns < UNDISCIPLINED_NS else Trust.WORD


def offset(gateway: str, header: Header) -> Offset | None:
    """What a batch says about the clock of its boot; None when that is nothing, or nobody knows which boot it is."""
    worth = trust(header)
    if worth is Trust.NONE or header.wall_offset_ns is None or not nameable(header.boot):
        return None
    return Offset(gateway, header.boot, header.wall_offset_ns, min(abs(header.wall_error_ns), UNDISCIPLINED_NS), worth)


def nameable(boot: str) -> bool:
    """Whether a boot can be told from others."""
    return boot != UNKNOWN_BOOT and 0 < len(boot) <= MAX_NAME and boot.isprintable()


def best(batches: Iterable[Arrived]) -> dict[tuple[str, str], Offset]:
    """The most trusted offset of each (gateway, boot), of equals the one with the smallest error."""
    found: dict[tuple[str, str], Offset] = {}
    for batch in batches:
        said = offset(batch.gateway, batch.header)
        if said is None:
            continue
        known = found.get((said.gateway, said.boot))
        if known is None or (said.trust, -said.error_ns) > (known.trust, -known.error_ns):
            found[said.gateway, said.boot] = said
    return found


def undated(takes: Iterable[Take]) -> list[Undated]:
    """The runs that wait for a better date, of takes in the order of their sequence numbers within each stream."""
    runs: list[Undated] = []
    for take in takes:
        header, worth = take.header, trust(take.header)
        if worth is Trust.KEPT or isinstance(take.content, Gap) or not nameable(header.boot) or take.first >= take.end:
            continue
        last = runs[-1] if runs else None
        if last and (last.stream, last.trust, last.boot, last.end) == (take.stream, worth, header.boot, take.first):
            runs[-1] = Undated(last.stream, worth, last.first, take.end, last.boot)
        else:
            runs.append(Undated(take.stream, worth, take.first, take.end, header.boot))
    return runs


class Dates(Protocol):
    """The statements of one store. Every method may raise StoreError."""

    async def learn(self, offsets: Sequence[Offset]) -> None:
        """Keep these, where nothing better is known; inside a transaction."""
        ...

    async def wait(self, runs: Sequence[Undated]) -> None:
        """Note these, joined with what they continue; inside a transaction."""
        ...

    async def step(self, rows: int) -> bool:
        """Date up to so many rows whose boot has become better known, in a transaction; False when there are none."""
        ...


class Dating:
    """What one consumer has to date; made by `sdk.ingest.store.Table`."""

    def __init__(self, dates: Dates) -> None:
        self._dates = dates
        self._trust: dict[tuple[str, str], Trust] = {}  # of what the store is known to have
        self._fresh: dict[tuple[str, str], Trust] = {}  # and of what is being written
        self._due = True  # somebody may have left something undone

    async def note(self, batches: Iterable[Arrived], takes: Sequence[Take]) -> None:
        """Write down what these say about clocks, and what waits; inside their transaction."""
        better = {key: said for key, said in best(batches).items() if said.trust > self._trust.get(key, Trust.NONE)}
        runs = undated(takes)
        if runs:
            await self._dates.wait(runs)
        if better:
            await self._dates.learn([said for _, said in sorted(better.items())])
        self._fresh = {key: said.trust for key, said in better.items()}
        streams = {take.stream: take.key[0] for take in takes}
        known = self._trust | self._fresh
        if better or any(known.get((streams[run.stream], run.boot), Trust.NONE) > run.trust for run in runs):
            self._due = True

    def committed(self) -> None:
        """That transaction is on disk."""
        self._trust.update(self._fresh)
        self._fresh = {}

    def look_again(self) -> None:
        """The store may have been restored, or another consumer have ended in the middle."""
        self._trust, self._fresh, self._due = {}, {}, True

    async def step(self) -> bool:
        """Date some rows; whether there may be more. Raises StoreError."""
        if self._due:
            self._due = await self._dates.step(STEP_ROWS)
        return self._due
