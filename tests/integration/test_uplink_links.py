"""The uplink's connection: certificates that are renewed, links that come up, a link that is half open."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from bench.campaign import Process
from gateway.sync import account as account_module
from gateway.sync import mqtt, netlink
from gateway.sync.account import Account, tls_context
from sdk.ingest import Ingest
from tests.integration.harness import (
    COUNTS,
    assert_whole,
    broker,
    config,
    count,
    daemon,
    free_port,
    node,
    stored,
    until,
    uplink,
)
from tests.integration.mosquitto import certificate, connected, plain_mosquitto
from tests.integration.proxy import Proxy

MOSQUITTO = shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin")


# --- certificates ------------------------------------------------------------------------------------------------


class Authority:
    """A CA of its own, and what it signs."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self._key = folder, ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.file = folder / f"{name}.pem"
        self.file.write_bytes(certificate(name, self._key, None))

    def issue(self, name: str) -> None:
        """`name`.pem and `name`.key; what was there is replaced."""
        key = ec.generate_private_key(ec.SECP256R1())
        (self.folder / f"{name}.pem").write_bytes(certificate(name, key, (self._name, self._key)))
        pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        (self.folder / f"{name}.key").write_bytes(key.private_bytes(pem, form, serialization.NoEncryption()))


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    folder = tmp_path / "certificates"
    folder.mkdir()
    Authority(folder, "ca").issue("server")
    return folder


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # paho drops a socket whose handshake failed
@pytest.mark.timeout(60)
def test_the_brokers_certificate_is_not_enough_both_show_one_and_a_renewed_one_is_taken_up(tmp_path: Path) -> None:
    folder = tmp_path / "certificates"
    folder.mkdir()
    ours, stranger = Authority(folder, "ca"), Authority(folder, "stranger")
    ours.issue("server")
    stranger.issue("gateway")
    tls = (
        f"user root\ncafile {folder}/ca.pem\ncertfile {folder}/server.pem\nkeyfile {folder}/server.key\n"
        "require_certificate true\n"
    )

    async def scenario() -> None:
        async with plain_mosquitto(tmp_path, tls) as port:
            account = Account(
                "127.0.0.1", port, "mtls", backoff_max_s=0.3, ca_file=str(folder / "ca.pem"),
                cert_file=str(folder / "gateway.pem"), key_file=str(folder / "gateway.key"),
            )  # fmt: skip
            async with Proxy.open(port) as link:
                async with connected(replace(account, port=link.port)) as connection:
                    await until(lambda: connection.state == "down" and bool(connection.detail), "refused")
                    assert connection.connects == 0
                    ours.issue("gateway")  # renewed while it runs: nothing is restarted
                    await until(lambda: connection.up, "taken up at the next attempt")
                    ours.issue("gateway")
                    await link.cut()
                    await link.mend()
                    await until(lambda: connection.up and connection.connects == 2, "and again at a reconnection")
                    stranger.issue("gateway")
                    await link.cut()
                    await link.mend()
                    await until(lambda: link.accepted > 4, "it tries")
                    assert connection.connects == 2

    asyncio.run(scenario())


def test_nothing_older_than_tls_1_2(certificates: Path) -> None:
    context = tls_context(Account("broker", 8883, "x", ca_file=str(certificates / "ca.pem")))
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.check_hostname and context.verify_mode == ssl.CERT_REQUIRED


# --- links -------------------------------------------------------------------------------------------------------

ADDRESS = "203.0.113.77"  # of a network that is for documentation: nothing else has it


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def device() -> Iterator[str]:
    """A cable whose far end is plugged in; the near end is down."""
    near, far = f"octo{os.getpid() % 100000}", f"otco{os.getpid() % 100000}"
    ip("link", "add", near, "type", "veth", "peer", "name", far)
    ip("link", "set", far, "up")
    yield near
    ip("link", "del", near)


@pytest.mark.timeout(60)
def test_the_kernel_tells_of_a_link_and_of_an_address(device: str) -> None:
    async def scenario() -> None:
        told = asyncio.Event()
        with netlink.watching(told.set) as listening:
            assert listening
            ip("link", "set", device, "up")
            await asyncio.wait_for(told.wait(), 5)
            await asyncio.sleep(0.2)  # the kernel has more to say about it
            told.clear()
            ip("link", "set", device, "down")
            await asyncio.sleep(0.2)
            assert not told.is_set()
            ip("addr", "add", f"{ADDRESS}/32", "dev", device)
            await asyncio.wait_for(told.wait(), 5)

    asyncio.run(scenario())


@pytest.mark.timeout(60)
@pytest.mark.parametrize("hanging", [False, True], ids=["in the pause", "while an attempt hangs"])
def test_an_address_that_comes_up_ends_the_wait(
    device: str, tmp_path: Path, hanging: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random, "uniform", lambda _low, high: high)
    monkeypatch.setattr(mqtt, "BACKOFF_MIN_S", 600.0)
    monkeypatch.setattr(account_module, "CONNECT_S", 300.0)
    if hanging:  # SYNs go out, and nobody answers
        ip("link", "set", device, "up")
        ip("route", "add", f"{ADDRESS}/32", "dev", device)
    else:
        ip("route", "add", "unreachable", f"{ADDRESS}/32", "metric", "9")

    async def scenario() -> None:
        port = free_port()
        conf = tmp_path / "mosquitto.conf"
        conf.write_text(f"listener {port}\nallow_anonymous true\n")
        process = Process(tmp_path / "log", *(str(MOSQUITTO), "-c", str(conf)))
        await process.start()
        try:
            async with connected(Account(ADDRESS, port, "link", backoff_max_s=600)) as connection:
                if hanging:
                    await asyncio.sleep(1.2)
                    assert connection.state == "connecting"
                else:
                    await until(lambda: connection.state == "down", "there is no way to it")
                ip("link", "set", device, "up")
                ip("addr", "add", f"{ADDRESS}/32", "dev", device)
                await until(lambda: connection.up, "connected at once, not after minutes", patience_s=10)
        finally:
            await process.kill()

    try:
        asyncio.run(scenario())
    finally:
        if not hanging:
            ip("route", "del", "unreachable", f"{ADDRESS}/32", "metric", "9")


@pytest.mark.timeout(90)
def test_a_half_open_link_is_noticed_by_the_keepalive(tmp_path: Path) -> None:
    async def scenario() -> None:
        port, db = free_port(), tmp_path / "consumer.db"
        with broker(port):
            async with Proxy.open(port) as link, Ingest.open(db, port=port), node(tmp_path):
                text = config(tmp_path, more=uplink(link.port, "keepalive_s = 5\n[uplink.live]"))
                async with daemon(tmp_path, text) as gateway:
                    await until(lambda: count(db) > 200, "readings arrive")
                    link.half_open()
                    loop = asyncio.get_running_loop()
                    since = loop.time()
                    await gateway.until(lambda s: s.uplink.state != "up", "noticed")
                    took = loop.time() - since
                    print(f"half open: noticed after {took:.1f} s")
                    assert took < 15
                    await link.mend()
                    await gateway.until(lambda s: s.uplink.state == "up", "connected again")
                    await gateway.end()
                    on_disk = stored(gateway.spool)[COUNTS]
                    await gateway.start()
                    await until(lambda: count(db) >= on_disk, "everything delivered")
        assert_whole(db, on_disk)

    asyncio.run(scenario())
