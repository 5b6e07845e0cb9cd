"""Programs of the developer's machine: run, and named with the command that installs them when they are missing."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from gateway.errors import OctogateError

MAX_SAID = 2000  # of what a failing program said, its end


class BuildError(OctogateError):
    """The image cannot be built."""


def run(
    *command: str | Path,
    env: Mapping[str, str] | None = None,
    stdin: str | bytes = b"",
    cwd: Path | None = None,
    accept: tuple[int, ...] = (0,),
) -> bytes:
    """Run a program to its end and give what it wrote; `accept` has the exit codes that are no failure.

    Raises BuildError: it is not there, or failed; with the end of what it said.
    """
    words = [str(word) for word in command]
    given = stdin.encode() if isinstance(stdin, str) else stdin
    settings = {**os.environ, "LC_ALL": "C", "PATH": search_path(), **(env or {})}
    try:
        done = subprocess.run(words, input=given, capture_output=True, env=settings, cwd=cwd, check=False)
    except OSError as error:
        raise BuildError(
            f"{words[0]}: {error.strerror}", hint="./inv image.build names the package it is in"
        ) from error
    if done.returncode not in accept:
        said = (done.stderr or done.stdout).decode(errors="replace").strip()[-MAX_SAID:]
        raise BuildError(f"{' '.join(words)[:300]}: exit code {done.returncode}: {said}")
    return done.stdout


def search_path() -> str:
    """PATH with the folders of system programs, which are not on everyone's."""
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"])


def missing(programs: Mapping[str, str]) -> list[str]:
    """The Debian packages of `programs` (program or path -> package) that are not here."""
    absent = [
        name
        for name in programs
        if not (Path(name).exists() if name.startswith("/") else shutil.which(name, path=search_path()))
    ]
    return sorted({programs[name] for name in absent})
