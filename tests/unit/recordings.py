"""Recordings made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gateway.recording import MAGIC, Meta, Record, Recorded, meta_record, pack_block

BEGIN_NS = 5 * 10**12
WALL_NS = 1_800_000_000 * 10**9


def meta(*sources: tuple[str, str]) -> Meta:
    recorded = tuple(Recorded(*source) for source in sources)
    return Meta("0", "floor", "boot-of-the-floor", BEGIN_NS, WALL_NS, 10**6, recorded)


def at(seconds: float, kind: int, body: bytes = b"", source: int = 0) -> Record:
    return Record(kind, source, BEGIN_NS + int(seconds * 1e9), body)


def write(path: Path, about: Meta, *blocks: Sequence[Record]) -> Path:
    path.write_bytes(MAGIC + pack_block([meta_record(about)]) + b"".join(map(pack_block, blocks)))
    return path
