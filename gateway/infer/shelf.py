"""The bundles that a model was given while the gateway ran, and which of them it runs: `data_dir/models/<name>/`.

Every bundle is a file named by its sha256, never changed; `state.json` says what holds. Each step is one rename after
an fsync, so that a power cut between any two leaves the old state or the new one. The config's own bundle stays where
it is and is the base: when the config names another, the config wins.

Light to import, and calls block.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from gateway import durable
from gateway.errors import ModelError, StoreError
from gateway.infer.bundle import MAX_BYTES

MAX_STATE = 64 << 10
MAX_STARTS = 3  # of the gateway during one swap: a crash loop, or power that goes again and again
MIN_FREE = 64 << 20  # of the disk, left to the spool
_BLOCK = 1 << 20

Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Maybe = Annotated[str, Meta(pattern=r"^([0-9a-f]{64})?\Z")]
Seconds = Annotated[float, Meta(ge=0, le=604_800)]


class Step(StrEnum):
    """How far a swap is."""

    RECEIVED = "received"  # the whole file is on the shelf
    VERIFIED = "verified"  # signed, unchanged, and fit for the pipelines
    TESTED = "tested"  # a worker has loaded it and reproduced its golden samples
    SHADOW = "shadow"  # computes beside the one that serves
    TRIAL = "trial"  # serves, and may be rolled back
    SETTLED = "settled"  # nothing is under way


class Wish(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a swap is to go.

    Attributes:
        shadow_s: how long it computes beside the one that serves; 0 leaves that out.
        every: of so many inputs one goes to the shadow.
        trial_s: how long it may be rolled back by itself.
        slower: so many times the old median latency is too slow.
    """

    shadow_s: Seconds = 0.0
    every: Annotated[int, Meta(ge=1, le=1_000_000)] = 1
    trial_s: Seconds = 600.0
    slower: Annotated[float, Meta(ge=1, le=1e6)] = 10.0


class Copy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A bundle.

    Attributes:
        file: sha256 of the file on the shelf; empty for the config's own bundle.
        digest: of its members, as inferences carry it; empty until it is known.
        version: what its manifest says.
    """

    file: Maybe = ""
    digest: Maybe = ""
    version: Annotated[str, Meta(max_length=60)] = ""

    def __str__(self) -> str:
        name = (self.digest or self.file)[:12] or "of the config"
        return f"{self.version} ({name})" if self.version else name


CONFIGURED = Copy()


class State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`state.json`.

    Attributes:
        base: sha256 of the config's bundle when the first swap began.
        active: what runs.
        previous: what ran before, kept for going back.
        older: on trial, what `previous` was before that.
        candidate: the one under way; on trial the same as `active`.
        starts: how often the gateway was started while this swap was under way.
        p50_ms: the median latency of the one before, as it was when the trial began.
        number: of this swap, counted from 1.
        outcome: of the last one that ended: `settled`, `given up`, `rolled back`.
        reason: why, unless it settled.
        subject: the bundle that this was about, for people.
        told: whether the outcome has been made known.
    """

    schema: Literal[1]
    base: Sha256
    active: Copy = CONFIGURED
    previous: Copy | None = None
    older: Copy | None = None
    candidate: Copy | None = None
    step: Step = Step.SETTLED
    wish: Wish = Wish()
    starts: Annotated[int, Meta(ge=0, le=1000)] = 0
    p50_ms: Annotated[float, Meta(ge=0, le=1e9)] = 0.0
    number: Annotated[int, Meta(ge=0, le=1 << 40)] = 0
    outcome: Literal["", "settled", "given up", "rolled back"] = ""
    reason: Annotated[str, Meta(max_length=1000)] = ""
    subject: Annotated[str, Meta(max_length=100)] = ""
    told: bool = True

    def over(self, outcome: Literal["settled", "given up", "rolled back"], reason: str = "") -> State:
        """The same, with nothing under way; there is no going back to what was rolled back."""
        back = outcome == "rolled back"
        return msgspec.structs.replace(
            self,
            step=Step.SETTLED,
            candidate=None,
            active=self.previous or CONFIGURED if back else self.active,
            previous=self.older if back else self.previous,
            older=None,
            starts=0,
            outcome=outcome,
            reason="".join(c if c.isprintable() else " " for c in reason)[:1000],
            subject=str(self.candidate or CONFIGURED),
            told=False,
        )


_decoder = msgspec.json.Decoder(State)


def parse(data: bytes) -> State:
    """Read a state.

    Raises:
        ModelError: cut short, too long, of another version, or it contradicts itself.
    """
    try:
        if len(data) > MAX_STATE:
            raise ValueError(f"larger than {MAX_STATE} bytes")
        state = _decoder.decode(data)
    except (ValueError, RecursionError) as error:  # ValueError: also of msgspec and of UTF-8
        raise ModelError(f"not a state of a model: {str(error)[:200]}") from error
    if (state.step is Step.SETTLED) != (state.candidate is None):
        raise ModelError(f"not a state of a model: {state.step} with{'out' if not state.candidate else ''} a candidate")
    if state.step is Step.TRIAL and (state.active != state.candidate or state.previous is None):
        raise ModelError("not a state of a model: on trial, but not active, or nothing to go back to")
    return state


