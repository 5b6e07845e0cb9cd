"""What a gateway sends once more because its spool was damaged and rebuilt, under a new epoch.

The rebuilt spool does not know how far its consumers had come in the last minutes, so it repeats them. Each batch saved
from the damaged file says in its header what it was there (`Header.was`); where that stream stood is known here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from gateway.contract import BatchKind
from sdk.ingest.batches import Cursor, Gap, Key, Take


class Streams(Protocol):
    """What is needed of `sdk.ingest.store.Sink`."""

    async def streams(self) -> dict[Key, tuple[int, int]]: ...
    async def lock(self, streams: Sequence[int]) -> dict[int, Cursor]: ...


async def without_repeats(sink: Streams, takes: Sequence[Take], moving: Mapping[int, int]) -> list[Take]:
    """These takes, with what is there already under an epoch before told apart from what is new.

    Args:
        sink: in a transaction; the streams of those epochs are locked, too.
        moving: where this transaction moves streams; it may bring the last batches of the epoch before as well.
    """
    before = {key for take in takes for key in _before(take)}
    if not before:
        return list(takes)
    ids = {key: id for key, (id, _) in (await sink.streams()).items() if key in before}
    cursors = await sink.lock(sorted(ids.values()))
    following = {key: moving.get(id, cursors[id].next_seq) for key, id in ids.items()}
    return [part for take in takes for part in _split(take, following)]


def _before(take: Take) -> list[Key]:
    gateway, _, stream = take.key
    return [(gateway, epoch.hex(), stream) for epoch, _ in take.header.was]


def _split(take: Take, following: Mapping[Key, int]) -> list[Take]:
    """What is there already as a range without rows, and the rest."""
    firsts = [first for _, first in take.header.was]
    known = [following.get(key, 0) - first for key, first in zip(_before(take), firsts, strict=True)]
    there = min(max(known, default=0), take.header.n)
    if there <= take.skip:
        return [take]
    kind = take.content.kind if isinstance(take.content, Gap) else BatchKind(take.header.kind)
    header = msgspec.structs.replace(take.header, n=there)
    old = Take(take.stream, take.key, header, Gap("before the spool was rebuilt", None, kind, there=True), take.skip)
    rest = Take(take.stream, take.key, take.header, take.content, there)
    return [old, rest] if there < take.header.n else [old]
