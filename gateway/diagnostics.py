"""What a person far away needs to find a fault: one bounded .tar.gz, with what is secret taken out."""

from __future__ import annotations

import io
import logging
import os
import platform
import re
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from gateway import __version__
from gateway.contract import GatewayStatus

MAX_MEMBER = 1 << 20
LOG_LINES = 400
MAX_LINE = 2000
HIDDEN = "***"
_NAMED = r"""["']?[a-z0-9_.-]*(?:password|passphrase|secret|token|credential)["']?\s*[=:]\s*"""
_VALUE = r'''"""[\s\S]*?"""|"(?:\\.|[^"\\\n])*"|'[^'\n]*'|[^\s,}]+'''
_SECRET = re.compile(rf"(?mi)((?:^|[\s{{,]){_NAMED})(?:{_VALUE})")
_IN_URL = re.compile(r"(://)[^\s/@\"']+@")
_PACKAGES = ("msgspec", "zstandard", "pyserial", "paho-mqtt", "aiohttp", "cryptography", "onnxruntime",
             "ai-edge-litert", "tflite-runtime", "openvino", "numpy", "opencv-python-headless")  # fmt: skip


def redacted(text: str) -> str:
    """A text, TOML or log, without the values of keys that name a secret, and without passwords in addresses."""
    return _IN_URL.sub(rf"\1{HIDDEN}@", _SECRET.sub(rf'\1"{HIDDEN}"', text))


class LogTail(logging.Handler):
    """Keeps the newest lines of the log, each cut to a length."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
        self.lines: deque[str] = deque(maxlen=LOG_LINES)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record)[:MAX_LINE])


def pack(status: GatewayStatus, config: str, log: Sequence[str], more: Mapping[str, object], disk: Path) -> bytes:
    """The bundle: status.json, events.jsonl, config.toml, log.txt, machine.json and one JSON file for each of `more`.

    Blocks (reads a few files); use a thread.
    """
    import tarfile  # only here: the daemon's memory is small

    encode = msgspec.json.Encoder().encode
    members = {
        "status.json": msgspec.json.format(encode(status)),
        "events.jsonl": b"\n".join(map(encode, status.events)),
        "config.toml": redacted(config).encode(),
        "log.txt": redacted("\n".join(log)).encode(),
        "machine.json": msgspec.json.format(encode(_machine(disk))),
        **{f"{name}.json": msgspec.json.format(encode(value)) for name, value in more.items()},
    }
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=6) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(f"{status.gateway}/{name}")
            info.size = len(data[:MAX_MEMBER])
            info.mtime = int(time.time())
            tar.addfile(info, io.BytesIO(data[:MAX_MEMBER]))
    return packed.getvalue()


def _machine(disk: Path) -> dict[str, object]:
    import importlib.metadata

    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    room = os.statvfs(disk)
    return {
        "octogate": __version__,
        "python": sys.version,
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "memory": _lines("/proc/meminfo", 5),
        "load": _lines("/proc/loadavg", 1),
        "disk": {"free_bytes": room.f_bavail * room.f_frsize, "size_bytes": room.f_blocks * room.f_frsize},
        "packages": versions,
    }


def _lines(path: str, n: int) -> list[str]:
    try:
        with open(path) as file:
            return [next(file, "").strip() for _ in range(n)]
    except OSError:
        return []
