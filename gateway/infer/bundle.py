"""Reading a model bundle: one `.octo` file, a zip whose members are stored, so that they can be mapped.

The reader takes a strict subset of zip (stored members, no zip64, comment, encryption or data descriptor, every
name once) and refuses the rest, so that no two readers can see two contents in one signed file. Cheap to import:
the daemon's own process calls `read_manifest`; only `Bundle.verify` loads cryptography.
"""

from __future__ import annotations

import base64
import contextlib
import mmap
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import msgspec

from gateway.errors import ModelError
from gateway.infer.manifest import MANIFEST, SIGNATURE, Manifest, decode

MAX_BYTES = 1 << 30
MAX_MEMBERS = 256
MAX_MANIFEST = 4 << 20
MAX_SIGNATURE = 4096
ALIGNMENT = 64  # of each member's data, for direct mapping

# APPNOTE.TXT 4.3.16, 4.3.12, 4.3.7
_END = struct.Struct("<4s4H2LH")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/-]{0,199}")
_UTF8_FLAG = 0x800

_PEM = re.compile(rb"-----BEGIN PUBLIC KEY-----\s+([A-Za-z0-9+/=\s]+)-----END PUBLIC KEY-----")
_ED25519_SPKI = bytes.fromhex("302a300506032b6570032100")  # RFC 8410: then the 32 bytes of the key


class Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`signature.json`: sha256 of the raw public key in hex, and the Ed25519 signature in base64."""

    key: str
    signature: str


class Verified(msgspec.Struct, frozen=True):
    """What `verify` found out.

    Attributes:
        digest: sha256 over the canonical list of members, hex; the same for a signed and an unsigned copy.
        signed_by: fingerprint of the trusted key, empty when the bundle is taken unsigned.
    """

    digest: str
    signed_by: str


def canonical(hashes: Mapping[str, tuple[str, int]]) -> bytes:
    """What is signed: a header and one line for each member but the signature, from name -> (sha256 hex, size)."""
    lines = sorted(f"{sha} {size} {name}\n" for name, (sha, size) in hashes.items() if name != SIGNATURE)
    return ("octogate-bundle-v1\n" + "".join(lines)).encode()


def valid_name(name: str) -> bool:
    """Whether a member may be called so: relative, plain ASCII, no empty, `.` or `..` part."""
    return bool(_NAME.fullmatch(name)) and all(part not in ("", ".", "..") for part in name.split("/"))


class Bundle:
    """An open bundle, mapped into memory; a context manager.

    Raises:
        ModelError: not a bundle, damaged, larger than the bounds, or a member is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                # private, so that runtimes which share only writable memory can share it; nothing reaches the file
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except OSError as error:
            raise ModelError(
                f"{path}: cannot read the bundle: {error.strerror}", hint="copy it there or mend the path"
            ) from error
        except ValueError as error:  # mmap of nothing
            raise self._bad("the file is empty") from error
        self._view = memoryview(self._map)
        with contextlib.ExitStack() as failed:
            failed.callback(self.close)
            self._members = self._directory()
            self.manifest = self._read_manifest()
            failed.pop_all()

    def __enter__(self) -> Bundle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Unmap the file; while a view is still in use (by an exception's traceback too), that waits for it."""
        with contextlib.suppress(BufferError):
            self._view.release()
            self._map.close()

    def names(self) -> list[str]:
        """All members, sorted."""
        return sorted(self._members)

    def member(self, name: str) -> memoryview:
        """The bytes of one member, not copied.

        Raises:
            ModelError: there is none of this name.
        """
        if name not in self._members:
            raise self._bad(f"member {name} is missing")
        start, size = self._members[name]
        return self._view[start : start + size]

    def verify(self, keys: Iterable[Path], *, allow_unsigned: bool) -> Verified:
        """Hash every member and check the signature.

        Args:
            keys: PEM files of Ed25519 public keys that may sign.
            allow_unsigned: take a bundle that carries no signature, or one of an unknown key. A signature of a
                known key that does not fit is refused all the same.

        Raises:
            ModelError: unsigned, signed by an unknown key, or changed since it was signed; or a key is unreadable.
        """
        from hashlib import sha256  # loads OpenSSL: only where it is needed

        message = canonical(
            {name: (sha256(self.member(name)).hexdigest(), size) for name, (_, size) in self._members.items()}
        )
        digest = sha256(message).hexdigest()
        trusted = {sha256(raw).hexdigest(): raw for raw in map(read_public_key, keys)}
        if SIGNATURE not in self._members:
            if allow_unsigned:
                return Verified(digest, "")
            raise ModelError(
                f"{self.path}: the bundle is not signed",
                hint="sign it when packing, or set trust.allow_unsigned while developing",
            )
        signature = self.signature()
        if signature.key not in trusted:
            if allow_unsigned:
                return Verified(digest, "")
            raise ModelError(
                f"{self.path}: signed by the unknown key {signature.key[:16]}",
                hint=f"add its public key to trust.keys; trusted are: {_short(trusted) or 'none'}",
            )
        _check_signature(self.path, trusted[signature.key], signature.signature, message)
        return Verified(digest, signature.key)

    def signature(self) -> Signature:
        """What `signature.json` says; it proves nothing before `verify`.

        Raises:
            ModelError: there is none, or it is damaged.
        """
        data = self.member(SIGNATURE)
        try:
            return msgspec.json.decode(bytes(data[:MAX_SIGNATURE]), type=Signature)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise self._bad(f"signature.json: {error}") from error

    def _bad(self, why: str) -> ModelError:
        return ModelError(f"{self.path}: not a usable bundle: {why}", hint="copy or pack it again")

    def _directory(self) -> dict[str, tuple[int, int]]:
        """Name -> (offset of the data, size), from the central directory, checked against each local header."""
        size = len(self._view)
        if not _END.size <= size <= MAX_BYTES:
            raise self._bad(f"{size} bytes are no zip, or more than {MAX_BYTES}")
        magic, disk, cd_disk, n_here, n, cd_size, cd_start, comment = _END.unpack_from(self._view, size - _END.size)
        if magic != b"PK\5\6" or disk or cd_disk or comment or n_here != n:
            raise self._bad("it does not end as a zip does; cut short?")
        if n > MAX_MEMBERS or cd_start + cd_size + _END.size != size:
            raise self._bad("its directory is not where it says, or too long")
        members: dict[str, tuple[int, int]] = {}
        at, end = cd_start, cd_start + cd_size
        for _ in range(n):
            if at + _CENTRAL.size > end:
                raise self._bad("its directory is cut short")
            name, header, length, at = self._entry(at, end)
            if name in members:
                raise self._bad(f"member {name} is there twice")
            members[name] = (self._data_start(name, header, length, cd_start), length)
        if at != end:
            raise self._bad("its directory has bytes too many")
        taken = 0
        for start, length in sorted(members.values()):
            if start < taken:
                raise self._bad("two members overlap")
            taken = start + length
        return members

    def _entry(self, at: int, end: int) -> tuple[str, int, int, int]:
        """One entry of the central directory: name, offset of its local header, size, offset of the next entry."""
        fields = _CENTRAL.unpack_from(self._view, at)
        magic, _, _, flags, method, _, _, _, packed, length, n_name, n_extra, n_comment = fields[:13]
        disk, header = fields[13], fields[16]
        following = at + _CENTRAL.size + n_name + n_extra + n_comment
        if magic != b"PK\1\2" or disk or following > end:
            raise self._bad("its directory is damaged")
        raw = bytes(self._view[at + _CENTRAL.size : at + _CENTRAL.size + n_name])
        name = raw.decode("ascii", errors="replace")
        if not valid_name(name):
            raise self._bad(f"member name {name[:60]!r} is not allowed")
        if method != 0 or flags & ~_UTF8_FLAG or packed != length:
            raise self._bad(f"member {name} is compressed or encrypted; only stored ones are read")
        return name, header, length, following

    def _data_start(self, name: str, header: int, length: int, limit: int) -> int:
        if header + _LOCAL.size > limit:
            raise self._bad(f"member {name} lies outside of the file")
        magic, _, flags, method, _, _, _, packed, unpacked, n_name, n_extra = _LOCAL.unpack_from(self._view, header)
        start = header + _LOCAL.size + n_name + n_extra
        same = self._view[header + _LOCAL.size : header + _LOCAL.size + n_name] == name.encode()
        if magic != b"PK\3\4" or flags & ~_UTF8_FLAG or method or not same or {packed, unpacked} != {length}:
            raise self._bad(f"member {name} differs from the directory")
        if start + length > limit:
            raise self._bad(f"member {name} lies outside of the file")
        return int(start)

    def _read_manifest(self) -> Manifest:
        data = self.member(MANIFEST)
        if len(data) > MAX_MANIFEST:
            raise self._bad(f"manifest.json is larger than {MAX_MANIFEST} bytes")
        manifest = decode(bytes(data), str(self.path))
        wanted = {MANIFEST, *manifest.members()}
        for name in sorted(wanted - self._members.keys()):
            raise self._bad(f"the manifest names {name}, which is not there")
        for name in sorted(self._members.keys() - wanted - {SIGNATURE}):
            raise self._bad(f"member {name} is not named by the manifest")
        return manifest


def read_manifest(path: Path) -> Manifest:
    """The manifest alone; nothing is hashed or verified.

    Raises:
        ModelError: see `Bundle`.
    """
    with Bundle(path) as bundle:
        return bundle.manifest


def verify(path: Path, keys: Sequence[Path], *, allow_unsigned: bool = False) -> Verified:
    """`Bundle.verify` of a file that is not open."""
    with Bundle(path) as bundle:
        return bundle.verify(keys, allow_unsigned=allow_unsigned)


def read_public_key(path: Path) -> bytes:
    """The 32 raw bytes of an Ed25519 public key in PEM.

    Raises:
        ModelError: unreadable, or another kind of key.
    """
    try:
        with path.open("rb") as file:
            text = file.read(10_000)
    except OSError as error:
        raise ModelError(f"{path}: cannot read the public key: {error.strerror}", hint="mend trust.keys") from error
    der = b""
    if found := _PEM.search(text):
        try:
            der = base64.b64decode(found[1])
        except ValueError:
            der = b""
    if not der.startswith(_ED25519_SPKI) or len(der) != len(_ED25519_SPKI) + 32:
        raise ModelError(f"{path}: not an Ed25519 public key in PEM", hint="make one with sdk.bundle.generate_key")
    return der[len(_ED25519_SPKI) :]


def _check_signature(path: Path, key: bytes, signature: str, message: bytes) -> None:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(key).verify(base64.b64decode(signature), message)
    except (InvalidSignature, ValueError) as error:
        raise ModelError(
            f"{path}: changed since it was signed: the signature does not fit", hint="copy or pack it again"
        ) from error


def _short(keys: Iterable[str]) -> str:
    return ", ".join(sorted(key[:16] for key in keys))
