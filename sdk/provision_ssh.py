"""Provisioning a running gateway by SSH: what differs is sent, checked there, and put in place by renames.

The programs ssh and scp are run, with the user's own keys, config and known hosts. Secrets go through scp's channel and
stand in a folder of 0700 on the gateway until they are renamed; nothing of them is on a command line.
"""

from __future__ import annotations

import posixpath
import shlex
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from gateway.errors import ConfigError, UplinkError
from sdk.provision import DATA, Entry, Present, changes, differing, digest

TIMEOUT_S = 120.0
MAX_SHOWN = 64 << 10  # bytes of a file that is fetched for a diff
_FIRST_BOOT = "/usr/lib/octogate/first-boot"  # of the image: sets owners, makes what is missing
_SERVICE = "octogate.service"


class Ssh:
    """One host, by the programs ssh and scp.

    Args:
        host: `[user@]host`, as ssh takes it.
        options: for both programs, as in `-oPort=2222`.
    """

    def __init__(self, host: str, options: Sequence[str] = ()) -> None:
        if not host or host.startswith("-"):
            raise ConfigError(f"{host!r} is no host", hint="[USER@]HOST")
        self.host = host
        self.options = ["-oBatchMode=yes", "-oConnectTimeout=15", *options]

    def command(self, *command: str) -> list[str]:
        """What to run here so that `command` runs there: its words stay what they are in the shell there."""
        return ["ssh", *self.options, "--", self.host, shlex.join(command)]

    def run(self, *command: str, data: bytes = b"", ok: tuple[int, ...] = (0,)) -> bytes:
        """Run a program there; what it wrote. UplinkError: not reached, or it ended with another status."""
        done = _run(self.command(*command), data)
        if done.returncode not in ok:
            raise self._error(done, command[0])
        return done.stdout

    def send(self, files: Sequence[Path], folder: str) -> None:
        """Copy files into a folder there."""
        done = _run(["scp", "-q", "-B", *self.options, "--", *map(str, files), f"{self.host}:{folder}/"])
        if done.returncode:
            raise self._error(done, "scp")

    def _error(self, done: subprocess.CompletedProcess[bytes], what: str) -> UplinkError:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"status {done.returncode}"]
        hint = ""
        if "Host key verification failed" in done.stderr.decode(errors="replace"):
            hint = f"log in once by hand and look at its key: ssh {self.host}"
        elif "Permission denied" in lines[-1]:
            hint = "is your key on the gateway? (provision.device --ssh-key)"
        return UplinkError(f"{self.host}: {what}: {lines[-1][:200]}", hint=hint)


def put(
    ssh: Ssh, entries: Mapping[str, Entry], *, root: str = DATA, dry_run: bool = False, restart: bool = True
) -> list[str]:
    """Make the files there as they should be; what differed, for a person. Empty: nothing did, nothing was touched.

    Args:
        root: where the data partition is mounted.
        restart: start the gateway anew with its new files.

    Raises:
        UplinkError: the host is not reached, or refuses. Each file is the old or the new one, never a part.
    """
    present = found(ssh, entries, root)
    told = changes(present, entries)
    wanted = differing(present, entries)
    if wanted and not dry_run:
        _send(ssh, wanted, root, restart)
        still = differing(found(ssh, entries, root), entries)
        if still:
            raise UplinkError(f"{ssh.host}: {root}{next(iter(still))} is not what was sent", hint="is the disk full?")
    return told


def found(ssh: Ssh, entries: Mapping[str, Entry], root: str = DATA) -> dict[str, Present]:
    """What stands there of these files. Of what is no secret and is another text, the text, too."""
    script = 'for path do [ -f "$path" ] && stat -c %a -- "$path" && sha256sum <"$path" || echo none; done'
    said = ssh.run("sh", "-c", script, "sh", *(root + path for path in entries)).decode(errors="replace").split("\n")
    present: dict[str, Present] = {}
    lines = iter(said)
    for path, entry in entries.items():
        if (mode := next(lines, "none").strip()) == "none":
            continue
        old = Present(next(lines, "")[:64], int(mode, 8))
        if not entry.secret and old.sha256 != digest(entry.data) and len(entry.data) <= MAX_SHOWN:
            data = ssh.run("head", "-c", str(MAX_SHOWN), "--", root + path)
            old = Present(old.sha256, old.mode, data) if digest(data) == old.sha256 else old
        present[path] = old
    return present


def _send(ssh: Ssh, entries: Mapping[str, Entry], root: str, restart: bool) -> None:
    """All files are there and on disk before the first takes its place."""
    new = ssh.run("mktemp", "-d", posixpath.join(root, ".provision.XXXXXXXX")).decode().strip()
    if posixpath.dirname(new) != root or not posixpath.basename(new).startswith(".provision."):
        raise UplinkError(f"{ssh.host}: mktemp said {new[:80]!r}")
    try:
        with tempfile.TemporaryDirectory(prefix="octogate-") as name:
            here: list[Path] = []
            for i, entry in enumerate(entries.values()):
                path = Path(name, f"f{i}")
                path.touch(mode=0o600)
                path.write_bytes(entry.data)
                here.append(path)
            ssh.send(here, new)
        ssh.run("sh", "-s", data=_script(entries, root, new).encode())
    finally:
        ssh.run("rm", "-rf", "--", new)
    if restart:
        # a host that is no gateway, or has not booted yet, has neither; what was put there stands all the same
        script = (
            f"[ ! -x {_FIRST_BOOT} ] || {_FIRST_BOOT}; [ ! -d /run/systemd/system ] || systemctl try-restart {_SERVICE}"
        )
        ssh.run("sh", "-c", script)


def _script(entries: Mapping[str, Entry], root: str, new: str) -> str:
    """For the shell there. A rename is all or nothing; the owner stays where there was a file."""
    lines = ["set -eu"]
    folders = sorted({posixpath.dirname(root + path) for path in entries})
    lines += [shlex.join(["mkdir", "-p", "--", folder]) for folder in folders]
    for i, (path, entry) in enumerate(entries.items()):
        file, target = f"{new}/f{i}", root + path
        lines.append(shlex.join(["chmod", f"{entry.mode:o}", "--", file]))
        lines.append(f"[ ! -e {shlex.quote(target)} ] || {shlex.join(['chown', f'--reference={target}', '--', file])}")
    lines.append("sync")
    lines += [shlex.join(["mv", "-fT", "--", f"{new}/f{i}", root + path]) for i, path in enumerate(entries)]
    return "\n".join([*lines, "sync"]) + "\n"


def _run(command: list[str], data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(command, input=data, capture_output=True, timeout=TIMEOUT_S, check=False)
    except FileNotFoundError as error:
        raise ConfigError(f"there is no {command[0]}", hint="sudo apt-get install openssh-client") from error
    except subprocess.TimeoutExpired as error:
        raise UplinkError(
            f"{command[0]}: not done after {TIMEOUT_S:.0f} s", hint="is the gateway reachable?"
        ) from error
