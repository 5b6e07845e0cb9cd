"""An update by SSH: copied with resume, installed by RAUC on the gateway, and waited for until it is healthy, or went back."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gateway.errors import UplinkError
from sdk.provision_ssh import Ssh

FOLDER = "/data/rauc/incoming"  # root's; on the data partition, as a bundle is larger than the memory of a small board
CHUNK = 256 << 10
ATTEMPTS = 5  # of a transfer that breaks off; what has arrived stays
POLL_S = 3.0
_PERCENT = re.compile(r"\s*(\d{1,3})%\s+(.*)")

Progress = Callable[[str, int, int], None]


class Unheard(UplinkError):
    """It was installed, and the gateway did not say in time how it went."""


class RolledBack(UplinkError):
    """The gateway runs what it ran before."""


class Gateway:
    """A gateway that takes updates over SSH, as root."""

    def __init__(self, ssh: Ssh, folder: str = FOLDER, poll_s: float = POLL_S) -> None:
        self._ssh = ssh
        self._folder = folder
        self._poll_s = poll_s

    def send(self, bundle: Path, progress: Progress = lambda *_: None) -> str:
        """Copy the bundle there, from where an earlier attempt ended; its path there.

        Raises:
            UplinkError: not reached, or the transfer broke off too often. What has arrived is kept.
        """
        with bundle.open("rb") as file:
            sha256, size = hashlib.file_digest(file, "sha256").hexdigest(), bundle.stat().st_size
        whole, part = f"{self._folder}/{sha256}.raucb", f"{self._folder}/{sha256}.part"
        # other bundles are of earlier updates: the disk is for readings
        clean = 'mkdir -p -m 0700 "$1"; for f in "$1"/*; do case "$f" in "$2"|"$3") ;; *) rm -f -- "$f" ;; esac; done'
        self._ssh.run("sh", "-c", clean, "sh", self._folder, whole, part)
        for attempt in range(ATTEMPTS):
            have = self._have(bundle, whole, part, size)
            if have == size:
                break
            broken = self._stream(bundle, part, have, size, progress)
            if broken and attempt == ATTEMPTS - 1:
                raise UplinkError(f"{self._ssh.host}: {broken}", hint="start it again: it goes on where it ended")
        else:
            have = self._have(bundle, whole, part, size)
        if have != size:
            raise UplinkError(f"{self._ssh.host}: {have} of {size} bytes arrived", hint="is its disk full?")
        self._ssh.run("sh", "-c", '[ -e "$2" ] || { sync "$1" && mv -T -- "$1" "$2"; }', "sh", part, whole)
        progress("sending", size, size)
        return whole

    def _have(self, bundle: Path, whole: str, part: str, size: int) -> int:
        """How much of this very file is there. What is there and is something else is removed."""
        script = 'for f do [ -f "$f" ] && stat -c %s -- "$f" && sha256sum <"$f" && exit 0; done; echo 0'
        said = self._ssh.run("sh", "-c", script, "sh", whole, part).decode(errors="replace").split()
        have = int(said[0]) if said and said[0].isdigit() else 0
        if not have:
            return 0
        if have > size or said[1] != _digest_of(bundle, have):
            self._ssh.run("rm", "-f", "--", whole, part)
            return 0
        return have

    def _stream(self, bundle: Path, part: str, offset: int, size: int, progress: Progress) -> str:
        """Append the rest. What broke it off, or an empty string."""
        command = self._ssh.command("sh", "-c", 'cat >>"$1"', "sh", part)
        with (
            bundle.open("rb") as file,
            subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process,
        ):
            assert process.stdin is not None and process.stderr is not None
            file.seek(offset)
            try:
                while data := file.read(CHUNK):
                    process.stdin.write(data)
                    progress("sending", file.tell(), size)
                process.stdin.close()
            except BrokenPipeError:
                pass  # its status tells
            said = process.stderr.read().decode(errors="replace").strip()
        return (said.splitlines() or [f"ssh ended with {process.returncode}"])[-1][:200] if process.returncode else ""

    def install(self, path: str, progress: Progress = lambda *_: None) -> str:
        """Have RAUC install it into the slot that does not run; the boot id of the machine that did.

        Raises:
            UplinkError: RAUC refused it (wrong signature, another board), with its words.
        """
        booted = self._boot_id()
        lines: list[str] = []
        command = self._ssh.command("rauc", "install", path)
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                lines = [*lines[-20:], line.strip()]
                if step := _PERCENT.match(line):
                    progress("installing", min(int(step[1]), 100), 100)
        if process.returncode:
            told = [line for line in lines if line and not _PERCENT.match(line)] or [f"status {process.returncode}"]
            raise UplinkError(f"{self._ssh.host}: rauc install: {told[-1][:300]}", hint="it runs what it ran before")
        self._ssh.run("rm", "-f", "--", path)
        return booted

    def restart(self, booted: str, wait_s: float) -> str:
        """Start the machine anew, and wait until what was installed is marked good; the slot's name.

        Raises:
            RolledBack: it runs the other slot again.
            Unheard: nothing of it was heard in `wait_s` seconds.
        """
        before = self._slots()
        self._ssh.run("systemctl", "--no-block", "reboot", ok=(0, 255))  # 255: the connection was faster to end
        end = time.monotonic() + wait_s
        why = "it does not answer"
        while time.monotonic() < end:
            time.sleep(self._poll_s)
            try:
                if self._boot_id() == booted:
                    why = "it has not gone down yet"
                    continue
                slots = self._slots()
            except UplinkError as error:
                why = error.what
                continue
            if slots["booted"] == before["booted"]:
                raise RolledBack(
                    f"{self._ssh.host}: runs slot {slots['booted']} again: the update did not become healthy",
                    hint="its console and journal say why; the gateway goes on with what it had",
                )
            if _is_good(slots):
                return str(slots["booted"])
            why = f"slot {slots['booted']} runs and is not marked good yet"
        raise Unheard(f"{self._ssh.host}: not healthy after {wait_s:.0f} s: {why}", hint="it goes back by itself")

    def _boot_id(self) -> str:
        return self._ssh.run("cat", "/proc/sys/kernel/random/boot_id").decode().strip()

    def _slots(self) -> dict[str, Any]:
        said = self._ssh.run("rauc", "status", "--output-format=json").decode(errors="replace")
        try:
            found = json.loads(said[max(said.find("{"), 0) :])
        except ValueError as error:
            raise UplinkError(f"{self._ssh.host}: rauc status says no JSON", hint="is it Octogate's image?") from error
        if not isinstance(found, dict) or not isinstance(found.get("booted"), str):
            raise UplinkError(f"{self._ssh.host}: rauc status does not say which slot runs")
        return found


def _is_good(status: dict[str, Any]) -> bool:
    """Whether the slot that runs is marked good."""
    slots = status.get("slots")
    for entry in slots if isinstance(slots, list) else []:
        for slot in entry.values() if isinstance(entry, dict) else []:
            if isinstance(slot, dict) and slot.get("state") == "booted":
                return slot.get("boot_status") == "good"
    return False


def _digest_of(path: Path, size: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while size > 0 and (data := file.read(min(size, 1 << 20))):
            digest.update(data)
            size -= len(data)
    return digest.hexdigest()
