"""How a task runs programs: modules of this environment, and what Debian has, which is installed where that is allowed."""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from glob import glob
from pathlib import Path

from invoke.exceptions import Exit

ROOT = Path(__file__).resolve().parents[1]


def given(**options: str | bool) -> list[str]:
    """The options that were given, as a command line."""
    return [part for key, value in options.items() if value for part in option(key, value)]


def option(key: str, value: str | bool) -> list[str]:
    name = "--" + key.replace("_", "-")
    return [name] if value is True else [f"{name}={value}"]


def call(module: str, *args: str) -> int:
    """Run a Python module of this environment and give its exit code."""
    command = [sys.executable, "-m", module, *args]
    return subprocess.run(command, cwd=ROOT, env=environment(), check=False).returncode


def run_python(module: str, *args: str) -> None:
    run([sys.executable, "-m", module, *args])


def run(command: list[str]) -> None:
    """Run a command in the foreground; its exit code becomes ours."""
    code = subprocess.run(command, cwd=ROOT, env=environment(), check=False).returncode
    if code:
        raise Exit(code=code if code > 0 else 128 - code)


def environment() -> dict[str, str]:
    return {**os.environ, "PATH": system_path()}


def system_path() -> str:
    """PATH, and where servers live that are not on everyone's: sbin, and Debian's folders of PostgreSQL, newest first."""
    postgres = sorted(
        Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: path.parent.name.zfill(4), reverse=True
    )
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin", *map(str, postgres)])


def missing_packages(programs: dict[str, str]) -> list[str]:
    missing = [name for name in programs if not (glob(name) if "/" in name else shutil.which(name, path=system_path()))]
    return sorted({programs[name] for name in missing})


def require_programs(programs: dict[str, str]) -> None:
    """Install the packages of missing programs, or name the command that does. Returns only if all are there."""
    packages = missing_packages(programs)
    if not packages:
        return
    print(f"octogate: this needs: {' '.join(packages)}", file=sys.stderr)
    install = ["apt-get", "install", "--yes", "--no-install-recommends", *packages]
    prefix = apt_prefix()
    if prefix is not None:
        print("octogate: installing with apt-get", file=sys.stderr)
        quiet_apt([*prefix, "apt-get", "update", "--quiet"])
        quiet_apt([*prefix, *install])
        packages = missing_packages(programs)
    if packages:
        raise Exit(f"octogate: still missing. Run this, then again: sudo {shlex.join(install)}", code=1)


def apt_prefix() -> list[str] | None:
    """What to put before apt-get to run it without a question; None where that is not allowed."""
    if not shutil.which("apt-get"):
        return None
    if os.geteuid() == 0:
        return ["env", "DEBIAN_FRONTEND=noninteractive"]
    if (
        shutil.which("sudo")
        and subprocess.run(["sudo", "-n", "true"], capture_output=True, check=False).returncode == 0
    ):
        return ["sudo", "-n", "env", "DEBIAN_FRONTEND=noninteractive"]
    return None


def quiet_apt(command: list[str]) -> None:
    """Run apt-get in silence; when it fails show what it said. Whether it helped is seen by looking for the program."""
    with tempfile.TemporaryFile() as log:
        if subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode:
            log.seek(0)
            sys.stderr.write(log.read().decode(errors="replace"))
