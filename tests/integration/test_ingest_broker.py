"""The receiver's connection: TLS with the name checked, a password, a named session, MQTT 3.1.1 and 5."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from gateway.contract import topic_up
from sdk.ingest import Account, Ingest
from sdk.ingest.broker import Message
from tests.integration.harness import broker, delivered_count, free_port, until
from tests.integration.mosquitto import SECRET, Mosquitto, mosquitto
from tests.unit.ingest_samples import STREAM, readings


def secured(broker: Mosquitto) -> Account:
    folder = broker.folder
    return Account(
        port=broker.tls, username="press", password_file=folder / "password", ca_file=folder / "ca.pem", session="one"
    )


def publish(port: int, *first: int) -> None:
    client = paho.Client(CallbackAPIVersion.VERSION2)
    client.connect("127.0.0.1", port)
    client.loop_start()
    for at in first:
        client.publish(topic_up("g1", STREAM), readings(at, 10).blob, qos=1).wait_for_publish(10)
    client.disconnect()
    client.loop_stop()


@pytest.mark.parametrize("v5", [False, True])
def test_a_named_session_over_tls_gets_what_came_while_it_was_away(tmp_path: Path, v5: bool) -> None:
    async def scenario() -> None:
        db = tmp_path / "db"
        with mosquitto(tmp_path / "mosquitto") as secure:
            account = replace(secured(secure), v5=v5)
            async with Ingest.open(db, account=account) as ingest:
                await until(lambda: ingest.broker.state == "up", "connected")
                await asyncio.to_thread(publish, secure.plain, 0)
                await until(lambda: delivered_count(db, STREAM) == 10, "the first batch")
            await asyncio.to_thread(publish, secure.plain, 10, 20)
            async with Ingest.open(db, account=account) as ingest:
                await until(lambda: delivered_count(db, STREAM) == 30, "what the broker kept")
                await until(lambda: ingest.counts.batches == 2, "counted, a moment after the commit")

    asyncio.run(scenario())


# paho leaves a socket whose handshake failed to the collector
@pytest.mark.filterwarnings("ignore:Exception ignored in. <ssl.SSLSocket:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("change", "state"), [("password", "refused"), ("ca", "cannot connect")])
def test_a_wrong_password_and_a_wrong_ca_are_refused(tmp_path: Path, change: str, state: str) -> None:
    async def scenario() -> None:
        with mosquitto(tmp_path / "mosquitto") as secure:
            account = secured(secure)
            if change == "password":
                (tmp_path / "wrong").write_text("wrong")
                account = replace(account, password_file=tmp_path / "wrong")
            else:
                account = replace(account, ca_file=secure.folder / "other-ca.pem")
            said: list[str] = []
            async with Ingest.open(tmp_path / "db", account=account, say=said.append) as ingest:
                await until(lambda: any(state in line for line in said), "it is refused, and said so")
                assert ingest.broker.ups == 0
            assert SECRET not in "".join(said)

    asyncio.run(scenario())


def test_what_has_arrived_is_committed_before_the_consumer_closes(tmp_path: Path) -> None:
    async def scenario() -> None:
        port, db, arrived = free_port(), tmp_path / "db", asyncio.Event()
        with broker(port):
            async with Ingest.open(db, port=port) as ingest:
                await until(lambda: ingest.broker.state == "up", "connected")
                take = ingest.broker._on_message

                def note(message: Message) -> None:
                    take(message)
                    arrived.set()

                ingest.broker._on_message = note
                await asyncio.to_thread(publish, port, 0)
                await arrived.wait()
        assert delivered_count(db, STREAM) == 10

    asyncio.run(scenario())
