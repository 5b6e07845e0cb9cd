"""A signed update (RAUC bundle) from a built image: its root file system, with model bundles put into it if asked.

Format verity: the gateway's RAUC checks each block when it reads it. With a block-hash-index it takes the blocks that one
of its slots has already from there (RAUC >= 1.8 on both sides).
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from firmware_tools.disk.errors import DiskError
from firmware_tools.disk.ext4 import FileSystem
from firmware_tools.disk.source import Image, copy_out, open_image
from sdk.authority import Signer
from sdk.provision import Entry

IMAGES = Path("build/image")
SLOT = "rootA"
MODELS = "/usr/share/octogate/bundles"  # where the image has its models
ADAPTIVE = (1, 8)  # the first RAUC with block-hash-index
_NAME = re.compile(r"octogate-([a-z0-9]+)\.img(\.zst)?")
_VERSION = re.compile(r"[A-Za-z0-9_.+:-]{1,60}")
_RAUC = re.compile(r"rauc (\d+)\.(\d+)")

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Made:
    path: Path
    compatible: str
    version: str
    adaptive: bool


def find_image(board: str, path: Path | None) -> Image:
    """The image that was named, or the only one that is built; DiskError when there is none."""
    if path is not None:
        return open_image(path)
    built = sorted(IMAGES.glob(f"{board or '*'}/octogate-*.img.zst"))
    if len(built) != 1:
        names = ", ".join(item.parent.name for item in built) or "none is built: ./inv image.build"
        raise DiskError("which image?", hint=f"--board, one of: {names}")
    return open_image(built[0])


def make(
    image: Image,
    signer: Signer,
    *,
    out: Path | None = None,
    version: str = "",
    models: Sequence[Path] = (),
    progress: Progress = lambda *_: None,
) -> Made:
    """Write the bundle: all of it or nothing.

    Args:
        out: the file; `octogate-<board>.raucb` beside the image if None.
        version: what it calls itself; the beginning of its root's sha256 if empty.

    Raises:
        DiskError: the image's name tells no board, a model has no room in it, or rauc refuses.
    """
    named = _NAME.fullmatch(image.path.name)
    if named is None:
        raise DiskError(f"{image.path}: its name tells no board", hint="octogate-<board>.img.zst, as it was built")
    compatible = f"octogate-{named[1]}"
    target = out or image.path.with_name(f"{compatible}.raucb")
    adaptive = _rauc_version() >= ADAPTIVE
    with tempfile.TemporaryDirectory(prefix=".octogate-", dir=target.absolute().parent) as name:
        folder = Path(name)
        content = folder / "content"
        content.mkdir()
        root = content / "rootfs.ext4"
        progress("reading", 0, 4)
        copy_out(image, image.partition(SLOT), root)
        if models:
            FileSystem(root).write({f"{MODELS}/{path.name}": _model(path) for path in models})
        progress("hashing", 1, 4)
        version = version or _digest(root)[:12]
        (content / "manifest.raucm").write_text(_manifest(compatible, version, adaptive))
        progress("packing", 2, 4)
        new = folder / "new.raucb"
        _rauc(signer, "bundle", str(content), str(new))
        progress("checking", 3, 4)
        _rauc(signer, "info", str(new))  # by the keyring that the gateways have
        new.replace(target)
        progress("done", 4, 4)
    return Made(target, compatible, version, adaptive)


def _manifest(compatible: str, version: str, adaptive: bool) -> str:
    if not _VERSION.fullmatch(version):
        raise DiskError(f"{version[:60]!r} is no version", hint="letters, digits and . _ + : -")
    text = f"[update]\ncompatible={compatible}\nversion={version}\n\n[bundle]\nformat=verity\n\n"
    return text + "[image.rootfs]\nfilename=rootfs.ext4\n" + ("adaptive=block-hash-index\n" if adaptive else "")


def _model(path: Path) -> Entry:
    try:
        return Entry(path.read_bytes())
    except OSError as error:
        raise DiskError(f"{path}: {error.strerror}", hint="./inv models.build makes it") from error


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _rauc_version() -> tuple[int, int]:
    if shutil.which("rauc") is None:
        raise DiskError("there is no rauc", hint="sudo apt-get install rauc")
    said = subprocess.run(["rauc", "--version"], capture_output=True, text=True, timeout=30, check=False).stdout
    found = _RAUC.match(said)
    if found is None:
        raise DiskError(f"rauc says {said[:40]!r} for its version")
    return int(found[1]), int(found[2])


def _rauc(signer: Signer, *command: str) -> None:
    options = [f"--cert={signer.certificate}", f"--key={signer.key}", f"--keyring={signer.keyring}"]
    options = options[2:] if command[0] == "info" else options
    try:
        done = subprocess.run(
            ["rauc", *options, *command], capture_output=True, text=True, errors="replace", timeout=1800, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise DiskError(f"rauc {command[0]}: not done after half an hour") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"status {done.returncode}"]
        raise DiskError(
            f"rauc {command[0]}: {lines[-1][:300]}", hint="are key, certificate and keyring of one authority?"
        )
