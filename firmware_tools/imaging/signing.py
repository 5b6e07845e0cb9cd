"""The developer's keys for updates, made on first use; and the update itself, signed with them.

They are below ~/.config/octogate/update: a CA that stays for years, and what it has signed to sign bundles with. They
are another CA than the one of provisioning, so that no gateway's certificate can sign an update.
"""

from __future__ import annotations

import datetime
import os
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from firmware_tools.imaging import host

YEARS = 20  # a gateway without a right clock must not refuse an update
_BEGIN = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)  # and one whose clock is behind neither


@dataclass(frozen=True)
class UpdateKeys:
    """Files: what a gateway trusts, and what signs."""

    ca: Path
    certificate: Path
    key: Path


def config_folder() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "octogate"


def places(folder: Path | None = None) -> UpdateKeys:
    """Where the developer's keys are, or will be."""
    folder = folder or config_folder() / "update"
    return UpdateKeys(folder / "ca.pem", folder / "signer.pem", folder / "signer.key")


def update_keys(folder: Path | None = None) -> UpdateKeys:
    """The developer's keys, made if they are not there yet; whole or not at all."""
    keys = places(folder)
    folder = keys.key.parent
    if not keys.key.exists():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        ca_key, signer_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        ca = _certificate("Octogate updates", ca_key, ca_key, None)
        signer = _certificate("Octogate update signer", signer_key, ca_key, ca)
        _write(folder / "ca.key", _private(ca_key), 0o600)
        _write(keys.ca, ca.public_bytes(serialization.Encoding.PEM), 0o644)
        _write(keys.certificate, signer.public_bytes(serialization.Encoding.PEM), 0o644)
        _write(keys.key, _private(signer_key), 0o600)  # last: it says that all are there
    return keys


def _certificate(
    name: str, key: ec.EllipticCurvePrivateKey, signer: ec.EllipticCurvePrivateKey, issuer: x509.Certificate | None
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    usage = dict.fromkeys(
        (
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    own = issuer is None
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_BEGIN)
        .not_valid_after(_BEGIN.replace(year=_BEGIN.year + YEARS))
        .add_extension(x509.BasicConstraints(ca=own, path_length=0 if own else None), critical=True)
        .add_extension(
            x509.KeyUsage(digital_signature=not own, key_cert_sign=own, crl_sign=own, **usage), critical=True
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA256())
    )


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, content: bytes, mode: int) -> None:
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
        os.fsync(file.fileno())
    new.rename(path)


def manifest(board: str, version: str, filename: str) -> str:
    """RAUC's manifest of a bundle with one root file system."""
    return (
        f"[update]\ncompatible=octogate-{board}\nversion={version}\n\n[bundle]\nformat=verity\n\n"
        f"[image.rootfs]\nfilename={filename}\nadaptive=block-hash-index\n"
    )


def make_bundle(target: Path, root: Path, work: Path, *, board: str, version: str, keys: UpdateKeys) -> None:
    """A signed bundle with the root file system `root`, an ext4 image on the disk of `work`."""
    (work / "rootfs.ext4").hardlink_to(root)
    (work / "manifest.raucm").write_text(manifest(board, version, "rootfs.ext4"))
    target.unlink(missing_ok=True)
    host.run(
        *("rauc", f"--cert={keys.certificate}", f"--key={keys.key}", f"--keyring={keys.ca}", "bundle"),
        *("--mksquashfs-args=-comp zstd -Xcompression-level 3 -quiet -no-progress", work, target),
    )
