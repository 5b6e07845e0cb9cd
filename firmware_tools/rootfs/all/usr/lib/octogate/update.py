"""Installs an update that was put on this machine: by the gateway (over MQTT) or on a USB stick. Standard library only.

    update.py received                   /data/spool/updates/install.raucb, which the gateway has received
    update.py usb /dev/sda1              octogate/update.raucb on that partition

RAUC believes a bundle by its signature only, so it matters not where it comes from. What is in one of the two slots
already is not installed again: not after the restart with the stick still in, and not after the new one was rolled back.
The outcome stands in /run/octogate-update/update.json, in a folder of root's, where the gateway reads it.
"""

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

RECEIVED = Path("/data/spool/updates/install.raucb")
ON_STICK = "octogate/update.raucb"
MOUNT = Path("/run/octogate-stick")
OUTCOME = Path("/run/octogate-update/update.json")
LOCK = Path("/run/octogate-update.lock")
MAX_JSON = 1 << 20
DEPTH = 20


class Refused(Exception):
    """Why nothing is installed."""


def main(words: list[str]) -> int:
    """0 when there is nothing to do, or the machine starts anew with the update; 1 when it was refused."""
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            if words == ["received"]:
                said = received()
            elif len(words) == 2 and words[0] == "usb" and words[1].startswith("/dev/"):
                said = from_stick(words[1])
            else:
                print(__doc__, file=sys.stderr)
                return 2
        except (Refused, OSError, ValueError, subprocess.SubprocessError) as error:
            tell("refused", str(error))
            return 1
        tell(*said)
        if said[0] == "installed":
            subprocess.run(["systemctl", "--no-block", "reboot"], check=True)
    return 0


def received() -> tuple[str, str]:
    try:
        return install(RECEIVED)
    finally:
        RECEIVED.unlink(missing_ok=True)  # asked once, tried once


def from_stick(device: str) -> tuple[str, str]:
    MOUNT.mkdir(mode=0o700, exist_ok=True)
    subprocess.run(["mount", "-o", "ro,nosuid,nodev,noexec", "--", device, str(MOUNT)], check=True)
    try:
        bundle = MOUNT / ON_STICK
        return install(bundle) if bundle.is_file() else ("nothing", f"no {ON_STICK} on {device}")
    finally:
        subprocess.run(["umount", "--lazy", "--", str(MOUNT)], check=False)


def install(bundle: Path) -> tuple[str, str]:
    """Into the slot that does not run, unless it is in one of them. What was done, and a word about it."""
    if bundle.is_symlink() or not bundle.is_file():
        raise Refused(f"{bundle} is no file")
    info = asked("rauc", "info", "--output-format=json", str(bundle))
    wanted = checksums(info)
    if not wanted:
        raise Refused(f"{bundle} names no image")
    if wanted <= checksums(asked("rauc", "status", "--detailed", "--output-format=json")):
        return "nothing", f"version {version(info)} is in a slot already"
    done = subprocess.run(["rauc", "install", str(bundle)], capture_output=True, text=True, errors="replace")
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise Refused(f"rauc: {lines[-1][:300] if lines else done.returncode}")
    return "installed", f"version {version(info)}; the machine starts anew"


def asked(*command: str) -> object:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise Refused(f"{command[0]} {command[1]}: {lines[-1][:300] if lines else done.returncode}")
    # before the JSON some versions print remarks
    start = done.stdout.find("{")
    if start < 0 or len(done.stdout) > MAX_JSON:
        raise Refused(f"{command[0]} {command[1]} says no JSON")
    return json.loads(done.stdout[start:])


def checksums(found: object, depth: int = DEPTH) -> set[str]:
    """The sha256 of every image that RAUC names, in a bundle or in the slots, whatever the shape of its version."""
    if not depth:
        return set()
    if isinstance(found, list):
        return set().union(*(checksums(item, depth - 1) for item in found))
    if not isinstance(found, dict):
        return set()
    there = set()
    for key, value in found.items():
        if key in ("checksum", "sha256") and isinstance(value, str) and len(value) == 64:
            there.add(value.lower())
        else:
            there |= checksums(value, depth - 1)
    return there


def version(info: object) -> str:
    return str(info.get("version", "?"))[:60] if isinstance(info, dict) else "?"


def tell(state: str, message: str) -> None:
    print(f"octogate: update {state}: {message}", flush=True)
    new = OUTCOME.with_name("update.json.new")
    try:
        OUTCOME.parent.mkdir(mode=0o755, exist_ok=True)
        new.write_text(json.dumps({"state": state, "message": message}))
        os.chmod(new, 0o644)
        new.replace(OUTCOME)
    except OSError as error:
        print(f"octogate: {OUTCOME}: {error}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
