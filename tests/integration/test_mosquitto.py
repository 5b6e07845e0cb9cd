"""A broker that other people run: mosquitto, with TLS, names checked, and a password."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from gateway.contract import GatewayStatus
from sdk.ingest import Ingest
from tests.integration.harness import Daemon, daemon, delivered_count, free_port, stored, until
from tests.integration.test_daemon import COUNTS, assert_whole, node

SECRET = "not-in-any-log"


def certificate(
    name: str, key: ec.EllipticCurvePrivateKey, ca: tuple[x509.Name, ec.EllipticCurvePrivateKey] | None
) -> bytes:
    """A certificate for 127.0.0.1, or a CA's own when `ca` is None; PEM."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    issuer, signer = ca or (subject, key)
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=2))
        .add_extension(x509.BasicConstraints(ca=ca is None, path_length=None), critical=True)
    )
    if ca is not None:
        address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        builder = builder.add_extension(x509.SubjectAlternativeName([address]), critical=False)
    return builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


class Mosquitto:
    """A mosquitto with a TLS listener (password) for the gateway and a plain one on loopback for the consumer."""

    def __init__(self, folder: Path) -> None:
        self.tls, self.plain = free_port(), free_port()
        self.folder = folder
        ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test CA")])
        (folder / "ca.pem").write_bytes(certificate("test CA", ca_key, None))
        (folder / "server.pem").write_bytes(certificate("broker", key, (ca_name, ca_key)))
        (folder / "server.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        other = ec.generate_private_key(ec.SECP256R1())
        (folder / "other-ca.pem").write_bytes(certificate("somebody else", other, None))
        subprocess.run(["mosquitto_passwd", "-c", "-b", str(folder / "passwords"), "press", SECRET], check=True)
        (folder / "password").write_text(SECRET + "\n")
        for path in folder.iterdir():
            path.chmod(0o644)  # mosquitto started by root drops to its own user
        folder.chmod(0o755)
        (folder / "mosquitto.conf").write_text(
            f"per_listener_settings true\nlistener {self.plain} 127.0.0.1\nallow_anonymous true\n"
            f"listener {self.tls} 127.0.0.1\ncafile {folder}/ca.pem\ncertfile {folder}/server.pem\n"
            f"keyfile {folder}/server.key\nallow_anonymous false\npassword_file {folder}/passwords\nuser root\n"
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        program = shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin")
        assert program, "mosquitto is missing: ./inv test --integration installs or names it"
        with (self.folder / "mosquitto.log").open("ab") as log:
            self.process = subprocess.Popen([program, "-c", str(self.folder / "mosquitto.conf")], stderr=log)

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@contextmanager
def mosquitto(folder: Path) -> Iterator[Mosquitto]:
    folder.mkdir()
    made = Mosquitto(folder)
    made.start()
    try:
        yield made
    finally:
        made.kill()


def config(folder: Path, broker: Mosquitto, *, ca: str = "ca.pem", password: str = "password") -> str:
    return f"""
[gateway]
id = "test"
data_dir = "data"
[[source]]
kind = "node"
name = "press"
port = "{folder / "tty"}"
[uplink]
host = "127.0.0.1"
port = {broker.tls}
username = "press"
password_file = "{broker.folder / password}"
ca_file = "{broker.folder / ca}"
backoff_max_s = 0.5
[uplink.live]
"""


async def refused(gateway: Daemon) -> GatewayStatus:
    return await gateway.until(lambda s: s.uplink.state == "down" and bool(s.uplink.detail), "it is refused")


@pytest.mark.timeout(120)
def test_tls_password_and_a_broker_killed_twice(tmp_path: Path) -> None:
    async def scenario() -> None:
        db = tmp_path / "consumer.db"
        with mosquitto(tmp_path / "mosquitto") as broker:
            async with Ingest.open(db, port=broker.plain), node(tmp_path):
                async with daemon(tmp_path, config(tmp_path, broker)) as gateway:
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
                    await until(lambda: delivered_count(db, COUNTS) >= on_disk, "everything delivered")
                    assert SECRET not in gateway.log.read_text()
        assert_whole(db, on_disk)

    asyncio.run(scenario())


@pytest.mark.timeout(60)
def test_a_broker_that_another_ca_vouches_for_is_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        with mosquitto(tmp_path / "mosquitto") as broker:
            async with daemon(tmp_path, config(tmp_path, broker, ca="other-ca.pem")) as gateway:
                status = await refused(gateway)
                assert "certificate" in status.uplink.detail.lower()

    asyncio.run(scenario())


@pytest.mark.timeout(60)
def test_a_wrong_password_is_said_so(tmp_path: Path) -> None:
    async def scenario() -> None:
        with mosquitto(tmp_path / "mosquitto") as broker:
            (broker.folder / "wrong").write_text("wrong")
            async with daemon(tmp_path, config(tmp_path, broker, password="wrong")) as gateway:
                status = await refused(gateway)
                assert "refused" in status.uplink.detail and "uplink.username" in status.uplink.detail

    asyncio.run(scenario())


@pytest.mark.timeout(60)
def test_a_file_that_is_no_certificate_is_named(tmp_path: Path) -> None:
    async def scenario() -> None:
        with mosquitto(tmp_path / "mosquitto") as broker:
            (broker.folder / "none.pem").write_text("no certificate")
            async with daemon(tmp_path, config(tmp_path, broker, ca="none.pem")) as gateway:
                status = await refused(gateway)
                assert "none.pem" in status.uplink.detail and "uplink.ca_file" in status.uplink.detail

    asyncio.run(scenario())
