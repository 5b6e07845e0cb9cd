"""The developer's own certificate authority: made on first use, it gives each gateway a key and a certificate.

    ca.key ca.pem           EC P-256; the key is nobody else's to read (0600, in a folder of 0700)
    gateways/NAME.key .pem  of each gateway, to be put on it again should its card be lost
    issued.jsonl            one line a certificate: serial number, gateway, until when

It signs no updates: those have keys of their own, so that no gateway's certificate can sign one.
A broker that trusts ca.pem knows a gateway by its certificate (mosquitto: `require_certificate`, and
`use_identity_as_username` makes the gateway's id its user name in access lists).
"""

from __future__ import annotations

import datetime
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from gateway import durable
from gateway.errors import ConfigError

CA_DAYS = 3650
DAYS = 730  # of a gateway's certificate
RENEW = 3  # a certificate with less than a third of its time left is made anew
_DAY = datetime.timedelta(days=1)


def default_folder() -> Path:
    """Where a developer's authority lives: `octogate/ca` in XDG_CONFIG_HOME, which is ~/.config if not set."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "octogate" / "ca"


@dataclass(frozen=True)
class Identity:
    """Who a gateway is: its private key and certificate (PEM), and that of the authority."""

    gateway: str
    key: bytes
    certificate: bytes
    authority: bytes
    new: bool  # made just now

    def __repr__(self) -> str:
        return f"Identity({self.gateway!r})"  # never the key


class Authority:
    """The authority in a folder, made there on first use. Two processes at once wait for each other.

    Raises:
        ConfigError: the folder cannot be used, or what is in it is no key and certificate.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def identity(self, gateway: str, days: int = DAYS) -> Identity:
        """The key and certificate of a gateway: the ones from before while they hold, else new ones.

        Args:
            gateway: its id; it stands in the certificate as common name and as DNS name.
            days: how long a new certificate holds.
        """
        with self._locked():
            key, certificate = self._authority()
            kept = self._kept(gateway, certificate)
            if kept is not None:
                return Identity(gateway, *kept, _pem(certificate), new=False)
            private = ec.generate_private_key(ec.SECP256R1())
            made = self._sign(gateway, private.public_key(), key, certificate, days)
            self._record(gateway, made)
            folder = self.folder / "gateways"
            folder.mkdir(mode=0o700, exist_ok=True)
            durable.write_whole(folder / f"{gateway}.key", _private(private))
            durable.write_whole(folder / f"{gateway}.pem", _pem(made))
            return Identity(gateway, _private(private), _pem(made), _pem(certificate), new=True)

    def kept(self, gateway: str) -> Identity | None:
        """The key and certificate that are there and hold for long enough; makes nothing."""
        if not (self.folder / "ca.pem").exists():
            return None
        with self._locked():
            _, certificate = self._authority()
            kept = self._kept(gateway, certificate)
            return Identity(gateway, *kept, _pem(certificate), new=False) if kept else None

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(self.folder, os.O_RDONLY)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                yield
            finally:
                os.close(fd)
        except OSError as error:
            raise ConfigError(f"{self.folder}: {error.strerror}", hint="name another folder with --ca") from error

    def _authority(self) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
        key_path, path = self.folder / "ca.key", self.folder / "ca.pem"
        if not path.exists():  # written after the key, so that without it nothing was signed yet
            key, made = _self_signed()
            durable.write_whole(key_path, _private(key))
            durable.write_whole(path, _pem(made))
            return key, made
        try:
            private = load_pem_private_key(key_path.read_bytes(), None)
            certificate = x509.load_pem_x509_certificate(path.read_bytes())
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{self.folder}: no usable ca.key and ca.pem: {error}") from error
        if not isinstance(private, ec.EllipticCurvePrivateKey) or private.public_key() != certificate.public_key():
            raise ConfigError(f"{self.folder}: ca.key is not the key of ca.pem", hint="restore both from one backup")
        if certificate.not_valid_after_utc < _now() + _DAY:
            raise ConfigError(
                f"{path}: has expired, and with it every certificate that it signed",
                hint="move the folder away for a new authority, and provision every gateway again",
            )
        return private, certificate

    def _kept(self, gateway: str, authority: x509.Certificate) -> tuple[bytes, bytes] | None:
        """The key and certificate from before, if they belong together, are ours and hold for long enough."""
        key_path, path = (self.folder / "gateways" / f"{gateway}{suffix}" for suffix in (".key", ".pem"))
        try:
            key, pem = key_path.read_bytes(), path.read_bytes()
            private, certificate = load_pem_private_key(key, None), x509.load_pem_x509_certificate(pem)
            certificate.verify_directly_issued_by(authority)
        except (FileNotFoundError, ValueError, TypeError, InvalidSignature):
            return None
        begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        same = isinstance(private, ec.EllipticCurvePrivateKey) and private.public_key() == certificate.public_key()
        return (key, pem) if same and end - _now() > (end - begin) / RENEW else None

    def _sign(
        self,
        gateway: str,
        public: ec.EllipticCurvePublicKey,
        key: ec.EllipticCurvePrivateKey,
        authority: x509.Certificate,
        days: int,
    ) -> x509.Certificate:
        # from a day before: a clock that is a little late must not refuse it
        builder = _builder(gateway, authority.subject, public, min(_now() + days * _DAY, authority.not_valid_after_utc))
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
        return (
            builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(usage, critical=False)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(gateway)]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()),
                critical=False,
            )
            .sign(key, hashes.SHA256())
        )

    def _record(self, gateway: str, made: x509.Certificate) -> None:
        """Noted before it is handed out, so that every certificate there is can be revoked by its number."""
        line = {
            "serial": f"{made.serial_number:x}",
            "gateway": gateway,
            "from": made.not_valid_before_utc.isoformat(),
            "until": made.not_valid_after_utc.isoformat(),
            "sha256": made.fingerprint(hashes.SHA256()).hex(),
        }
        with os.fdopen(
            os.open(self.folder / "issued.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "w"
        ) as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _self_signed() -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name("Octogate developer authority")
    builder = _builder("Octogate developer authority", subject, key.public_key(), _now() + CA_DAYS * _DAY)
    made = (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return key, made


def _builder(
    common_name: str, issuer: x509.Name, public: ec.EllipticCurvePublicKey, until: datetime.datetime
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(_name(common_name)).issuer_name(issuer).public_key(public)
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(_now() - _DAY).not_valid_after(until)
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=signs, crl_sign=signs, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
