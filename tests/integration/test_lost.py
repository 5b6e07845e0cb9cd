"""A consumer that loses what it was handed before it committed it: it is sent again without a reconnection."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gateway.contract import EVENTS_STREAM, SourceState
from sdk.ingest import Ingest
from sdk.ingest.broker import Message
from tests.integration.harness import assert_whole, config, count, daemon, delivered, node, until
from tests.integration.mosquitto import plain_mosquitto


def swallow(ingest: Ingest, streams: tuple[str, ...], once: set[tuple[str, bytes]]) -> None:
    """Lose each message of these streams the first time that it comes, acknowledged to the broker."""
    take = ingest.broker._on_message

    def lose(message: Message) -> None:
        key = message.topic, message.payload
        if message.topic.endswith(streams) and key not in once:
            once.add(key)
            ingest.broker.done(message)
            return
        take(message)

    ingest.broker._on_message = lose


@pytest.mark.timeout(120)
@pytest.mark.parametrize("streams", [(EVENTS_STREAM,), ("",)], ids=["while it confirms others", "all of it"])
def test_what_a_consumer_lost_comes_again_on_the_same_connection(tmp_path: Path, streams: tuple[str, ...]) -> None:
    async def scenario() -> None:
        db, lost = tmp_path / "consumer.db", set[tuple[str, bytes]]()
        async with (
            plain_mosquitto(tmp_path) as port,
            Ingest.open(db, port=port) as ingest,
            node(tmp_path, 100) as press,
        ):
            text = config(tmp_path, port, "")
            async with daemon(tmp_path, text, "tests.integration.impatient") as gateway:
                await until(lambda: count(db) > 50, "readings arrive")
                await gateway.until(lambda s: s.uplink.rewinds == 2, "at the connection, and at the first word")
                swallow(ingest, streams, lost)
                press.unplug()
                await gateway.until(lambda s: s.sources[0].state is SourceState.LOST, "an event")
                press.replug()
                status = await gateway.until(lambda s: s.sources[0].state is SourceState.OK, "it goes on")
                events = next(s.next_seq for s in status.streams if s.name == EVENTS_STREAM)
                at = count(db)
                await until(lambda: count(db) > at + 100 and count(db, EVENTS_STREAM) >= events, "what was lost came")
                assert lost and (await gateway.status()).uplink.reconnects == 0
            at = count(db)
        assert_whole(db, at)
        numbers = [seq for seq, _ in delivered(db, EVENTS_STREAM)]
        assert len(numbers) >= events and numbers == list(range(len(numbers)))

    asyncio.run(scenario())
