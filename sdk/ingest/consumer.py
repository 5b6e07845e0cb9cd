"""The consumer: takes the backlog plane of any number of gateways into a database, each reading exactly once.

A batch is committed by its key in one transaction, and only then does the retained watermark move. A batch that was
committed before is dropped by its key; one that leaves a hole is parked, and if the hole stays the gateway is asked to
go back. So the tables hold every reading once and in order, whatever the network, the broker or this process went
through, and however many consumers share the work. docs/ingest.md says why.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from gateway.errors import StoreError
from sdk.ingest.batches import Ack, Arrived, Counts, arrived
from sdk.ingest.broker import Account, Broker, Message
from sdk.ingest.sqlite import SqliteSink
from sdk.ingest.store import GIVE_UP_S, Sink, Table

COMMIT_S = 0.05  # batches that arrive within this time share a commit and an acknowledgement
MAX_BATCHES = 256  # a commit
MAX_HELD_BYTES = 64 << 20  # of batches that wait for the store; what comes beyond is let go and asked for again
WATCH_S = 2.0
DRAIN_S = 2.0  # for what has arrived, when the consumer is closed
PATIENCE_S = 2.0  # how long a hole may wait for the consumer that has what fills it
RETRY_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class Ingest:
    """A running consumer; made by `Ingest.open`.

    Attributes:
        table: what is committed; `table.next` is the watermark by (gateway, epoch, stream).
        counts: what has happened so far.
        trouble: why the store does not take anything at the moment; empty when it does.
        on_events: called after a commit that holds new events.
        broker: the connection.
    """

    def __init__(self, table: Table, account: Account, say: Callable[[str], None]) -> None:
        self.table = table
        self.counts = Counts()
        self.trouble = ""
        self.on_events: Callable[[], None] = lambda: None
        self.broker = Broker(account, self._up, self._arrived, say)
        self._say = say
        self._loop = asyncio.get_running_loop()
        self._pending: list[tuple[Message, Arrived]] = []
        self._held = 0
        self._shed = False
        self._announce = False
        self._up_at = float("inf")
        self._wake = asyncio.Event()
        self._taken = asyncio.Event()  # everything that has arrived is committed
        self._taken.set()
        self._process = secrets.token_hex(8)

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        path: Path | None = None,
        host: str = "127.0.0.1",
        port: int = 1883,
        *,
        postgres: str = "",
        account: Account | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> AsyncIterator[Ingest]:
        """Consume gateways' backlog from a broker until the block is left; what has arrived by then is committed.

        Args:
            path: the SQLite file, or
            postgres: the DSN of a PostgreSQL database.
            account: how to connect to the broker; host and port are enough for one that asks nothing.
            say: called with one line whenever something goes wrong or right again.

        Raises:
            StoreError: the store cannot be opened.
            UplinkError: a file of the account cannot be used.
        """
        sink = await open_sink(path, postgres)
        try:
            ingest = cls(Table(sink), account or Account(host, port), say)
            await ingest.table.load()
            async with asyncio.TaskGroup() as tasks:
                running = [
                    tasks.create_task(ingest._commit_forever(), name="ingest commits"),
                    tasks.create_task(ingest._watch_forever(), name="ingest watch"),
                ]
                try:
                    async with ingest.broker.connected():
                        yield ingest
                        if not ingest.trouble:
                            with contextlib.suppress(TimeoutError):
                                await asyncio.wait_for(ingest._taken.wait(), DRAIN_S)
                finally:
                    for task in running:
                        task.cancel()
        finally:
            await sink.close()

    # --- what the broker tells --------------------------------------------------------------------------------

    def _up(self) -> None:
        """Start a new session with every gateway: each sends everything from its watermark on."""
        self._up_at = self._loop.time()
        self._announce = True
        self._wake.set()

    def _arrived(self, message: Message) -> None:
        try:
            batch = arrived(message.topic, message.payload, self.broker.account.prefix)
        except StoreError:
            self.counts.refused += 1
            self.broker.done(message)
            return
        if self._held > MAX_HELD_BYTES:
            self.counts.shed += 1
            self._shed = True
            self.broker.done(message)
            return
        self._held += len(message.payload)
        self._pending.append((message, batch))
        self._taken.clear()
        self._wake.set()

    # --- committing -------------------------------------------------------------------------------------------

    async def _commit_forever(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._announce:
                await self._stubbornly(self._announce_all)
            if self._pending and len(self._pending) < MAX_BATCHES:
                await asyncio.sleep(COMMIT_S)
            while self._pending:
                await self._stubbornly(self._commit)
            await self._stubbornly(self._date)
            self._taken.set()

    async def _stubbornly(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do it, however often the store says no."""
        tries = 0
        while True:
            try:
                await work()
            except StoreError as error:
                if not self.trouble:
                    self._say(f"cannot commit: {error}; nothing is acknowledged until it can")
                self.trouble = str(error)
                await asyncio.sleep(RETRY_S[min(tries, len(RETRY_S) - 1)])
                tries += 1
            else:
                if self.trouble:
                    self.trouble = ""
                    self._say("committing again, nothing was lost")
                return

    async def _date(self) -> None:
        """A part of what is to be dated, then whatever has arrived meanwhile."""
        if await self.table.dating.step():
            self._wake.set()

    async def _announce_all(self) -> None:
        self._announce = False
        try:
            self._publish(await self.table.renew(None, force=True))
        except StoreError:
            self._announce = True
            raise

    async def _commit(self) -> None:
        now = self._pending[:MAX_BATCHES]
        taken = await self.table.take([batch for _, batch in now], self.counts)
        self._pending = self._pending[len(now) :]  # more may have come meanwhile
        for message, _ in now:
            self._held -= len(message.payload)
            self.broker.done(message)
        acks = taken.acks
        if taken.early and not self.broker.account.share:  # nobody else can have what is missing
            acks = acks | await self.table.renew(taken.early)
        self._publish(acks)
        if self._shed and not self._pending:
            self._shed = False
            self._publish(await self.table.renew(None, force=True))
        if taken.events:
            self.on_events()

    async def _watch_forever(self) -> None:
        """What nobody's message tells: holes that stay, and consumers that died with messages in their hands."""
        while True:
            try:
                if await self.table.sink.beat(self._process):
                    self._say("another consumer has ended: every gateway sends what it may have had")
                    self.table.dating.look_again()
                    self._publish(await self.table.renew(None, force=True))
                if stuck := await self.table.sink.stuck(PATIENCE_S):
                    self._publish(await self.table.renew(stuck))
                    if self._loop.time() - self._up_at > GIVE_UP_S:
                        await self.table.give_up(self.counts)
            except StoreError as error:
                if not self.trouble:
                    self._say(f"{error}")
            await asyncio.sleep(WATCH_S)

    def _publish(self, acks: Mapping[str, Ack]) -> None:
        for gateway, ack in acks.items():
            self.broker.publish(f"{self.broker.account.prefix}/{gateway}/ack", msgspec.json.encode(ack))


async def open_sink(path: Path | None, postgres: str, *, read_only: bool = False) -> Sink:
    """The SQLite file `path`, or the PostgreSQL database of a DSN; raises StoreError."""
    if postgres:
        from sdk.ingest.postgres import PostgresSink  # asyncpg is an extra

        return await PostgresSink.open(postgres)
    if path is None:
        raise StoreError("no database was named", hint="name a SQLite file or a PostgreSQL database")
    return SqliteSink(path, read_only=read_only)
