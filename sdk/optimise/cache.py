"""Results of slow steps, kept by what they were made from: the inputs' digests, the step's version, seed, packages."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np

from gateway.infer.steps import Array
from sdk.registry import ROOT, write_atomic

CACHE = ROOT / "build" / "optimise"
SCHEMA = 1  # of this cache: a change of how results are kept is another key

T = TypeVar("T")


def digest(*parts: bytes | str | Array | None) -> str:
    """sha256, hex, of parts, their kinds and lengths: no two lists of parts read the same."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            raw = np.ascontiguousarray(part)
            head, data = f"array {raw.dtype.str} {raw.shape}", raw.tobytes()
        elif isinstance(part, str):
            head, data = "text", part.encode()
        else:
            head, data = ("none", b"") if part is None else ("bytes", part)
        total.update(f"{head} {len(data)}\n".encode())
        total.update(data)
    return total.hexdigest()


def sources(*modules: object) -> str:
    """Digest of the text of modules: a step changes when its code does."""
    paths = [Path(str(getattr(module, "__file__", ""))) for module in modules]
    return digest(*(path.read_bytes() for path in paths))


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Installed versions by name; an empty one is not installed."""
    found = {}
    for name in sorted(packages):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = ""
    return found


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """All that a step's result depends on.

    Attributes:
        step: its name; `version` changes when the step would give other bytes for the same inputs.
        inputs: digests.
        settings: of the step, as text.
    """

    step: str
    version: int
    inputs: tuple[str, ...]
    seed: int
    settings: dict[str, str]
    packages: dict[str, str]
    schema: int = SCHEMA

    @property
    def name(self) -> str:
        return hashlib.sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()


def _unheard(step: str, was_kept: bool) -> None:
    pass


@dataclass(frozen=True)
class Steps:
    """Runs steps, or finds what they gave before.

    Attributes:
        folder: where results are kept, a file each.
        seed: of all steps.
        tell: hears of each step: its name, and whether its result was there already.
        fresh: compute all anew, and keep the results.
    """

    folder: Path = CACHE
    seed: int = 0
    tell: Callable[[str, bool], None] = field(default=_unheard)
    fresh: bool = False

    def run(
        self,
        step: str,
        work: Callable[[], T],
        kind: type[T],
        *,
        version: int = 1,
        inputs: Sequence[str] = (),
        settings: Mapping[str, object] | None = None,
        packages: Sequence[str] = (),
    ) -> T:
        """What `work` gives, or gave for the same key.

        Args:
            kind: its type, of what MessagePack can hold; a kept result that does not fit it is made anew.
        """
        key = Key(
            step=step,
            version=version,
            inputs=tuple(inputs),
            seed=self.seed,
            settings={name: str(value) for name, value in (settings or {}).items()},
            packages=versions(packages),
        )
        path = self.folder / f"{step.replace(' ', '-')}-{key.name[:32]}.bin"
        kept = None if self.fresh else _kept(path, kind)
        self.tell(step, kept is not None)
        if kept is not None:
            return kept
        made = work()
        write_atomic(path, msgspec.msgpack.encode(made))
        return made


def _kept(path: Path, kind: type[T]) -> T | None:
    try:
        return msgspec.msgpack.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError):
        return None
