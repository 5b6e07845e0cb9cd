"""Candidates at work: each by way of an engine and its worker, as the daemon would run it, fed with golden samples."""

from __future__ import annotations

import asyncio
import os
import re
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from gateway.contract import Severity
from gateway.errors import DeadlineError, ModelError
from gateway.infer.candidate import Candidate
from gateway.infer.engine import Engine
from gateway.infer.order import Order
from gateway.infer.ranking import Figures

PATIENT = 3.0  # times its deadline a measured inference may take: at the lowest priority it may have to wait
LEAST_S = 3.0

_PREFIX = re.compile(r"^.*?no variant runs here: [^:]+ on [^:]+: ")
_HINT = re.compile(r" \((install a runtime|mend its bundle)[^()]*\)")


class Sample(NamedTuple):
    """One input, as it comes from a source."""

    data: bytes
    media: str


class Turn(NamedTuple):
    """One stretch of inferences."""

    times_us: list[int]
    cpu_us: float  # for one inference
    per_s: float


class Rejected(Exception):
    """A candidate cannot be used; the text says why."""


class Seat:
    """One candidate, loaded and proven in as many workers as shall run at once.

    Args:
        copies: workers; more than one only for throughput.
    """

    def __init__(self, order: Order, candidate: Candidate, samples: Sequence[Sample], copies: int = 1) -> None:
        self.candidate = candidate
        self._order = order
        self._samples = samples
        self._limit_s = max(PATIENT * order.deadline_s, LEAST_S)
        self._engines = [self._engine() for _ in range(copies)]

    def _engine(self) -> Engine:
        order = self._order
        return Engine(
            order.name,
            Path(order.bundle),
            candidates=(self.candidate,),
            threads=self.candidate.threads,
            deadline_s=self._limit_s,
            nice=order.nice,
            max_input=max(order.max_input, *(len(sample.data) for sample in self._samples)),
            keys=tuple(map(Path, order.keys)),
            allow_unsigned=order.allow_unsigned,
            notify=_unheard,
            start_deadline_s=order.patience_s,
            command=order.worker or None,
        )

    async def supervise(self) -> None:
        """Keep its workers; ends by cancellation, then they are gone."""
        async with asyncio.TaskGroup() as group:
            for engine in self._engines:
                group.create_task(engine.supervise(), name=f"engine {self.candidate}")

    async def ready(self) -> None:
        """Returns when every worker has given an answer.

        Raises:
            Rejected: not installed, no such device, does not take the model, wrong, crashed, or too slow.
        """
        sample = self._samples[0]
        try:
            # a little longer than the engine waits for its worker
            async with asyncio.timeout(self._order.patience_s + 1):
                for engine in self._engines:
                    await engine.run(sample.data, sample.media)
        except TimeoutError:
            last = self._engines[0].status().detail
            raise Rejected(f"timed out after {self._order.patience_s:g} s{': ' + last if last else ''}") from None
        except ModelError as error:
            raise self._rejected(error) from error

    async def turn(self, seconds: float, at_least: int) -> Turn:
        """Infer for `seconds`, but at least so many times with each worker.

        Raises:
            Rejected: a worker ended, missed its deadline or refused its own golden sample.
        """
        restarts, cpu, started = self._count_restarts(), self._cpu_s(), time.monotonic()
        try:
            done = await asyncio.gather(*(self._infer(engine, seconds, at_least) for engine in self._engines))
        except ModelError as error:
            raise self._rejected(error) from error
        took, used = time.monotonic() - started, self._cpu_s() - cpu
        if self._count_restarts() != restarts:
            raise Rejected(f"its worker ended: {self._engines[0].status().detail}")
        times = [t for each in done for t in each]
        # the first wakes the worker after the others' turns
        counted = [t for each in done for t in (each[1:] or each)]
        if statistics.median(counted) > self._order.deadline_s * 1e6:
            took_ms = statistics.median(counted) / 1000
            raise Rejected(f"takes {took_ms:.0f} ms, the model's deadline is {self._order.deadline_s * 1000:g} ms")
        return Turn(counted, used / len(times) * 1e6, len(times) / took)

    def pss(self) -> int:
        """Bytes of one worker, the mean of all."""
        return sum(_pss(engine.status().pid) for engine in self._engines) // len(self._engines)

    async def _infer(self, engine: Engine, seconds: float, at_least: int) -> list[int]:
        end = time.monotonic() + seconds
        times: list[int] = []
        while len(times) < at_least or time.monotonic() < end:
            sample = self._samples[len(times) % len(self._samples)]
            times.append((await engine.run(sample.data, sample.media)).took_us)
        return times

    def _cpu_s(self) -> float:
        return sum(_cpu_s(engine.status().pid) for engine in self._engines)

    def _count_restarts(self) -> int:
        return sum(engine.status().restarts for engine in self._engines)

    def _rejected(self, error: ModelError) -> Rejected:
        if isinstance(error, DeadlineError):
            return Rejected(f"timed out after {self._limit_s:g} s")
        detail = next((status.detail for e in self._engines if (status := e.status()).state == "failed"), "")
        return Rejected(_HINT.sub("", _PREFIX.sub("", detail or error.what)))


def figures(turns: Sequence[Turn], pss: int) -> Figures:
    """The median of what each turn gave."""
    middle = statistics.median
    ordered = [sorted(turn.times_us) for turn in turns]
    return Figures(
        p50_us=middle(middle(times) for times in ordered),
        p99_us=middle(times[min(len(times) - 1, int(len(times) * 0.99))] for times in ordered),
        cpu_us=round(middle(turn.cpu_us for turn in turns), 1),
        per_s=round(middle(turn.per_s for turn in turns), 2),
        pss=pss,
        runs=sum(map(len, ordered)),
    )


def _unheard(name: str, state: str, severity: Severity, message: str, /, **detail: object) -> None:
    """An engine's events: what is measured here says it as a reason."""


def _cpu_s(pid: int) -> float:
    """Processor time of a process with all its threads, in seconds, to the nanosecond; 0 for one that is gone.

    A process's clock id is made of its pid (clock_getcpuclockid(3); MAKE_PROCESS_CPUCLOCK of the kernel, kind
    CPUCLOCK_SCHED): /proc/PID/stat counts in hundredths of a second.
    """
    try:
        return time.clock_gettime(~pid << 3 | 2)
    except OSError:
        return 0.0


def _pss(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            line = next((line for line in file if line.startswith("Pss:")), "Pss: 0 kB")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0
    return int(line.split()[1]) * 1024


def memory_available() -> int:
    """Bytes that new processes may take (MemAvailable)."""
    with open("/proc/meminfo") as file:
        line = next((line for line in file if line.startswith("MemAvailable:")), "MemAvailable: 0 kB")
    return int(line.split()[1]) * 1024


def lowest_priority() -> None:
    """Only what nobody else wants of the processors: niceness 19, and SCHED_IDLE where the kernel lets us."""
    os.setpriority(os.PRIO_PROCESS, 0, 19)
    try:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except OSError:
        return
