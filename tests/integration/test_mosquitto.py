"""A broker that other people run: mosquitto, with TLS, names checked, and a password."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gateway.contract import GatewayStatus
from sdk.ingest import Ingest
from tests.integration.harness import COUNTS, Daemon, assert_whole, config, count, daemon, node, stored, until
from tests.integration.mosquitto import SECRET, mosquitto

LIVE = "[uplink.live]"


async def refused(gateway: Daemon) -> GatewayStatus:
    return await gateway.until(lambda s: s.uplink.state == "down" and bool(s.uplink.detail), "it is refused")


@pytest.mark.timeout(120)
def test_tls_password_and_a_broker_killed_twice(tmp_path: Path) -> None:
    async def scenario() -> None:
        db = tmp_path / "consumer.db"
        with mosquitto(tmp_path / "mosquitto") as broker:
            async with Ingest.open(db, port=broker.plain), node(tmp_path):
                async with daemon(tmp_path, config(tmp_path, more=broker.uplink(LIVE))) as gateway:
                    for round_ in range(2):
                        await gateway.until(
                            lambda s, n=round_: s.uplink.state == "up" and s.uplink.reconnects >= n,  # type: ignore[misc]
                            "connected",
                        )
                        at = (await gateway.status()).uplink.sent
                        await gateway.until(lambda s, n=at: s.uplink.sent > n + 20, "sending")  # type: ignore[misc]
                        broker.kill()  # with whatever it had acknowledged and not yet handed on
                        broker.start()
                    await gateway.until(lambda s: s.uplink.state == "up" and s.uplink.reconnects >= 2, "connected")
                    await gateway.end()
                    on_disk = stored(gateway.spool)[COUNTS]
                    await gateway.start()
                    await until(lambda: count(db) >= on_disk, "everything delivered")
                    assert SECRET not in gateway.log.read_text()
        assert_whole(db, on_disk)

    asyncio.run(scenario())


@pytest.mark.timeout(60)
def test_a_broker_that_another_ca_vouches_for_is_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        with mosquitto(tmp_path / "mosquitto") as broker:
            async with daemon(tmp_path, config(tmp_path, more=broker.uplink(LIVE, ca="other-ca.pem"))) as gateway:
                status = await refused(gateway)
                assert "certificate" in status.uplink.detail.lower()

    asyncio.run(scenario())


@pytest.mark.timeout(60)
def test_a_wrong_password_is_said_so(tmp_path: Path) -> None:
    async def scenario() -> None:
        with mosquitto(tmp_path / "mosquitto") as broker:
            (broker.folder / "wrong").write_text("wrong")
            async with daemon(tmp_path, config(tmp_path, more=broker.uplink(LIVE, password="wrong"))) as gateway:
                status = await refused(gateway)
                assert "refused" in status.uplink.detail and "uplink.username" in status.uplink.detail

    asyncio.run(scenario())


@pytest.mark.timeout(60)
def test_a_file_that_is_no_certificate_is_named(tmp_path: Path) -> None:
    async def scenario() -> None:
        with mosquitto(tmp_path / "mosquitto") as broker:
            (broker.folder / "none.pem").write_text("no certificate")
            async with daemon(tmp_path, config(tmp_path, more=broker.uplink(LIVE, ca="none.pem"))) as gateway:
                status = await refused(gateway)
                assert "none.pem" in status.uplink.detail and "uplink.ca_file" in status.uplink.detail

    asyncio.run(scenario())
