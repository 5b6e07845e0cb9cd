"""A new bundle beside the one that serves: in a worker of its own, of the lowest priority, on every n-th input."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from gateway.command import ShadowCount
from gateway.contract import Result, Severity
from gateway.errors import ModelError
from gateway.infer.budget import Budget
from gateway.infer.candidate import Candidate
from gateway.infer.crew import Crew
from gateway.infer.difference import result_difference
from gateway.infer.engine import Engine
from gateway.infer.judge import Judge
from gateway.infer.manifest import Manifest
from gateway.infer.order import Order
from gateway.infer.seat import Input, Job
from gateway.infer.wire import Loaded

NICE = 19
READY_S = 300.0  # at the lowest priority, on a small board that is busy
FEW = 5  # disagreements that are told one by one
TOLERANCE = 1e-3  # where the bundle declares none for what computes it


def understudy(order: Order, candidates: Sequence[Candidate], judge: Judge, command: Sequence[str] | None) -> Engine:
    """The model of a new bundle with its own worker, which nobody waits for."""
    crew = Crew(nice=NICE, gentle=True, max_input=order.max_input, start_deadline_s=READY_S, command=command)
    engine = Engine(
        order.name,
        Path(order.bundle),
        candidates=candidates,
        backend=order.backend,
        threads=order.threads or 1,
        deadline_s=order.deadline_s,
        keys=tuple(map(Path, order.keys)),
        allow_unsigned=order.allow_unsigned,
        notify=lambda *_, **__: None,  # the judge hears of it, too, and decides
        crew=crew,
    )
    engine.observer = judge
    return engine


@asynccontextmanager
async def admitted(budget: Budget, mib: int) -> AsyncIterator[None]:
    """Memory for one more worker, out of what standby workers may take.

    Raises:
        ModelError: there is none.
    """
    if not budget.admit(mib):
        raise ModelError(
            f"no memory for a second worker of about {mib} MiB", hint="raise inference.standby_mib, or free memory"
        )
    try:
        yield
    finally:
        budget.dismiss(mib)


class _Seen(NamedTuple):
    data: bytes
    media: str
    of: Input
    result: Result


class Tap:
    """An `engine.Observer` of the model that serves: hands every n-th input to the shadow, if that has time for it."""

    forgiving = False

    def __init__(self, every: int) -> None:
        self._every = every
        self._count = 0
        self._next: asyncio.Future[_Seen] | None = None

    async def next(self) -> _Seen:
        """The next input, with what the serving model said."""
        self._next = asyncio.get_running_loop().create_future()
        return await self._next

    def answered(self, job: Job, result: Result, loaded: Loaded, took_ns: int) -> None:
        self._count += 1
        if self._count % self._every == 0 and self._next is not None and not self._next.done():
            self._next.set_result(_Seen(job.data, job.media.decode(), job.of, result))

    def serves(self, loaded: Loaded) -> None: ...

    def refused(self, why: str, loaded: Loaded) -> None: ...

    def faulted(self, bundle: str, why: str, *, crash: bool) -> None: ...


def tolerance_of(manifest: Manifest, loaded: Loaded) -> float:
    """How far answers may be apart: as far as the author lets the golden samples be, on what computes them here."""
    said = [golden.tolerance.get(loaded.candidate.precision) for golden in manifest.golden]
    return max((tolerance for tolerance in said if tolerance is not None), default=TOLERANCE)


class Shadow:
    """Compares answers.

    Args:
        serving: the model as it serves.
        beside: the new bundle's, which is ready.
        tell: called for `model.disagreed`, of the first few.
    """

    def __init__(self, serving: Engine, beside: Engine, tolerance: float, tell: Callable[..., object]) -> None:
        self._serving, self._beside, self._tolerance, self._tell = serving, beside, tolerance, tell
        self.count = ShadowCount()

    async def run(self, every: int) -> None:
        """Until cancelled."""
        self._serving.observer = tap = Tap(every)
        try:
            while True:
                seen = await tap.next()
                try:
                    answer = await self._beside.run(seen.data, seen.media, seen.of)
                    off = result_difference(seen.result, answer.result)
                    why = "another label, text or count" if off == float("inf") else f"off by {off:.3g}"
                except ModelError as error:
                    off, why = float("inf"), f"no answer: {error.what}"
                self._add(seen, off, why)
        finally:
            self._serving.observer = None

    def _add(self, seen: _Seen, off: float, why: str) -> None:
        was = self.count
        differs = not off <= self._tolerance  # so that NaN differs
        self.count = ShadowCount(was.compared + 1, was.disagreed + differs, was.otherwise + (off == float("inf")))
        if differs and self.count.disagreed <= FEW:
            stream, seq = seen.of
            self._tell(
                "model.disagreed", "point", Severity.INFO,
                f"the shadow of model '{self._serving.name}' disagrees on {stream} {seq}: {why}",
                stream=stream, seq=seq, tolerance=self._tolerance, why=why,
            )  # fmt: skip
