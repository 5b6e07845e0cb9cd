"""A PostgreSQL of a test's own: a cluster in a temporary folder, on a unix socket, run by a user that is not root."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

START_S = 30.0


def program(name: str) -> str:
    """A program of the newest PostgreSQL here; Debian keeps them away from PATH."""
    if found := shutil.which(name):
        return found
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: int(p.parent.name), reverse=True)
    for folder in folders:
        if (folder / name).exists():
            return str(folder / name)
    raise AssertionError(f"{name} is missing: ./inv test --integration installs or names its package")


class Postgres:
    """Started, stopped and killed as often as wanted.

    Attributes:
        dsn: for asyncpg and libpq.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.dsn = f"postgresql://octogate@/postgres?host={folder}"
        self._data = folder / "data"
        self._user: str | None = None
        if os.geteuid() == 0:  # PostgreSQL refuses to be run by root
            self._user = next(user.pw_name for user in pwd.getpwall() if user.pw_name in ("postgres", "nobody"))
            os.chown(folder, pwd.getpwnam(self._user).pw_uid, -1)
        self._process: subprocess.Popen[bytes] | None = None
        how = ("-U", "octogate", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync")
        assert self._start("initdb", *how).wait() == 0, self._said()

    def _start(self, name: str, *options: str) -> subprocess.Popen[bytes]:
        with (self.folder / "log").open("ab") as log:
            command = [program(name), "-D", str(self._data), *options]
            return subprocess.Popen(command, user=self._user, cwd=self.folder, stdout=log, stderr=log)

    def _said(self) -> str:
        return (self.folder / "log").read_text(errors="replace")[-2000:]

    def start(self) -> None:
        """Returns when it takes connections."""
        settings = {"unix_socket_directories": str(self.folder), "listen_addresses": "", "max_connections": "40"}
        self._process = self._start("postgres", *(part for k, v in settings.items() for part in ("-c", f"{k}={v}")))
        ready = [program("pg_isready"), "-q", "-h", str(self.folder)]
        end = time.monotonic() + START_S
        while subprocess.run(ready, check=False).returncode:
            assert self._process.poll() is None and time.monotonic() < end, self._said()
            time.sleep(0.02)

    def kill(self) -> None:
        """As a power cut would: no checkpoint, no goodbye; its children end by themselves."""
        self._end(signal.SIGQUIT)

    def stop(self) -> None:
        self._end(signal.SIGINT)

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait()
            self._process = None


@contextmanager
def postgres() -> Iterator[Postgres]:
    """A started one; its folder is gone afterwards."""
    # not pytest's own folder: nobody but this user may enter that
    with tempfile.TemporaryDirectory(prefix="octogate-postgres-") as folder:
        made = Postgres(Path(folder))
        made.start()
        try:
            yield made
        finally:
            made.stop()
