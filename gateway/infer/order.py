"""What is to be measured: one model as the config has it. Light to import; it travels to `place.py` as JSON."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from gateway.config import Config
from gateway.errors import ModelError
from gateway.infer import ranking
from gateway.infer.bundle import read_manifest
from gateway.infer.candidate import CPU, NAMES, Candidate, defaults
from gateway.infer.manifest import Manifest
from gateway.infer.ranking import Objective
from gateway.infer.shelf import active_bundle
from gateway.model_tables import ModelTable


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """One model to measure.

    Attributes:
        cache: the file that remembers the last choice; empty for none.
        keep: write the result there.
        cpus: the CPU budget: the most threads of a candidate.
        backend: with `device` and `threads` what the config pins; empty and 0 leave it open.
        extra: by backend, further devices to look for.
        deadline_s: 0 takes the bundle's own limit.
        seconds: how long each of the good candidates is timed, in all rounds together.
        patience_s: how long a candidate may take to load, to compile and to be proven.
        worker: another worker's command line; empty takes ours.
        parent: the process id that must live while it is measured; 0 for none.
    """

    name: str
    bundle: str
    keys: tuple[str, ...] = ()
    allow_unsigned: bool = False
    cache: str = ""
    keep: bool = True
    objective: Objective = "latency"
    cpus: int = 1
    backend: str = ""
    device: str = ""
    threads: int = 0
    extra: dict[str, tuple[str, ...]] = {}
    deadline_s: float = 1.0
    nice: int = 10
    max_input: int = 2 << 20
    seconds: float = 3.0
    patience_s: float = 60.0
    worker: tuple[str, ...] = ()
    parent: int = 0

    @property
    def pins(self) -> str:
        """For the key of what is remembered."""
        return f"{self.backend or 'any'}/{self.device or 'any'}/{self.threads or 'any'}"

    def allows(self, candidate: Candidate) -> bool:
        return ranking.allowed(candidate, backend=self.backend, device=self.device, threads=self.threads)

    def safe(self, manifest: Manifest) -> tuple[Candidate, ...]:
        """What runs without a measurement.

        Raises:
            ModelError: the pinned backend takes none of the variants.
        """
        return defaults(manifest, backend=self.backend, device=self.device or CPU, threads=self.threads or 1)


def cpus_here() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))


def order_of(config: Config, table: ModelTable) -> Order:
    """How a model of the config is measured."""
    inference = config.inference
    return Order(
        name=table.name,
        bundle=str(active_bundle(config.data_dir / "models" / table.name, config.path(table.bundle))),
        keys=tuple(str(config.path(key)) for key in config.trust.keys),
        allow_unsigned=config.trust.allow_unsigned,
        cache=str(config.data_dir / "placement" / f"{table.name}.json"),
        objective=inference.objective,
        cpus=inference.cpus or cpus_here(),
        backend=table.backend,
        device=table.device,
        threads=table.threads,
        extra={backend: inference.devices(backend) for backend in NAMES},
        deadline_s=table.deadline_ms / 1000,
        nice=table.nice,
        max_input=table.max_input_kib << 10,
    )


def first_candidates(order: Order) -> Sequence[Candidate]:
    """What an engine starts with: the ranking that is remembered. Empty when there is none, or the bundle cannot be
    read, which its worker will say: that takes the safe order of whatever bundle it finds.
    """
    try:
        manifest = read_manifest(Path(order.bundle))
        placement = ranking.load(Path(order.cache))
        if placement is not None and ranking.fits(
            placement, manifest, backend=order.backend, device=order.device, threads=order.threads
        ):
            return placement.ranking
        return order.safe(manifest) if order.device else ()
    except ModelError:
        return ()
