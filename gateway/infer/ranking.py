"""What was measured of a model's candidates, which of them is chosen, and the file that remembers it.

Light to import: the daemon reads the file and hands the ranking to its engines; `place.py` measures, elsewhere.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from gateway import durable
from gateway.infer.candidate import CPU, Candidate
from gateway.infer.manifest import Manifest

log = logging.getLogger("octogate.place")

MARGIN = 0.10  # another candidate must be cheaper by more than this share to replace the present one
MAX_BYTES = 1 << 20  # of a remembered placement; a real one has a few kB

Objective = Literal["latency", "throughput", "energy"]
Number = Annotated[float, Meta(ge=0, le=1e15)]
Count = Annotated[int, Meta(ge=0, le=1 << 50)]
Line = Annotated[str, Meta(max_length=4000)]
Lines = Annotated[tuple[Line, ...], Meta(max_length=1000)]


class Figures(msgspec.Struct, frozen=True):
    """What one candidate needed, by way of an engine and its worker; each the median of its rounds.

    Attributes:
        p50_us: from handing an input to the engine to having the result, in microseconds.
        p99_us: the same, 99th percentile.
        cpu_us: processor time of the worker for one inference, all its threads.
        per_s: inferences a second; with the throughput objective of as many workers as the CPU budget holds.
        pss: memory of one worker, bytes, pages shared with others counted by share.
        runs: inferences that were timed.
    """

    p50_us: Number
    p99_us: Number
    cpu_us: Number
    per_s: Number
    pss: Count
    runs: Count


class Measured(msgspec.Struct, frozen=True):
    """One candidate: figures, or the reason why it has none.

    Attributes:
        final: timed in turns with the other good ones; else only once, briefly, which was enough to rule it out.
    """

    candidate: Candidate
    figures: Figures | None = None
    rejected: Line = ""
    final: bool = False


class Key(msgspec.Struct, frozen=True):
    """What a measurement depends on: when any of it is different, it has to be measured again."""

    bundle: Line  # digest of the bundle's members, hex
    objective: Objective
    cpus: Count  # the CPU budget
    pinned: Line  # backend, device, threads of the config
    versions: Lines  # of the runtimes' packages
    cpu: Line  # the processor's model and features
    devices: Lines  # "backend device", with the reason when it is absent


class Placement(msgspec.Struct, frozen=True):
    """What is remembered of one model.

    Attributes:
        before: what ran until then: the last choice, or the first of the safe order that works.
        ranking: the choice, then what an engine falls back to, in this order; empty when no candidate runs here.
        measured: every candidate, rejected ones too.
    """

    schema: Literal[1]
    key: Key
    before: Candidate | None
    ranking: Annotated[tuple[Candidate, ...], Meta(max_length=1000)]
    measured: Annotated[tuple[Measured, ...], Meta(max_length=1000)]

    def figures_of(self, candidate: Candidate) -> Figures | None:
        return next((m.figures for m in self.measured if m.candidate == candidate), None)

    @property
    def gain(self) -> float | None:
        """How many times cheaper the choice is than what was before; None when that cannot be said."""
        before = self.figures_of(self.before) if self.before else None
        after = self.figures_of(self.ranking[0]) if self.ranking else None
        if before is None or after is None:
            return None
        return cost(before, self.key.objective) / max(cost(after, self.key.objective), 1e-9)


def cost(figures: Figures, objective: Objective) -> float:
    """Microseconds that count, less is better.

    Latency counts the median and not the 99th percentile: some hundred runs have a handful behind their p99, and
    on a machine that does other things too those are the other things. Who is slower than its deadline is rejected.
    """
    if objective == "energy":
        return figures.cpu_us
    if objective == "throughput":
        return 1e6 / max(figures.per_s, 1e-9)
    return figures.p50_us


def rank(
    measured: Iterable[Measured], objective: Objective, *, present: Candidate | None, safe: Sequence[Candidate]
) -> tuple[Candidate, ...]:
    """The choice, then what to fall back to; empty when no candidate runs.

    Args:
        present: what runs now. It stays unless another is cheaper by more than MARGIN.
        safe: what would run without any measurement; the first of these that works stands last, if not before.
    """
    # who was ruled out early has coarse figures: never before one that was timed in turns
    good = sorted(
        ((not m.final, cost(m.figures, objective), m.candidate) for m in measured if m.figures), key=lambda g: g[:2]
    )
    if not good:
        return ()
    costs = {candidate: expense for _, expense, candidate in good}
    first = good[0][2]
    if present in costs and costs[first] >= (1 - MARGIN) * costs[present]:
        first = present
    # of one runtime, file and device only the best number of threads: where it fails, the others fail too
    best: dict[tuple[str, str, str], Candidate] = {_way(first): first}
    for _, _, candidate in good:
        best.setdefault(_way(candidate), candidate)
    ranking = list(best.values())
    ranking += [candidate for candidate in safe if candidate in costs and candidate not in ranking][:1]
    return tuple(ranking)


def _way(candidate: Candidate) -> tuple[str, str, str]:
    return candidate.backend, candidate.file, candidate.device


def fits(placement: Placement, manifest: Manifest, *, backend: str, device: str, threads: int) -> bool:
    """Whether the ranking may be used for this bundle and these settings before it is known to be up to date.

    Nothing is risked by using an outdated one: every worker proves its candidate on the golden samples.
    """
    variants = {(variant.file, variant.precision) for variant in manifest.variants}
    return bool(placement.ranking) and all(
        (c.file, c.precision) in variants and allowed(c, backend=backend, device=device, threads=threads)
        for c in placement.ranking
    )


def allowed(candidate: Candidate, *, backend: str, device: str, threads: int) -> bool:
    """Whether the config's pins leave room for a candidate; threads are pinned for the CPU alone."""
    return (
        backend in ("", candidate.backend)
        and device in ("", candidate.device)
        and (threads in (0, candidate.threads) or candidate.device != CPU)
    )


_decoder = msgspec.json.Decoder(Placement)


def load(path: Path) -> Placement | None:
    """What is remembered in `path`; None when there is nothing, or nothing usable, which is logged in one line."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ValueError(f"larger than {MAX_BYTES} bytes")
        return _decoder.decode(data)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:  # ValueError: also of msgspec and of UTF-8
        log.warning("%s: cannot be used, the model is measured again: %s", path, str(error)[:300])
        return None


def save(path: Path, placement: Placement) -> None:
    """Replace the file as a whole: after a power cut there is the old or the new one.

    Raises:
        OSError: the disk refuses.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # one name for each writer: the daemon's measurement and a person's may end at the same time
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    durable.write_whole(path, msgspec.json.format(msgspec.json.encode(placement), indent=1), part=part)
