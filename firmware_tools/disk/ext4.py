"""Files in an ext4 file system that is not mounted: read, written and checked by e2fsprogs' debugfs, without root.

debugfs keeps what is there, and needs no list of features and owners to be repeated, as making the file system anew
would; a loop mount needs root. It says failures on stderr and exits 0, so that what was written is read back here.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from firmware_tools.disk.errors import DiskError
from sdk.provision import Entry, Present, digest

_PATH = re.compile(r"(/[A-Za-z0-9_@+.-]+)+")
_MODE = re.compile(r"Type: regular +Mode: +([0-7]{4,7})\b")
_ANSWER = re.compile(r"^debugfs: stat (\S+)\n(.*?)(?=^debugfs: |\Z)", re.MULTILINE | re.DOTALL)
_SECONDS = 120
PROGRAMS = {"debugfs": "e2fsprogs", "e2fsck": "e2fsprogs", "lsblk": "util-linux"}


class FileSystem:
    """The ext4 file system in a file. Paths are absolute in it, of letters, digits and `_@+.-`."""

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()

    def check(self) -> None:
        """Replay its journal and mend what can be mended without a question; DiskError when that is not enough."""
        code, said = _run(["e2fsck", "-f", "-p", str(self._path)])
        if code not in (0, 1):  # 1: something was mended
            raise DiskError(f"the data partition is damaged: {_short(said)}", hint="build or copy the image again")

    def present(self, paths: Iterable[str]) -> dict[str, Present]:
        """The files that stand at these paths; those that are not there are left out."""
        wanted = [_valid(path) for path in paths]
        with tempfile.TemporaryDirectory(prefix="octogate-") as text:
            folder = Path(text)
            said = self._debugfs(
                [line for i, path in enumerate(wanted) for line in (f"stat {path}", f"dump {path} f{i}")], folder
            )
            # what it says to each command comes after the command
            answers = dict(_ANSWER.findall(said))
            found: dict[str, Present] = {}
            for i, path in enumerate(wanted):
                match = _MODE.search(answers.get(path, ""))
                if match and (folder / f"f{i}").exists():
                    data = (folder / f"f{i}").read_bytes()
                    found[path] = Present(digest(data), int(match[1], 8) & 0o7777, data)
            return found

    def write(self, entries: Mapping[str, Entry]) -> None:
        """Put these files there, owned by root, with their folders, and read them back.

        Raises:
            DiskError: it did not take them (no room, most likely).
        """
        with tempfile.TemporaryDirectory(prefix="octogate-") as text:
            folder = Path(text)
            script = [
                f"mkdir {name}" for name in self._missing({p for path in entries for p in _parents(_valid(path))})
            ]
            for i, (path, entry) in enumerate(entries.items()):
                (folder / f"f{i}").touch(mode=0o600)
                (folder / f"f{i}").write_bytes(entry.data)
                script += [f"rm {path}", f"write f{i} {path}"]
                script += [f"set_inode_field {path} {field} {value}" for field, value in _fields(entry)]
            said = self._debugfs(script, folder, write=True)
        there = self.present(entries)
        for path, entry in entries.items():
            if there.get(path) != Present(digest(entry.data), entry.mode, entry.data):
                raise DiskError(f"{path} does not stand in the data partition", hint=_short(said) or "is it full?")
        self.check()

    def _missing(self, folders: set[str]) -> list[str]:
        """Those that are not there, the outer ones first: a mkdir of one that is there leaves a stray inode."""
        with tempfile.TemporaryDirectory(prefix="octogate-") as name:
            said = self._debugfs([f"stat {folder}" for folder in sorted(folders)], Path(name))
        answers = dict(_ANSWER.findall(said))
        return [folder for folder in sorted(folders) if "Type: directory" not in answers.get(folder, "")]

    def _debugfs(self, script: list[str], folder: Path, *, write: bool = False) -> str:
        (folder / "script").write_text("".join(line + "\n" for line in script))
        command = ["debugfs", *(["-w"] if write else []), "-f", "script", str(self._path)]
        code, said = _run(command, folder)
        if code:
            raise DiskError(f"{self._path}: {_short(said)}", hint="is it an ext4 file system?")
        return said


def _fields(entry: Entry) -> list[tuple[str, str]]:
    return [("mode", f"0{0o100000 | entry.mode:o}"), ("uid", "0"), ("gid", "0")]


def _valid(path: str) -> str:
    if not _PATH.fullmatch(path) or ".." in path.split("/"):
        raise DiskError(f"{path!r} cannot be a path in an image")
    return path


def _parents(path: str) -> list[str]:
    return [str(parent) for parent in PurePosixPath(path).parents if str(parent) != "/"]


def _run(command: list[str], folder: Path | None = None) -> tuple[int, str]:
    """Exit status, and all it said."""
    program = shutil.which(command[0], path=f"{Path('/usr/sbin')}:/sbin:/usr/bin:/bin")
    if program is None:
        raise DiskError(f"there is no {command[0]}", hint=f"sudo apt-get install {PROGRAMS[command[0]]}")
    try:
        done = subprocess.run(
            [program, *command[1:]], cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise DiskError(f"{shlex.join(command)}: not done after {_SECONDS} s") from error
    return done.returncode, (done.stdout + done.stderr).decode(errors="replace")


def _short(said: str) -> str:
    """The last line that is no banner and no echoed command."""
    lines = [line.strip() for line in said.splitlines()]
    kept = [line for line in lines if line and not line.startswith(("debugfs", "e2fsck"))]
    return kept[-1][:200] if kept else ""
