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
from sdk.authority import default_folder
from sdk.provision import Entry

IMAGES = Path("build/image")
SLOT = "rootA"
MODELS = "/usr/share/octogate/bundles"  # where the image has its models
ADAPTIVE = (1, 8)  # the first RAUC with block-hash-index
_NAME = re.compile(r"octogate-([a-z0-9]+)\.img(\.zst)?")
_VERSION = re.compile(r"[A-Za-z0-9_.+-]{1,60}")
OS_RELEASE = "/usr/lib/os-release"
SIGNER_KEY, SIGNER, KEYRING = "signer.key", "signer.pem", "ca.pem"  # made by the first ./inv image.build
_IMAGE_VERSION = re.compile(rb'^IMAGE_VERSION="?([A-Za-z0-9._+-]{1,64})"?$', re.MULTILINE)
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
    keys: Path,
    *,
    out: Path | None = None,
    version: str = "",
    models: Sequence[Path] = (),
    progress: Progress = lambda *_: None,
) -> Made:
    """Write the bundle: all of it or nothing.

    Args:
        keys: folder with the signer's key and certificate, and the authority that the images know.
        out: the file; `octogate-<board>.raucb` beside the image if None.
        version: what it calls itself; as the image does if empty.

    Raises:
        DiskError: the image's name tells no board, a model has no room in it, or rauc refuses.
    """
    named = _NAME.fullmatch(image.path.name)
    if named is None:
        raise DiskError(f"{image.path}: its name tells no board", hint="octogate-<board>.img.zst, as it was built")
    compatible = f"octogate-{named[1]}"
    target = out or image.path.with_name(f"{compatible}.raucb")
    if version and not _VERSION.fullmatch(version):
        raise DiskError(f"{version[:60]!r} is no version", hint="letters, digits and . _ + -")
    for name in (SIGNER_KEY, SIGNER, KEYRING):
        if not (keys / name).is_file():
            raise DiskError(f"{keys / name}: missing", hint="./inv image.build makes your keys; restore them if it did")
    adaptive = _rauc_version() >= ADAPTIVE
    with tempfile.TemporaryDirectory(prefix=".octogate-", dir=target.absolute().parent) as name:
        folder = Path(name)
        content = folder / "content"
        content.mkdir()
        root = content / "rootfs.ext4"
        progress("bundle", 0, 4)
        copy_out(image, image.partition(SLOT), root)
        progress("bundle", 1, 4)
        version = _filled(FileSystem(root), {f"{MODELS}/{path.name}": _model(path) for path in models}, version)
        (content / "manifest.raucm").write_text(_manifest(compatible, version, adaptive))
        progress("bundle", 2, 4)
        new = folder / "new.raucb"
        _rauc(keys, "bundle", str(content), str(new))
        progress("bundle", 3, 4)
        _rauc(keys, "info", str(new))  # by the keyring that the gateways have
        new.replace(target)
        progress("bundle", 4, 4)
    return Made(target, compatible, version, adaptive)


def default_keys() -> Path:
    """Where a developer's keys for updates are, beside the authority of the gateways."""
    return default_folder().with_name("update")


def _filled(root: FileSystem, models: dict[str, Entry], version: str) -> str:
    """Put the models in; the root's version. With other models it is another build, which has yet to show its health."""
    release = root.present([OS_RELEASE]).get(OS_RELEASE)
    text = (release.data if release else None) or b""
    found = _IMAGE_VERSION.search(text)
    if found is None:
        raise DiskError("the image does not say its version", hint="build it with ./inv image.build")
    named = found[1].decode()
    if models or version not in ("", named):
        digests = "".join(f"{path} {hashlib.sha256(entry.data).hexdigest()}\n" for path, entry in models.items())
        named = version or f"{named[:50]}+{hashlib.sha256(digests.encode()).hexdigest()[:8]}"
        changed = text[: found.start()] + f"IMAGE_VERSION={named}".encode() + text[found.end() :]
        root.check()
        root.write({**models, OS_RELEASE: Entry(changed)})
    return named


def _manifest(compatible: str, version: str, adaptive: bool) -> str:
    text = f"[update]\ncompatible={compatible}\nversion={version}\n\n[bundle]\nformat=verity\n\n"
    return text + "[image.rootfs]\nfilename=rootfs.ext4\n" + ("adaptive=block-hash-index\n" if adaptive else "")


def _model(path: Path) -> Entry:
    try:
        return Entry(path.read_bytes())
    except OSError as error:
        raise DiskError(f"{path}: {error.strerror}", hint="./inv models.build makes it") from error


def _rauc_version() -> tuple[int, int]:
    if shutil.which("rauc") is None:
        raise DiskError("there is no rauc", hint="sudo apt-get install rauc")
    said = subprocess.run(["rauc", "--version"], capture_output=True, text=True, timeout=30, check=False).stdout
    found = _RAUC.match(said)
    if found is None:
        raise DiskError(f"rauc says {said[:40]!r} for its version")
    return int(found[1]), int(found[2])


def _rauc(keys: Path, *command: str) -> None:
    options = [f"--cert={keys / SIGNER}", f"--key={keys / SIGNER_KEY}", f"--keyring={keys / KEYRING}"]
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
