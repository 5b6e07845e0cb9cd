"""The daemon's side of a model: takes inputs, gives results, and says how the model is.

Nothing here computes: no NumPy, no runtime, no OpenCV. The work is done by the workers of a `Crew`, which this model
has alone or shares with others. A candidate that fails, hangs, is wrong or disappears costs time, never an input.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from gateway.contract import BreakerStatus, ModelStatus, Result, Severity
from gateway.errors import DeadlineError, ModelError
from gateway.infer import wire
from gateway.infer.breaker import RECOVERY, Ranking, Recovery
from gateway.infer.budget import Budget, Claim
from gateway.infer.candidate import Candidate
from gateway.infer.crew import Crew
from gateway.infer.seat import NOBODYS, Input, Job, Seat

MAX_ATTEMPTS = 3  # of one job; then it is the job that kills workers
MICRO_US = 1000  # who computes faster is sent several jobs at once
_RECENT = 512  # runs in the percentiles


class Notify(Protocol):
    """Called with an event's name, state (`raised`, `cleared`, `point`), severity, message and details."""

    def __call__(self, name: str, state: str, severity: Severity, message: str, /, **detail: Any) -> object: ...


class Answer(msgspec.Struct, frozen=True, gc=False):
    """What `Engine.run` gives.

    Attributes:
        backend: what computed it, for example `onnx fp32 x1`.
        bundle: the first 12 hex digits of the bundle's digest.
        took_us: from the call of `run` to having the result, queueing and redone attempts included.
        picture: the JPEG that was made of an uncompressed picture; empty for any other input.
    """

    result: Result
    backend: str
    bundle: str
    took_us: int
    picture: bytes = b""


class Observer(Protocol):
    """Sees what becomes of a model's work. Called in the loop: it must not block or raise."""

    @property
    def forgiving(self) -> bool:
        """Whether no job is given up: if workers end, another bundle will be there soon."""

    def serves(self, loaded: wire.Loaded) -> None:
        """From now on this computes it."""

    def answered(self, job: Job, result: Result, loaded: wire.Loaded, took_ns: int) -> None: ...

    def refused(self, why: str, loaded: wire.Loaded) -> None: ...

    def faulted(self, bundle: str, why: str, *, crash: bool) -> None:
        """A worker of the bundle at this path ended, or (no crash) its runtime or its golden samples failed."""


