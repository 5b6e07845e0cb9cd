"""The backlog plane: every batch, in the order of commitment, until the consumer's watermark covers it.

Sent is not delivered. The consumer retains, at `octo/v1/<gateway>/ack`, what it has committed; whenever the connection
returns, or the consumer says that it started anew (another session), sending goes back to that watermark. Batches that
arrive twice carry the same key, so the consumer drops them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import msgspec

from gateway.contract import Batch

FRESH_BYTES = 1 << 20  # committed but not yet sent, kept in memory; more is read back from the disk


class Ack(msgspec.Struct, frozen=True):
    """The consumer's retained word.

    Attributes:
        session: another one each time the consumer starts or wants to be sent everything from `next` on.
        epoch: the spool's epoch, hex, that the numbers belong to.
        next: stream -> sequence number that it expects next.
    """

    session: str
    epoch: str
    next: dict[str, int]


decode_ack = msgspec.json.Decoder(Ack).decode


class Store(Protocol):
    """What the backlog needs of the spool."""

    @property
    def epoch(self) -> bytes: ...
    @property
    def head(self) -> int: ...

    async def read_after(self, batch_id: int) -> list[Batch]: ...
    async def rewind_point(self, watermark: Mapping[str, int]) -> int: ...
    def confirm(self, watermark: Mapping[str, int]) -> None: ...
    def confirmed(self) -> Mapping[str, int]: ...


class Backlog:
    """Walks the spool towards its head, and then passes on what is committed, straight from memory.

    Args:
        send: publishes a batch; False when it could not.
        room: whether `send` may be called now.
    """

    def __init__(self, store: Store, send: Callable[[Batch], bool], room: Callable[[], bool]) -> None:
        self._store = store
        self._send = send
        self._room = room
        self._wake = asyncio.Event()
        self._rewind_to: Mapping[str, int] | None = None
        self._cursor = 0
        self._flowing = False
        self._caught_up = False
        self._fresh: deque[Batch] = deque()
        self._fresh_bytes = 0
        self._session = ""
        self._watermark: Mapping[str, int] | None = None  # the consumer's last word; its database may be restored
        self.sent = 0
        self.rewinds = 0

    def start(self) -> None:
        """The connection is up: send from the watermark on."""
        self._flowing = True
        self._rewind(self._store.confirmed() if self._watermark is None else self._watermark)

    def stop(self) -> None:
        """The connection is gone."""
        self._flowing = self._caught_up = False
        self._forget_fresh()
        self._wake.set()

    def acknowledged(self, ack: Ack) -> None:
        """The consumer's watermark has moved, or it asks to be sent everything from it on."""
        watermark = ack.next if ack.epoch == self._store.epoch.hex() else {}
        self._store.confirm(watermark)
        self._watermark = watermark
        if ack.session != self._session:
            self._session = ack.session
            if self._flowing:
                self._rewind(watermark)

    def committed(self, batches: Sequence[Batch]) -> None:
        """The spool has these on disk; sent at once when nothing older waits."""
        if not self._caught_up:
            return
        self._fresh.extend(batches)
        self._fresh_bytes += sum(len(batch.blob) for batch in batches)
        self.push()
        if self._fresh_bytes > FRESH_BYTES:
            self._caught_up = False
            self._forget_fresh()
            self._wake.set()

    def push(self) -> None:
        """Send while the window has room; called at every commit and acknowledgement."""
        fresh = self._fresh
        while fresh and self._room():
            batch = fresh[0]
            if not self._pass_on(batch):
                return
            fresh.popleft()
            self._fresh_bytes -= len(batch.blob)
        if not self._caught_up:
            self._wake.set()

    async def run(self) -> None:
        """Reads back from the disk whatever is older than what passes through memory."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            if not self._flowing:
                continue
            if (watermark := self._rewind_to) is not None:
                self._rewind_to = None
                self._cursor = await self._store.rewind_point(watermark)
                self.rewinds += 1
            if not self._caught_up:
                await self._catch_up()

    async def _catch_up(self) -> None:
        while not self._interrupted():
            batches = await self._store.read_after(self._cursor)
            if not batches and self._cursor >= self._store.head:
                self._caught_up = not self._interrupted()
                return
            if not batches:  # the newest were trimmed: nothing up to the head is left to send
                self._cursor = self._store.head
            for batch in batches:
                while not self._room() and not self._interrupted():
                    await self._wake.wait()
                    self._wake.clear()
                if self._interrupted() or not self._pass_on(batch):
                    self._wake.set()
                    return

    def _interrupted(self) -> bool:
        return not self._flowing or self._rewind_to is not None

    def _pass_on(self, batch: Batch) -> bool:
        if not self._send(batch):
            return False
        self._cursor = batch.id
        self.sent += 1
        return True

    def _rewind(self, watermark: Mapping[str, int]) -> None:
        self._rewind_to = watermark
        self._caught_up = False
        self._forget_fresh()
        self._wake.set()

    def _forget_fresh(self) -> None:
        self._fresh.clear()
        self._fresh_bytes = 0
