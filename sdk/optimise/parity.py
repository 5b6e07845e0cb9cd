"""Do all variants answer the same, on every runtime that is installed here? By the gateway's own runners."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gateway.errors import ModelError
from gateway.infer.backend import Runner, backend
from gateway.infer.candidate import BACKENDS, Candidate
from gateway.infer.golden import outputs_difference
from gateway.infer.steps import Array
from sdk.optimise.variants import Built, Inputs, calls


@dataclass(frozen=True)
class Agreement:
    """One variant on one runtime.

    Attributes:
        worst, middle: of all inputs the largest and the median difference to the reference's outputs, relative to the
            largest of them (as golden samples are compared); None when it did not run.
        fault: why it did not run, or what is wrong; empty when all is well.
    """

    built: Built
    backend: str
    worst: float | None = None
    middle: float | None = None
    fault: str = ""

    @property
    def ran(self) -> bool:
        return self.worst is not None

    def __str__(self) -> str:
        return f"{self.built} on {self.backend}"


def ways(built: Built) -> tuple[str, ...]:
    """The gateway's backends that take a variant."""
    return BACKENDS[built.variant.format]


def runner(built: Built, name: str, threads: int = 1) -> Runner:
    """A variant loaded on a backend's CPU.

    Raises:
        ModelError: the runtime is not installed, or does not take it.
    """
    variant = built.variant
    candidate = Candidate(backend=name, file=variant.file, precision=variant.precision, threads=threads)
    return backend(name).load(built.source(), candidate)


def answers(run: Runner, inputs: Sequence[Inputs]) -> list[list[Array]]:
    """The outputs of each call, copied: a runner may overwrite them.

    Raises:
        ModelError: the runtime failed.
    """
    return [[np.array(output) for output in run(call)] for call in calls(inputs)]


def parity(
    variants: Sequence[Built], inputs: Sequence[Inputs], *, reference: Sequence[Sequence[Array]] | None = None
) -> list[Agreement]:
    """Every variant on every installed runtime, compared with the reference.

    Args:
        inputs: real ones, one call each.
        reference: the right outputs of each call; without it those of the first variant that runs.

    Raises:
        ModelError: there is no reference, as no variant runs here.
    """
    found: list[Agreement] = []
    for built in variants:
        for name in ways(built):
            try:
                outputs = answers(runner(built, name), inputs)
            except ModelError as error:
                found.append(Agreement(built, name, fault=str(error)))
                continue
            reference = outputs if reference is None else reference
            found.append(_compared(built, name, outputs, reference))
    if reference is None:
        raise ModelError(f"no variant runs here: {'; '.join(f'{one}: {one.fault}' for one in found)}")
    return found


def _compared(built: Built, name: str, outputs: list[list[Array]], right: Sequence[Sequence[Array]]) -> Agreement:
    if not all(np.isfinite(x).all() for each in outputs for x in each):
        return Agreement(built, name, fault="answers with numbers that are not finite")
    off = [
        outputs_difference(got, np.concatenate([np.asarray(x, np.float32).ravel() for x in wanted]))
        for got, wanted in zip(outputs, right, strict=True)
    ]
    if not np.isfinite(off).all():
        return Agreement(built, name, fault="answers with other shapes than the reference")
    return Agreement(built, name, max(off), float(np.median(off)))


def latency_us(
    runners: Sequence[Runner], inputs: Sequence[Inputs], *, rounds: int = 9, each_s: float = 0.1
) -> list[float]:
    """The median time of one call, in microseconds, of each runner.

    They take turns, so that whatever else the machine does disturbs all of them; of each the best round counts.

    Raises:
        ModelError: a runtime failed.
    """
    data = calls(inputs)
    best = [float("inf")] * len(runners)
    for _ in range(rounds):
        for at, run in enumerate(runners):
            times: list[int] = []
            end = time.perf_counter_ns() + int(each_s * 1e9)
            while len(times) < 5 or time.perf_counter_ns() < end:
                call = data[len(times) % len(data)]
                began = time.perf_counter_ns()
                run(call)
                times.append(time.perf_counter_ns() - began)
            best[at] = min(best[at], float(np.median(times)) / 1000)
    return best
