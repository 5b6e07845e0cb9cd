"""Packing and signing model bundles on the host (`gateway.infer.bundle` reads them; docs/bundle.md explains)."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gateway.errors import ModelError
from gateway.infer.bundle import ALIGNMENT, MAX_MEMBERS, Bundle, Signature, canonical, valid_name
from gateway.infer.manifest import MANIFEST, SIGNATURE, Manifest, Precision, Variant, encode

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the oldest date a zip knows: the same content gives the same bytes
_LOCAL_HEADER = 30
_ALIGNMENT_EXTRA = 0xD935  # the extra field that Android's zipalign registered for padding


def pack(path: Path, manifest: Manifest, files: Mapping[str, bytes], key: Ed25519PrivateKey | None = None) -> str:
    """Write a bundle: all of it or nothing (a temporary file, then a rename).

    Args:
        path: the `.octo` file.
        files: every member the manifest names, without the manifest itself.
        key: signs it; None leaves it unsigned, for development.

    Returns:
        The digest (sha256, hex): the same manifest and files give the same digest and the same bytes.

    Raises:
        ModelError: the files and the manifest do not fit each other.
    """
    members = {MANIFEST: encode(manifest), **files}
    bad = [name for name in members if not valid_name(name) or name == SIGNATURE]
    if bad or len(members) >= MAX_MEMBERS:
        raise ModelError(f"{path}: these members may not be packed: {bad or len(members)}", hint="rename them")
    message = canonical({name: (hashlib.sha256(data).hexdigest(), len(data)) for name, data in members.items()})
    if key is not None:
        signature = Signature(fingerprint(key), base64.b64encode(key.sign(message)).decode())
        members[SIGNATURE] = msgspec.json.encode(signature) + b"\n"
    partial = path.with_name(path.name + ".partial")
    try:
        _write(partial, members)
        Bundle(partial).close()  # the reader's own checks: manifest against members, names, bounds
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return hashlib.sha256(message).hexdigest()


def openvino_variant(xml: Path, precision: Precision) -> tuple[Variant, dict[str, bytes]]:
    """A variant and its two members from an OpenVINO IR on disk (`openvino.save_model` writes one).

    Save fp32 models with `compress_to_fp16=False`: the default rounds the weights, and the golden samples tell.

    Args:
        xml: the `.xml` file; the `.bin` of the same name lies beside it.

    Raises:
        ModelError: one of the two is not there.
    """
    weights = xml.with_suffix(".bin")
    try:
        members = {path.name: path.read_bytes() for path in (xml, weights)}
    except OSError as error:
        raise ModelError(
            f"{xml}: cannot read the IR: {error}", hint="name the .xml that lies beside its .bin"
        ) from error
    return Variant(file=xml.name, format="openvino", precision=precision, weights=weights.name), members


def generate_key(private_path: Path, public_path: Path) -> Ed25519PrivateKey:
    """Make a signing key: the private half mode 0600, both PEM; existing files are never overwritten.

    Raises:
        FileExistsError: one of the files is there.
    """
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    if public_path.exists():
        raise FileExistsError(f"{public_path} is there already")
    with os.fdopen(os.open(private_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(private)
    with public_path.open("xb") as file:
        file.write(public)
    return key


def load_key(path: Path) -> Ed25519PrivateKey:
    """Read a private signing key.

    Raises:
        ModelError: unreadable, or another kind of key.
    """
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(
            f"{path}: cannot read the signing key: {error}", hint="make one with sdk.bundle.generate_key"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ModelError(f"{path}: not an Ed25519 key", hint="make one with sdk.bundle.generate_key")
    return key


def fingerprint(key: Ed25519PrivateKey) -> str:
    """sha256 of the raw public key, hex: how signatures and `signed_by` name a key."""
    raw = key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return hashlib.sha256(raw).hexdigest()


def _write(path: Path, members: Mapping[str, bytes]) -> None:
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(path.open("wb"))
        archive = stack.enter_context(zipfile.ZipFile(file, "w", zipfile.ZIP_STORED))
        for name in sorted(members):
            info = zipfile.ZipInfo(name, _EPOCH)
            info.create_system = 3
            info.external_attr = 0o644 << 16
            # extra field: id, length, alignment, then zeros up to the next boundary
            start = file.tell() + _LOCAL_HEADER + len(name) + 6
            padding = -start % ALIGNMENT
            info.extra = b"".join(n.to_bytes(2, "little") for n in (_ALIGNMENT_EXTRA, 2 + padding, ALIGNMENT)) + bytes(
                padding
            )
            archive.writestr(info, members[name])