class Engine:
    """One model.

    Args:
        name: the model's name in the config, for messages.
        bundle: the `.octo` file; read again by every new worker, so it may be replaced.
        candidates: what may compute it, the best first; empty takes the bundle's own order, of `backend` only if that
            is given.
        deadline_s: a job without an answer for so long gets its worker killed; 0 takes the bundle's own limit.
        priority: of its jobs among those of all models; the highest goes first.
        keys: public keys that may sign the bundle.
        notify: called for `model.failover` and `model.failed` (raised, cleared), `model.restarted` and
            `model.recycled` (point).
        crew: the workers that it shares; else it gets its own, made of the rest of the arguments (see `Crew`).
    """

    def __init__(
        self,
        name: str,
        bundle: Path,
        *,
        candidates: Sequence[Candidate] = (),
        backend: str = "",
        threads: int = 1,
        deadline_s: float = 1.0,
        priority: int = 0,
        keys: Sequence[Path] = (),
        allow_unsigned: bool = False,
        notify: Notify,
        crew: Crew | None = None,
        recovery: Recovery = RECOVERY,
        workers: int = 1,
        nice: int = 10,
        max_input: int = 2 << 20,
        standby: bool = False,
        budget: Budget | None = None,
        start_deadline_s: float = 30.0,
        recheck_s: float = 600.0,
        command: Sequence[str] | None = None,
    ) -> None:
        self.name = name
        self.notify = notify
        self.priority = priority
        self.ranking = Ranking(candidates, recovery)
        self.queue: deque[Job] = deque()
        self.micro = False
        self.bundle = str(bundle)
        self.observer: Observer | None = None
        self.state = "starting"  # starting, ready, restarting, failed
        self._recovery, self._backend, self._threads = recovery, backend, threads
        self._keys, self._allow_unsigned = tuple(map(str, keys)), allow_unsigned
        self._deadline_s = deadline_s
        self._detail = ""
        self._loaded: wire.Loaded | None = None  # what serves, or served last
        self._failed_over = False
        self._runs = self._restarts = 0
        self._recent: deque[int] = deque(maxlen=_RECENT)
        self._crew = crew or Crew(
            workers=workers, nice=nice, max_input=max_input, standby=standby, budget=budget,
            start_deadline_s=start_deadline_s, recheck_s=recheck_s, recovery=recovery, command=command,
        )  # fmt: skip
        self.tenant = self._crew.join(self)

    async def run(self, data: bytes, media: str, of: Input = NOBODYS) -> Answer:
        """Have one input computed; inputs are taken in the order of the calls.

        Args:
            data: a picture's file or the packed records of a window.
            media: `image/jpeg`, `image/png`, `image/x-yuyv;<width>;<height>;<stride>` or `records;<Schema.spec()>`.
            of: where it comes from, for messages.

        Raises:
            ModelError: the input is not usable, kills every worker, or the model cannot be loaded.
            DeadlineError: no worker answered it in time, MAX_ATTEMPTS times over.
        """
        started = time.monotonic_ns()
        if self.state == "failed":
            raise ModelError(f"model '{self.name}' does not run: {self._detail}", hint="mend its bundle")
        if len(data) > self._crew.max_input:
            raise ModelError(
                f"model '{self.name}': an input of {len(data)} bytes, at most {self._crew.max_input} are taken",
                hint="raise max_input_kib of the model, or have the camera deliver smaller pictures",
            )
        job = Job(self, data, media.encode(), started, of)
        self.queue.append(job)
        self._crew.dispatch()
        result, loaded, picture = await job.future
        took = (time.monotonic_ns() - started) // 1000
        return Answer(result, loaded.backend, loaded.digest[:12], took, picture)

    def prefer(self, candidates: Sequence[Candidate]) -> None:
        """A new ranking, the best first. The best is loaded beside what serves, which goes on until it is ready."""
        self.ranking.replace(candidates)
        self._crew.reconcile()

    def change(self, bundle: Path, candidates: Sequence[Candidate] = ()) -> None:
        """Another bundle: loaded beside what serves, which goes on until it is ready and ends what it has in hand."""
        self.bundle = str(bundle)
        self.ranking = Ranking(candidates, self._recovery)  # what failed with another bundle may work with this
        self._recent.clear()
        self._crew.changed()

    def status(self) -> ModelStatus:
        """A snapshot; the percentiles are over the last runs, from handing a job over to its answer."""
        loaded = self._loaded if self.state != "failed" else None
        recent = sorted(self._recent)
        p50, p99 = (recent[int(len(recent) * q)] / 1e6 if recent else 0.0 for q in (0.5, 0.99))
        pids = self._crew.pids()
        standby = self._crew.standby_of(self.tenant)
        return ModelStatus(
            name=self.name,
            state=self.state,
            backend=loaded.backend if loaded else "",
            bundle=loaded.digest[:12] if loaded else "",
            signed=bool(loaded and loaded.signed_by),
            pid=pids[0] if pids else 0,
            runs=self._runs,
            restarts=self._restarts,
            p50_ms=p50,
            p99_ms=p99,
            detail=self._detail,
            workers=self._crew.serving(),
            rss_mib=self._crew.rss_mib(),
            standby=standby.backend if standby else "",
            failed_over=self._failed_over,
            breakers=tuple(BreakerStatus(*state) for state in self.ranking.states()),
        )

    async def supervise(self) -> None:
        """Keep the workers running until cancelled; then they are gone, and every waiting `run` fails.

        Run it in a TaskGroup. `run` may be called before it is started. Of several models that share a crew each may
        be supervised; the first one to be does it for all.
        """
        await self._crew.supervise()

    # --- for the crew -------------------------------------------------------------------------------------------

    def setup(self, order: Sequence[Candidate]) -> wire.Tenant:
        """What a worker is told of this model."""
        return wire.Tenant(
            name=self.name, bundle=self.bundle, candidates=tuple(order), backend=self._backend,
            threads=self._threads, keys=self._keys, allow_unsigned=self._allow_unsigned,
        )  # fmt: skip

    def deadline_s(self, loaded: wire.Loaded) -> float:
        return self._deadline_s or loaded.limits.deadline_ms / 1000

    def claim(self) -> Claim | None:
        """Of its oldest job that somebody still waits for."""
        while self.queue and self.queue[0].future.done():  # its caller was cancelled
            self.queue.popleft()
        return (-self.priority, self.queue[0].since_ns) if self.queue else None

    def done(self, job: Job, took_us: int, result: Result, loaded: wire.Loaded, picture: bytes) -> None:
        """An answer has come."""
        self.micro = took_us < MICRO_US
        self._runs += 1
        took_ns = time.monotonic_ns() - job.sent_ns
        self._recent.append(took_ns)
        if not job.future.done():
            job.future.set_result((result, loaded, picture))
        if self.observer is not None:
            self.observer.answered(job, result, loaded, took_ns)

    def refused(self, job: Job, fault: wire.Fault, loaded: wire.Loaded) -> None:
        self._runs += 1
        if self.observer is not None:
            self.observer.refused(fault.what, loaded)
        if not job.future.done():
            job.future.set_exception(ModelError(fault.what, hint=fault.hint))

    def redo(self, jobs: Sequence[Job], why: str, *, overdue: bool) -> None:
        """Jobs of this model that a worker took along: to the front again, unless they did it."""
        for job in reversed(jobs):
            if job.future.done():
                continue
            if self.observer is not None and self.observer.forgiving:
                job.attempts = 0
            if job.attempts < MAX_ATTEMPTS:
                self.queue.appendleft(job)
                continue
            self.ranking.forgive(job.blamed)
            kind = DeadlineError if overdue else ModelError
            job.future.set_exception(
                kind(
                    f"model '{self.name}': one input ended {MAX_ATTEMPTS} workers: {why}",
                    hint="the input is left out; keep it and report it",
                )
            )

    def served_by(self, loaded: wire.Loaded) -> None:
        """From now on this computes it; says so when it is not who should, or is again."""
        if self.state == "failed":
            self.notify("model.failed", "cleared", Severity.INFO, f"model '{self.name}' runs again")
        before, self._loaded = self._loaded, loaded
        if self.observer is not None:
            self.observer.serves(loaded)
        self.state = "ready"
        self._detail = "; ".join(why for _, why in loaded.rejected)
        preferred = self.ranking.preferred()
        if preferred is None or loaded.candidate == preferred:
            if self._failed_over:
                self._failed_over = False
                self.notify(
                    "model.failover", "cleared", Severity.INFO,
                    f"model '{self.name}': back on {loaded.candidate}",
                    to=str(loaded.candidate), **{"from": str(before.candidate) if before else ""},
                )  # fmt: skip
        elif not self._failed_over and (why := self.ranking.why(preferred)):
            self._failed_over = True
            self.notify(
                "model.failover", "raised", Severity.WARNING,
                f"model '{self.name}': {preferred} failed, {loaded.candidate} took over: {why}",
                to=str(loaded.candidate), why=why, **{"from": str(preferred)},
            )  # fmt: skip

    def restarting(self, why: str, *, serving: bool) -> None:
        """A worker that served it has ended."""
        self._restarts += 1
        if not serving and self.state != "failed":
            self.state, self._detail = "restarting", why
        self.notify("model.restarted", "point", Severity.WARNING, f"model '{self.name}': {why}")

    def faulted(self, seat: Seat, why: str, *, crash: bool) -> None:
        """For the observer: something is wrong with a worker, or with this model in it."""
        if self.observer is not None:
            self.observer.faulted(seat.bundles[self.tenant], why, crash=crash)

    def recycled(self, why: str) -> None:
        self.notify("model.recycled", "point", Severity.INFO, f"model '{self.name}': {why}")

    def fail(self, why: str) -> None:
        """Nothing can compute it, and the next attempt is far: the callers are told."""
        self._detail = why
        if self.observer is not None and self.observer.forgiving:
            return  # it is about to be given another bundle: what waits goes there
        if self.state != "failed":
            self.state = "failed"
            self.notify("model.failed", "raised", Severity.ALARM, f"model '{self.name}': {why}")
        self.drop(ModelError(f"model '{self.name}' does not run: {why}", hint="mend its bundle"))

    def stop(self) -> None:
        self.state, self._detail = "failed", "the gateway is stopping"
        self.drop(ModelError(f"model '{self.name}': the gateway is stopping"))

    def drop(self, error: ModelError) -> None:
        jobs = [*self.queue]
        self.queue.clear()
        for job in jobs:
            if not job.future.done():
                job.future.set_exception(error)
