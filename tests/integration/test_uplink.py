"""The uplink against real brokers: MQTT 5, certificates, links that come up, half-open links, several at once, pictures."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import sqlite3
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import paho.mqtt.client as paho
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from paho.mqtt.enums import CallbackAPIVersion

from bench.campaign import Process, broker_command
from gateway.store.columns import read_header
from gateway.sync import account as account_module
from gateway.sync import mqtt, netlink
from gateway.sync.account import Account, tls_context
from gateway.sync.mqtt import Connection
from sdk.ingest import Ingest
from sdk.pictures import PictureIngest
from tests.integration.harness import broker, daemon, delivered_count, free_port, stored, until
from tests.integration.proxy import Proxy
from tests.integration.test_daemon import COUNTS, assert_whole, node
from tests.integration.test_mosquitto import certificate

MOSQUITTO = shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin")


def config(folder: Path, uplinks: str) -> str:
    return f"""
[gateway]
id = "test"
data_dir = "data"
[[source]]
kind = "node"
name = "press"
port = "{folder / "tty"}"
{uplinks}
"""


def uplink(port: int, more: str = "", table: str = "[uplink]") -> str:
    return f'{table}\nhost = "127.0.0.1"\nport = {port}\nbackoff_max_s = 0.5\n{more}\n'


def count(db: Path) -> int:
    with contextlib.suppress(sqlite3.Error):  # not made yet
        return delivered_count(db, COUNTS)
    return 0


@asynccontextmanager
async def mosquitto(folder: Path, more: str = "") -> AsyncIterator[int]:
    """A mosquitto on loopback, and its port."""
    port = free_port()
    command = broker_command("mosquitto", port, folder)
    with (folder / "mosquitto.conf").open("a") as conf:
        conf.write(more)
    process = Process(folder / "mosquitto.log", *command)
    await process.start()
    try:
        yield port
    finally:
        await process.kill()


@asynccontextmanager
async def connected(account: Account) -> AsyncIterator[Connection]:
    connection = Connection(account)
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(connection.run(), name="mqtt")
        yield connection
        task.cancel()


# --- MQTT 5 ------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(60)
def test_the_brokers_receive_maximum_is_the_window(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with mosquitto(tmp_path, "max_inflight_messages 3\n") as port:
            async with connected(Account("127.0.0.1", port, "five", protocol="5", backoff_max_s=0.5)) as five:
                await until(lambda: five.up, "connected")
                assert five.window == 3
                outcomes: list[bool | None] = []
                five.on_room = outcomes.append
                while five.room:
                    assert five.publish("nobody/listens", b"x" * 40, qos=1, heard=True)
                assert five.inflight == 3
                await until(lambda: len(outcomes) == 3, "acknowledged")
                assert outcomes == [False] * 3  # reason 0x10: no matching subscribers
            async with connected(Account("127.0.0.1", port, "three", window=7, backoff_max_s=0.5)) as three:
                await until(lambda: three.up, "connected")
                assert three.window == 7

    asyncio.run(scenario())


@pytest.mark.timeout(120)
def test_with_mqtt_5_nothing_is_sent_to_nobody_and_a_new_consumer_gets_all(tmp_path: Path) -> None:
    async def scenario() -> None:
        db = tmp_path / "consumer.db"
        async with mosquitto(tmp_path) as port, node(tmp_path):
            text = config(tmp_path, uplink(port, 'protocol = "5"\nwindow = 5\n[uplink.live]'))
            async with daemon(tmp_path, text) as gateway:
                status = await gateway.until(
                    lambda s: any(x.name == COUNTS and x.next_seq > 1500 for x in s.streams), "it stores"
                )
                assert status.uplink.state == "up"
                assert status.uplink.sent <= 10  # a window, and what a question now and then starts
                async with Ingest.open(db, port=port):  # knows nothing of this gateway
                    await until(lambda: count(db) > 1500, "delivered")
                    await gateway.end()
                    on_disk = stored(gateway.spool)[COUNTS]
                    await gateway.start()
                    await until(lambda: count(db) >= on_disk, "everything delivered")
        assert_whole(db, on_disk)

    asyncio.run(scenario())


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
        async with mosquitto(tmp_path, tls) as port:
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
                await until(lambda: connection.up, "connected at once", patience_s=1)
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
                text = config(tmp_path, uplink(link.port, "keepalive_s = 5\n[uplink.live]"))
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


# --- several at once, and a prefix -------------------------------------------------------------------------------


class Plain:
    """A consumer by hand: hears everything under a prefix and says what it has."""

    def __init__(self, port: int, prefix: str) -> None:
        self.ranges: set[tuple[int, int]] = set()
        self.epoch = ""
        self.prefix = prefix
        self.client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv311)
        self.client.on_connect = lambda client, *_: client.subscribe(f"{prefix}/+/up/#", qos=1)
        self.client.on_message = self._arrived
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()

    def _arrived(self, _c: paho.Client, _u: object, message: paho.MQTTMessage) -> None:
        if message.topic == f"{self.prefix}/test/up/{COUNTS}":
            header, _ = read_header(bytes(message.payload))
            self.epoch = header.epoch.hex()
            self.ranges.add((header.seq_first, header.seq_first + header.n))

    @property
    def whole(self) -> int:
        """How far it has everything."""
        at = 0
        for first, end in sorted(self.ranges):
            if first > at:
                break
            at = max(at, end)
        return at

    def acknowledge(self, seq: int) -> None:
        word = {"session": "by hand", "epoch": self.epoch, "next": {COUNTS: seq}}
        self.client.publish(f"{self.prefix}/test/ack", msgspec.json.encode(word), qos=1, retain=True)

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@pytest.mark.timeout(120)
def test_two_uplinks_each_at_its_own_pace(tmp_path: Path) -> None:
    async def scenario() -> None:
        site, db = free_port(), tmp_path / "consumer.db"
        with broker(site):
            async with mosquitto(tmp_path) as cloud, Proxy.open(cloud) as link, node(tmp_path):
                second = uplink(link.port, 'name = "cloud"\nprefix = "acme/plant-7"\nprotocol = "5"', "[[uplink]]")
                text = config(tmp_path, uplink(site, "", "[[uplink]]") + second)
                async with Ingest.open(db, port=site), daemon(tmp_path, text) as gateway:
                    plain = Plain(cloud, "acme/plant-7")
                    try:
                        await until(lambda: count(db) > 200 and plain.whole > 200, "both get readings")
                        await link.cut()
                        at = count(db)
                        await until(lambda: count(db) > at + 400, "the one goes on without the other")
                        assert plain.whole < at + 400
                        status = await gateway.status()
                        assert [(u.name, u.state == "up") for u in status.uplinks] == [("main", True), ("cloud", False)]
                        assert status.uplink == status.uplinks[0]
                        # nothing is confirmed over the second: for the spool, nothing is
                        assert next(s.delivered_seq for s in status.streams if s.name == COUNTS) == 0
                        await link.mend()
                        await until(lambda: plain.whole > at + 400, "the other catches up")
                        plain.acknowledge(at)
                        await gateway.until(
                            lambda s: any(x.name == COUNTS and x.delivered_seq == at for x in s.streams),
                            "the least of both is what the spool may forget",
                        )
                        await gateway.end()
                        on_disk = stored(gateway.spool)[COUNTS]
                        await gateway.start()
                        await until(lambda: min(count(db), plain.whole) >= on_disk, "both have everything")
                    finally:
                        plain.close()
        assert_whole(db, on_disk)

    asyncio.run(scenario())


# --- pictures ----------------------------------------------------------------------------------------------------


@pytest.mark.timeout(120)
def test_pictures_arrive_whole_through_cuts_and_kills(tmp_path: Path) -> None:
    folder, received = tmp_path / "data" / "pictures", tmp_path / "received"
    folder.mkdir(parents=True)
    made = random.Random(3)
    for i in range(12):
        (folder / f"dock-{i:02}.jpg").write_bytes(made.randbytes(made.randrange(1, 900_000)))

    async def scenario() -> None:
        async with mosquitto(tmp_path) as port:  # the embedded broker takes no packet of 64 KiB
            async with Proxy.open(port) as link, Proxy.open(port) as far:
                text = config(tmp_path, uplink(link.port, 'pictures = "events"'))
                async with daemon(tmp_path, text) as gateway:
                    for breaking in range(4):
                        async with PictureIngest.open(received, port=far.port):
                            before = link.passed
                            await until(lambda n=before: link.passed > n + 300_000 or there() == 12, "blocks go")  # type: ignore[misc]
                            if breaking % 3 == 0:
                                await gateway.kill()
                                await gateway.start()
                            elif breaking % 3 == 1:
                                await link.cut()
                                await link.mend()
                            # and each time the receiver ends here
                    async with PictureIngest.open(received, port=far.port) as last:
                        await until(lambda: there() == 12, "all are there")
                        assert last.refused == 0
                print(f"{link.passed} bytes for {sum(p.stat().st_size for p in folder.iterdir())}")

    def there() -> int:
        return len(list(received.glob("test/*.jpg")))

    asyncio.run(scenario())
    for picture in folder.iterdir():
        assert (received / "test" / picture.name).read_bytes() == picture.read_bytes()
