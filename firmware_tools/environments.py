"""Environments beside .venv: .venv-train, .venv-tensorflow, .venv-tflite, each made from its lock when it is needed.

These sets do not fit into .venv: tflite-runtime has no wheels for later Pythons and needs NumPy 1, PyTorch and
TensorFlow with their converters are gigabytes and tied to versions.
"""

from __future__ import annotations

import fcntl
import hashlib
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from invoke.exceptions import Exit

from firmware_tools.programs import ROOT

NOT_RUN = 77  # exit code of what cannot run here, as in other test harnesses
# the lock -> free disk that pip needs for it, downloads and what is installed, in GB
NEEDS_GB = {"train": 4.5, "tensorflow": 3.5, "tflite": 1.0}
PINNED = re.compile(r"^[a-z0-9][a-z0-9._-]*==", re.MULTILINE)
# what pip says of each: from an index, or from a folder of files
PACKAGE = re.compile(r"(?:Collecting |Processing (?:\S*/)?)([A-Za-z0-9._]+(?:-(?!\d)[A-Za-z0-9._]+)*)")
EVERY_S = 15.0  # between two lines where there is no terminal
SAID = 15  # lines of pip's that are shown when it fails

Tell = Callable[[str, int], None]


def own_python(name: str, root: Path = ROOT) -> Path:
    """The Python of .venv-NAME, made from requirements/NAME.txt when it is not there or not from this file.

    Raises:
        Exit: 77 without a Python 3.11, 1 when it cannot be made; the message says what to do.
    """
    base = python_311()
    if base is None:
        raise Exit(
            f"octogate: NOT RUN: requirements/{name}.txt is for Python 3.11 with venv; put a python3.11 on PATH",
            code=NOT_RUN,
        )
    folder, lock = root / f".venv-{name}", root / f"requirements/{name}.txt"
    python, stamp = folder / "bin/python", folder / "octogate.stamp"
    made_from = f"{root}\n{hashlib.sha256(lock.read_bytes()).hexdigest()}\n"
    if _fits(stamp, made_from):
        return python
    with _locked(root):
        if not _fits(stamp, made_from):  # another ./inv may have made it meanwhile
            _make(name, base, folder, lock)
            stamp.write_text(made_from)
    return python


def python_311() -> str | None:
    """A Python 3.11 that can make a venv; one on PATH may be a wrapper that only complains."""
    base = sys.executable if sys.version_info[:2] == (3, 11) else shutil.which("python3.11")
    works = (
        base and not subprocess.run([base, "-c", "import ensurepip, venv"], capture_output=True, check=False).returncode
    )
    return base if works else None


def _fits(stamp: Path, made_from: str) -> bool:
    return stamp.exists() and stamp.read_text() == made_from


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """One ./inv at a time: the kernel frees the lock with the process."""
    with (root / ".inv.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("octogate: another ./inv is making an environment; waiting for it", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make(name: str, base: str, folder: Path, lock: Path) -> None:
    began = time.monotonic()
    shutil.rmtree(folder, ignore_errors=True)
    need, free = NEEDS_GB.get(name, 1.0), shutil.disk_usage(folder.parent).free / 1e9
    if free < need:
        raise Exit(f"octogate: {folder.name} needs {need:g} GB of disk, {free:.1f} GB are free: make room", code=1)
    count = len(PINNED.findall(lock.read_text(encoding="utf-8")))
    print(f"octogate: making {folder.name} from requirements/{lock.name}, some minutes, once", file=sys.stderr)
    with _progress(f"{folder.name}: packages", count) as tell:
        made = subprocess.run([base, "-m", "venv", "--clear", str(folder)], capture_output=True, text=True, check=False)
        if made.returncode:
            raise Exit(f"octogate: cannot make {folder.name}: {made.stderr.strip() or made.stdout.strip()}", code=1)
        said = _installed(folder / "bin/python", lock, tell)
    if said is not None:
        print("\n".join(said[-SAID:]), file=sys.stderr)
        raise Exit(
            f"octogate: cannot install requirements/{lock.name}; what pip said last is above. {_hint(said, lock)}"
            " Then start it again.",
            code=1,
        )
    print(f"octogate: {folder.name} is ready after {time.monotonic() - began:.0f} s", file=sys.stderr)


def _installed(python: Path, lock: Path, tell: Tell) -> list[str] | None:
    """Nothing when all went well, else what pip said. Its warnings about indexes that lack a package are no news."""
    command = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar=off",
               "--require-hashes", "-r", str(lock)]  # fmt: skip
    said: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as pip:
        assert pip.stdout is not None
        done = 0
        for line in pip.stdout:
            if line.startswith("WARNING:"):
                continue
            said.append(line.rstrip())
            if found := PACKAGE.match(line):
                done += 1
                tell(found[1], done)
            elif line.startswith("Installing collected packages"):
                tell("installing, a minute or two", done)
    return said if pip.returncode else None


def _hint(said: list[str], lock: Path) -> str:
    text = "\n".join(said)
    if "torch==" in text and "+cpu" in text:
        return (
            "PyTorch's CPU build is not in the package index that pip uses: name PyTorch's own index of CPU builds in "
            f"PIP_EXTRA_INDEX_URL, or put the wheel into a folder and name that in PIP_FIND_LINKS (head of {lock.name})."
        )
    if "No space left" in text:
        return "The disk is full: make room."
    return "Is the package index reachable, and is this Linux on x86-64?"


@contextmanager
def _progress(title: str, total: int) -> Iterator[Tell]:
    """A bar on a terminal; elsewhere a line now and then."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        last = [time.monotonic()]

        def line(what: str, done: int) -> None:
            if time.monotonic() - last[0] >= EVERY_S or what.startswith("installing"):
                last[0] = time.monotonic()
                print(f"octogate: {title} {done}/{total}: {what}", file=sys.stderr, flush=True)

        yield line
        return
    columns = (TextColumn("octogate: {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TextColumn("{task.fields[what]}"))  # fmt: skip
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task(title, total=total, what="")
        yield lambda what, done: progress.update(bar, completed=done, what=what)