class Shelf:
    """The folder of one model.

    Args:
        folder: made when something is kept.
        configured: the bundle that the config names.
    """

    def __init__(self, folder: Path, configured: Path) -> None:
        self.folder = folder
        self._configured = configured
        self._file = folder / "state.json"

    def path(self, copy: Copy) -> Path:
        """Where this bundle is."""
        return self.folder / f"{copy.file}.octo" if copy.file else self._configured

    def read(self) -> tuple[State | None, str]:
        """The state that holds, or None and why there is none that does (nothing, when there never was one)."""
        try:
            with self._file.open("rb") as file:
                state = parse(file.read(MAX_STATE + 1))
            if sha256_of(self._configured) != state.base:
                return None, "the config names another bundle than the one that was swapped"
            if state.active.file and sha256_of(self.path(state.active)) != state.active.file:
                return None, f"bundle {state.active.file[:12]} is damaged"
        except FileNotFoundError as error:
            missing = "" if error.filename == str(self._file) else f"{error.filename} is missing"
            return None, missing
        except OSError as error:
            return None, f"{error.filename or self.folder}: {error.strerror}"
        except ModelError as error:
            return None, f"{self._file}: {error.what}"
        return state, ""

    def forget(self) -> None:
        """The config's bundle is what runs; StoreError when that cannot be written down."""
        with self._explained():
            durable.remove(self._file)
            self._sweep(())

    def take(self, source: Path) -> str:
        """Copy a bundle to the shelf, whole or not at all; its sha256.

        Raises:
            ModelError: it cannot be read, or is too large.
            StoreError: no room, or the disk refuses.
        """
        size = _size_of(source)
        with self._explained():
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            disk = os.statvfs(self.folder)
            if disk.f_bavail * disk.f_frsize < size + MIN_FREE:
                raise StoreError(f"{self.folder}: no room for a bundle of {size >> 20} MiB", hint="free some space")
            part = self.folder / "incoming.part"
            digest = _copy(source, part)
            durable.replace(part, self.folder / f"{digest}.octo")
        return digest

    def keep(self, state: State) -> None:
        """Make it the state that holds. It does when this returns, StoreError when it may not."""
        with self._explained():
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            part = self._file.with_name("state.part")
            durable.write(part, msgspec.json.encode(state))
            durable.replace(part, self._file)

    def sweep(self, state: State) -> None:
        """Delete the bundles that this state does not name; StoreError when the disk refuses."""
        with self._explained():
            self._sweep([copy.file for copy in (state.active, state.previous, state.older, state.candidate) if copy])

    def configured_sha256(self) -> str:
        """Raises `ModelError`: the config's bundle cannot be read."""
        try:
            return sha256_of(self._configured)
        except OSError as error:
            raise ModelError(f"{self._configured}: {error.strerror}", hint="mend the config's bundle first") from error

    def _sweep(self, keep: Iterable[str]) -> None:
        if self.folder.is_dir():
            kept = {f"{file}.octo" for file in keep}
            for path in self.folder.iterdir():
                if path.suffix in (".octo", ".part") and path.name not in kept:
                    durable.remove(path)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(f"{self.folder}: {error.strerror}", hint="check the disk") from error


def active_bundle(folder: Path, configured: Path) -> Path:
    """The bundle that a model runs now, or would after a start. Changes nothing."""
    shelf = Shelf(folder, configured)
    state, _ = shelf.read()
    return shelf.path(state.active) if state else configured


def sha256_of(path: Path) -> str:
    """Raises `OSError`."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _size_of(source: Path) -> int:
    try:
        size = source.stat().st_size
    except OSError as error:
        raise ModelError(f"{source}: {error.strerror}", hint="is it on the gateway, and may it be read?") from error
    if not source.is_file() or size > MAX_BYTES:
        raise ModelError(f"{source}: no file, or more than {MAX_BYTES >> 20} MiB", hint="name a .octo file")
    return size


def _copy(source: Path, target: Path) -> str:
    digest = hashlib.sha256()
    taken = 0
    try:
        original = source.open("rb")
    except OSError as error:
        raise ModelError(f"{source}: {error.strerror}", hint="is it on the gateway, and may it be read?") from error
    with original, os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        while block := original.read(_BLOCK):
            taken += len(block)
            if taken > MAX_BYTES:  # it grew meanwhile
                raise ModelError(f"{source}: more than {MAX_BYTES >> 20} MiB", hint="name a .octo file")
            digest.update(block)
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()
