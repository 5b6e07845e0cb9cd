"""Steps of a build that are skipped while their inputs are the same."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

KEEP = 3  # results of one stage that stay in the cache, the newest
CACHE_VARIABLE = "OCTOGATE_CACHE"


@dataclass(frozen=True)
class Stage:
    """One step.

    Attributes:
        name: of its result in the cache.
        title: what it does, for the one who waits.
        key: of all its inputs; the same key, the same result.
        make: writes the result to the path it is given.
        target: where the result goes; of a stage without one, into the cache.
    """

    name: str
    title: str
    key: str
    make: Callable[[Path], None]
    target: Path | None = None


def digest(*inputs: Any) -> str:
    """A key of what can be written as JSON; 16 hexadecimal digits."""
    text = json.dumps(inputs, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def digest_files(paths: Iterable[Path], base: Path) -> str:
    """A key of names, modes and contents."""
    found = hashlib.sha256()
    for path in sorted(paths):
        name = f"{path.relative_to(base).as_posix()}\0{path.stat().st_mode & 0o111:o}\0{path.stat().st_size}\0"
        found.update(name.encode() + path.read_bytes())
    return found.hexdigest()[:16]


def cache_folder() -> Path:
    """OCTOGATE_CACHE, or octogate/image in the user's cache folder."""
    if given := os.environ.get(CACHE_VARIABLE):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "octogate/image"


class Runner:
    """Runs stages, and says how long each took.

    Args:
        cache: for results that later builds may use.
        console: who is told.
        refresh: names of stages that are made anew in any case.
    """

    def __init__(self, cache: Path, console: Console, refresh: frozenset[str] = frozenset()) -> None:
        self._cache, self._console, self._refresh = cache, console, refresh
        self.seconds: dict[str, float] = {}  # of the stages that had to be run

    def path(self, stage: Stage) -> Path:
        return stage.target or self._cache / f"{stage.name}-{stage.key}"

    def fresh(self, stage: Stage) -> bool:
        """Its result is there, and from these inputs."""
        path = self.path(stage)
        if stage.name in self._refresh or not path.exists():
            return False
        return stage.target is None or (_stamp(path).is_file() and _stamp(path).read_text() == stage.key)

    def run(self, stage: Stage) -> Path:
        """The stage's result, made if need be. What is half made is never taken for a result."""
        path = self.path(stage)
        if self.fresh(stage):
            os.utime(path)
            self._console.print(f"  [dim]{stage.name:<10} {stage.title}: as before[/dim]")
            return path
        started = time.monotonic()
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(path.name + ".new")
        _remove(unfinished)
        with self._console.status(f"{stage.name}: {stage.title}"):
            stage.make(unfinished)
            _remove(path)
            unfinished.rename(path)
            if stage.target is not None:
                _stamp(path).write_text(stage.key)
        self.seconds[stage.name] = round(time.monotonic() - started, 1)
        self._console.print(f"  {stage.name:<10} {stage.title}: {self.seconds[stage.name]:.1f} s")
        if stage.target is None:
            self._forget(stage)
        return path

    def _forget(self, stage: Stage) -> None:
        """Only the newest results of a stage stay."""
        results = [path for path in self._cache.glob(f"{stage.name}-*") if not path.name.endswith(".new")]
        for path in sorted(results, key=lambda path: path.stat().st_mtime, reverse=True)[KEEP:]:
            _remove(path)


@contextmanager
def scratch(beside: Path) -> Iterator[Path]:
    """An empty folder beside a path, gone afterwards."""
    folder = beside.with_name(beside.name + ".work")
    _remove(folder)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        _remove(folder)


def _stamp(path: Path) -> Path:
    return path.with_name(f".{path.name}.key")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
