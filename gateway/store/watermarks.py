"""Several uplinks, one spool: each has its own watermark, and the spool may forget what all of them have delivered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from gateway.contract import Batch


class Shared(Protocol):
    """What this needs of the spool."""

    @property
    def epoch(self) -> bytes: ...
    @property
    def head(self) -> int: ...

    async def read_after(self, batch_id: int) -> list[Batch]: ...
    async def rewind_point(self, watermark: Mapping[str, int]) -> int: ...
    def confirm(self, watermark: Mapping[str, int]) -> None: ...
    def confirmed(self) -> Mapping[str, int]: ...


class Watermarks:
    """The watermarks of all uplinks. On disk is only the least: after a restart each consumer says its own again."""

    def __init__(self, spool: Shared, uplinks: Iterable[str]) -> None:
        self._spool = spool
        least = spool.confirmed()
        self._known: dict[str, dict[str, int]] = {name: dict(least) for name in uplinks}

    def for_uplink(self, name: str) -> Bound:
        """The spool as one uplink sees it; KeyError for a name that was not given."""
        return Bound(self._spool, self, name, self._known[name])

    def confirm(self, name: str, watermark: Mapping[str, int]) -> None:
        """Everything before these sequence numbers is delivered over one uplink."""
        known = self._known[name]
        for stream, seq in watermark.items():
            known[stream] = max(seq, known.get(stream, 0))
        least = {stream: min(each.get(stream, 0) for each in self._known.values()) for stream in watermark}
        self._spool.confirm({stream: seq for stream, seq in least.items() if seq})


class Bound:
    """One uplink's view of the spool (`gateway.sync.backlog.Store`)."""

    def __init__(self, spool: Shared, watermarks: Watermarks, name: str, known: Mapping[str, int]) -> None:
        self._spool = spool
        self._watermarks = watermarks
        self._name = name
        self._known = known

    @property
    def epoch(self) -> bytes:
        return self._spool.epoch

    @property
    def head(self) -> int:
        return self._spool.head

    async def read_after(self, batch_id: int) -> list[Batch]:
        return await self._spool.read_after(batch_id)

    async def rewind_point(self, watermark: Mapping[str, int]) -> int:
        return await self._spool.rewind_point(watermark)

    def confirm(self, watermark: Mapping[str, int]) -> None:
        self._watermarks.confirm(self._name, watermark)

    def confirmed(self) -> Mapping[str, int]:
        return dict(self._known)
