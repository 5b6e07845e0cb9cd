"""The gate of an update: a slot is good when its gateway has been healthy for HEALTHY_S. Standard library only.

Healthy: the control socket answers `status`, the same process answers all the time, and no model has failed. A
source that is missing or a broker that is away are no faults of the slot.

A slot whose build was good once is good again as soon as it has come up to here, so that a config that is broken or a
sensor that is gone never sends a gateway back to older software. A build on its first boots that does not become
healthy within PATIENCE_S restarts the machine; the boot counter then chooses the other slot.
"""

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SOCKET = Path("/data/spool/control.sock")
GOOD = Path("/data/rauc/good")  # one empty file for each build that was healthy once
SETTINGS = Path("/usr/lib/octogate/health.json")
ANSWER_S = 10.0
MAX_ANSWER = 16 << 20


def main() -> int:
    """0: good. Otherwise the machine has been told to restart."""
    settings = json.loads(SETTINGS.read_text())
    build = build_id(Path("/etc/os-release").read_text())
    if (GOOD / build).exists():
        return mark_good("this build was good before")
    if wait(settings["healthy_s"], settings["patience_s"]):
        GOOD.mkdir(parents=True, exist_ok=True)
        (GOOD / build).touch()
        os.sync()
        return mark_good(f"healthy for {settings['healthy_s']} s")
    print(f"octogate: not healthy within {settings['patience_s']} s: restarting; the boot counter goes on", flush=True)
    subprocess.run(["systemctl", "reboot", "--no-block"], check=True)
    return 1


def build_id(os_release: str) -> str:
    found = re.search(r'^IMAGE_VERSION="?([A-Za-z0-9._+-]{1,64})"?$', os_release, re.MULTILINE)
    return found[1] if found else "unknown"


def wait(healthy_s: float, patience_s: float) -> bool:
    """True once the gateway has been healthy for so long without a break."""
    end = time.monotonic() + patience_s
    since, pid, said = 0.0, None, ""
    while (now := time.monotonic()) < end:
        why, seen = state()
        if why != said:
            print(f"octogate: {why or 'healthy'}", flush=True)
            said = why
        if why:
            pid = None
        elif seen != pid:
            since, pid = now, seen
        elif now - since >= healthy_s:
            return True
        time.sleep(2)
    return False


def state() -> tuple[str, int | None]:
    """What is wrong, empty if nothing, and the process that answered."""
    try:
        status = ask()
        models = [model["name"] for model in status["models"] if model["state"] == "failed"]
        pid = int(status["process"]["pid"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"the gateway does not answer: {error}", None
    return (f"models failed: {', '.join(models)}" if models else ""), pid


def ask() -> dict[str, Any]:
    """The answer to `status`; raises OSError or ValueError."""
    end = time.monotonic() + ANSWER_S
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
        stream.settimeout(ANSWER_S)
        stream.connect(str(SOCKET))
        stream.sendall(b'{"id":1,"op":"status"}\n')
        answer = bytearray()
        while not answer.endswith(b"\n"):
            part = stream.recv(65536)
            if not part or len(answer) > MAX_ANSWER or time.monotonic() > end:
                raise ValueError("no whole answer")
            answer += part
    parsed = json.loads(answer)
    if not isinstance(parsed, dict) or not parsed.get("ok"):
        raise ValueError("it refused to tell its status")
    result: dict[str, Any] = parsed["result"]
    return result


def mark_good(why: str) -> int:
    print(f"octogate: good: {why}", flush=True)
    return subprocess.run(["rauc", "status", "mark-good"], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
