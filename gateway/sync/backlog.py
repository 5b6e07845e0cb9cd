"""The backlog plane: every batch, in the order of commitment, until the consumer's watermark covers it.

Sent is not delivered. The consumer retains, at `octo/v1/<gateway>/ack`, what it has committed; whenever the connection
returns, or the consumer says that it started anew (another session), sending goes back to that watermark. Batches that
arrive twice carry the same key, so the consumer drops them. docs/sync.md is the specification.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import msgspec

from gateway.contract import Batch
from gateway.sync.bucket import TokenBucket

FRESH_BYTES = 1 << 20  # committed but not yet sent, kept in memory; more is read back from the disk
SILENCE_S = 30.0  # without a word of the consumer while something is sent and unconfirmed: it is asked
SILENCE_MAX_S = 600.0  # each question without an answer doubles the wait, up to this
UNHEARD_S, UNHEARD_MAX_S = 3.0, 15.0  # the same when the broker says that there is no consumer


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
    """What the backlog needs of the spool; `confirm` and `confirmed` are about one uplink."""

    @property
    def epoch(self) -> bytes: ...
    @property
    def head(self) -> int: ...

    async def read_after(self, batch_id: int) -> list[Batch]: ...
    async def fit(self, batch: Batch, largest: int) -> list[Batch]: ...
    async def rewind_point(self, watermark: Mapping[str, int]) -> int: ...
    def confirm(self, watermark: Mapping[str, int]) -> None: ...
    def confirmed(self) -> Mapping[str, int]: ...
    def sending(self, stream: str, seq: int) -> None: ...


class Backlog:
    """Walks the spool towards its head, and then passes on what is committed, straight from memory.

    Args:
        send: publishes a batch; False when it could not.
        room: whether `send` may be called now.
        bucket: how fast what is read back from the disk may go; without limit when left out.
        largest: bytes that a batch of this stream may have, 0 without limit; may change with every connection.

    Attributes:
        on_idle: called when everything that waited has been sent.
    """

    def __init__(
        self,
        store: Store,
        send: Callable[[Batch], bool],
        room: Callable[[], bool],
        bucket: TokenBucket | None = None,
        largest: Callable[[str], int] = lambda _: 0,
    ) -> None:
        self._store = store
        self._send = send
        self._room = room
        self._bucket = bucket or TokenBucket(0, 0)
        self._largest = largest
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._rewind_to: Mapping[str, int] | None = None
        self._cursor = 0
        self._flowing = False
        self._caught_up = False
        self._fresh: deque[Batch] = deque()
        self._fresh_bytes = 0
        self._session = ""
        self._watermark: Mapping[str, int] | None = None  # the consumer's last word; its database may be restored
        self._sent_to: dict[str, int] = {}  # stream -> what follows the newest that was sent
        self._unheard = False  # the broker says that nobody listens: nothing is sent but a question now and then
        self._timer: asyncio.TimerHandle | None = None
        self._wait_s = SILENCE_S
        self._heard_at = 0.0
        self._mark: Mapping[str, int] = {}  # what was sent at some moment since the last rewind
        self._mark_due = 0.0  # when that ought to be confirmed, if anything sent later is
        self._loss_s = SILENCE_S
        self._asking = False  # a question is due
        self._asked = False  # and this one has no answer yet
        self.on_idle: Callable[[], None] = lambda: None
        self.sent = 0
        self.rewinds = 0

    @property
    def idle(self) -> bool:
        """Everything committed has been sent: there is time for other things."""
        return self._caught_up and not self._fresh

    def start(self) -> None:
        """The connection is up: send from the watermark on."""
        self._flowing = True
        self._unheard = self._asking = self._asked = False
        self._wait_s, self._heard_at = SILENCE_S, self._loop.time()
        self._rewind(self._known())

    def stop(self) -> None:
        """The connection is gone."""
        self._flowing = self._caught_up = False
        self._forget_fresh()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._wake.set()

    def acknowledged(self, ack: Ack) -> None:
        """The consumer's watermark has moved, or it asks to be sent everything from it on."""
        watermark = ack.next if ack.epoch == self._store.epoch.hex() else {}
        self._store.confirm(watermark)
        self._watermark = watermark
        again = ack.session != self._session or self._unheard or self._asked
        self._session = ack.session
        self._unheard = self._asking = self._asked = False
        self._wait_s, self._heard_at = SILENCE_S, self._loop.time()
        if again and self._flowing:
            self._rewind(watermark)

    def heard(self, heard: bool) -> None:
        """Whether the broker had somebody to hand a batch to; where it can say so (MQTT 5).

        If not, the batch is lost, and so is what would follow: nothing is sent until there is a consumer.
        """
        if heard == self._unheard and self._flowing:
            self._unheard = not heard
            if heard:
                self._rewind(self._known())
            else:
                self._caught_up = False
                self._forget_fresh()
                self._wait_s, self._heard_at = UNHEARD_S, self._loop.time()
                self._watch(UNHEARD_S)
                self._wake.set()

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
            if not self._fits(batch):  # cut in a thread, on the way from the disk
                self._caught_up = False
                self._forget_fresh()
                break
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
            if self._asking:
                self._asking = False
                await self._ask()
            if not (self._caught_up or self._unheard):
                await self._catch_up()

    async def _catch_up(self) -> None:
        while not self._interrupted():
            batches = await self._store.read_after(self._cursor)
            if not batches and self._cursor >= self._store.head:
                if not self._interrupted():
                    self._caught_up = True
                    self.on_idle()
                return
            if not batches:  # the newest were trimmed: nothing up to the head is left to send
                self._cursor = self._store.head
            for batch in batches:
                if not await self._one(batch):
                    self._wake.set()
                    return

    async def _one(self, batch: Batch) -> bool:
        """Send a batch that was read back, in parts where it is too large; False when it was not sent to its end."""
        if self._watermark and self._watermark.get(batch.stream, 0) >= batch.seq_first + batch.n:
            self._cursor = batch.id  # confirmed: only what else was sent at that time is lacking
            return True
        parts = [batch] if self._fits(batch) else await self._store.fit(batch, self._largest(batch.stream))
        for part in parts:
            if not await self._turn() or not self._pass_on(part):
                return False
            self._bucket.take(len(part.blob))
        return True

    def _fits(self, batch: Batch) -> bool:
        largest = self._largest(batch.stream)
        return not largest or len(batch.blob) <= largest

    async def _turn(self) -> bool:
        """Wait until the window and the bucket let the next one go; False when it shall not go."""
        while not self._interrupted():
            wait_s = self._bucket.wait_s(self._loop.time())
            if not wait_s and self._room():
                return True
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s or None):
                    await self._wake.wait()
            self._wake.clear()
        return False

    def _interrupted(self) -> bool:
        return not self._flowing or self._rewind_to is not None or self._unheard or self._asking

    def _pass_on(self, batch: Batch) -> bool:
        self._store.sending(batch.stream, batch.seq_first + batch.n)
        if not self._send(batch):
            return False
        self._cursor = batch.id
        self._sent_to[batch.stream] = batch.seq_first + batch.n
        self.sent += 1
        if self._timer is None:
            self._heard_at = self._loop.time()
            self._take_mark()
            self._watch(self._wait_s)
        return True

    # --- a consumer that says nothing -------------------------------------------------------------------------

    def _known(self) -> Mapping[str, int]:
        return self._store.confirmed() if self._watermark is None else self._watermark

    def _watch(self, wait_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(wait_s, self._silence)

    def _silence(self) -> None:
        """Something is sent, and its fate unknown: the broker may have dropped it, the consumer not know of us."""
        self._timer = None
        known = self._known()
        if all(known.get(stream, 0) >= seq for stream, seq in self._sent_to.items()):
            return  # the next batch that is sent watches again
        left_s = self._heard_at + self._wait_s - self._loop.time()
        if left_s > 0:
            self._look_for_lost(known)
            self._watch(left_s)
            return
        self._asking = True
        self._wait_s = min(2 * self._wait_s, UNHEARD_MAX_S if self._unheard else SILENCE_MAX_S)
        self._heard_at = self._loop.time()
        self._watch(self._wait_s)
        self._wake.set()

    def _look_for_lost(self, known: Mapping[str, int]) -> None:
        """The consumer speaks. Does it lack something although it has confirmed what was sent later? Then it lost it.

        One that is merely slow confirms in the order of sending: it gets its time.
        """
        mark = self._mark
        if self._loop.time() < self._mark_due and mark:
            return
        lacks = any(known.get(stream, 0) < seq for stream, seq in mark.items())
        if lacks and any(known.get(stream, 0) > mark.get(stream, 0) for stream in self._sent_to):
            self._loss_s = min(2 * self._loss_s, SILENCE_MAX_S)
            self._rewind(known)
        elif not lacks:
            if mark:
                self._loss_s = SILENCE_S
            self._take_mark()

    def _take_mark(self) -> None:
        self._mark, self._mark_due = dict(self._sent_to), self._loop.time() + self._loss_s

    async def _ask(self) -> None:
        """Send the first unconfirmed batch once more: whatever the consumer has or lacks, it answers with an ack."""
        batches = await self._store.read_after(await self._store.rewind_point(self._known()))
        if not batches and self._timer is not None:  # forgotten here since: there is nothing to ask with
            self._timer.cancel()
            self._timer = None
        first = batches[:1]
        if first and not self._fits(first[0]):
            first = await self._store.fit(first[0], self._largest(first[0].stream))
        if first and self._flowing and self._room() and self._send(first[0]):
            self._asked = True

    def _rewind(self, watermark: Mapping[str, int]) -> None:
        self._rewind_to = watermark
        self._caught_up = False
        self._sent_to, self._mark = {}, {}
        self._forget_fresh()
        self._wake.set()

    def _forget_fresh(self) -> None:
        self._fresh.clear()
        self._fresh_bytes = 0
