"""Brokers that other people run: mosquitto, plain, or with TLS, names checked, and a password."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from bench.campaign import Process, broker_command
from gateway.sync.account import Account
from gateway.sync.mqtt import Connection
from tests.integration.harness import free_port, uplink

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

    def __init__(self, folder: Path, users: tuple[str, ...] = ("press",), acl: str = "") -> None:
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
        (folder / "passwords").touch(0o600)
        for user in users:
            subprocess.run(["mosquitto_passwd", "-b", str(folder / "passwords"), user, SECRET], check=True)
        (folder / "acl").write_text(acl)
        (folder / "password").write_text(SECRET + "\n")
        for path in folder.iterdir():
            path.chmod(0o644)  # mosquitto started by root drops to its own user
        folder.chmod(0o755)
        (folder / "mosquitto.conf").write_text(
            f"per_listener_settings true\nlistener {self.plain} 127.0.0.1\nallow_anonymous true\n"
            f"listener {self.tls} 127.0.0.1\ncafile {folder}/ca.pem\ncertfile {folder}/server.pem\n"
            f"keyfile {folder}/server.key\nallow_anonymous false\npassword_file {folder}/passwords\n"
            + (f"acl_file {folder}/acl\n" if acl else "")
            + "user root\n"
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

    def uplink(self, more: str = "", *, user: str = "press", ca: str = "ca.pem", password: str = "password") -> str:
        """The uplink table of a gateway that comes by TLS."""
        files = f'password_file = "{self.folder / password}"\nca_file = "{self.folder / ca}"'
        return uplink(self.tls, f'username = "{user}"\n{files}\n{more}')


@contextmanager
def mosquitto(folder: Path, users: tuple[str, ...] = ("press",), acl: str = "") -> Iterator[Mosquitto]:
    folder.mkdir()
    made = Mosquitto(folder, users, acl)
    made.start()
    try:
        yield made
    finally:
        made.kill()


@asynccontextmanager
async def plain_mosquitto(folder: Path, more: str = "") -> AsyncIterator[int]:
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
