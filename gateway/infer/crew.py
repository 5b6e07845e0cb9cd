"""The workers of one model, or of several that share them: who serves, who stands by, who is being tried.

What should be is compared with what is after every change (`reconcile`); only then are workers started or ended. A
worker is replaced by starting the next beside it and switching when that is ready, whatever the reason: a better
candidate, a recovered one, memory that has grown.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from gateway.child import python_module
from gateway.contract import Result
from gateway.infer import wire
from gateway.infer.breaker import NEVER, RECOVERY, Recovery
from gateway.infer.budget import Budget
from gateway.infer.dispatch import Dispatcher
from gateway.infer.roster import Roster, limit_mib
from gateway.infer.seat import Job, Role, Seat
from gateway.infer.wire import Kind

if TYPE_CHECKING:
    from gateway.infer.engine import Engine

_START_FAILURES = 3  # workers in a row that die before they are ready: the model has failed
_START_BACKOFF_S, _START_BACKOFF_MAX_S = 0.25, 60.0
_CRASH_BACKOFF_S, _CRASH_BACKOFF_MAX_S = 0.25, 10.0

_decode_result = msgspec.msgpack.Decoder(Result).decode
_decode_fault = msgspec.msgpack.Decoder(wire.Fault).decode


class Crew:
    """Workers that load the same models.

    Args:
        workers: how many serve.
        nice: niceness of the workers.
        gentle: nice already while they load, for nobody waits for them.
        max_input: bytes of the largest input.
        standby: keep one more ready, on the next candidate, when the budget has memory for it.
        budget: processor tokens and memory, shared by all crews of a gateway.
        start_deadline_s: a worker that is not ready after so long is killed.
        recheck_s: of work between two looks at the golden samples.
        command: the worker's command line, for other workers than ours.
    """

    def __init__(
        self,
        *,
        workers: int = 1,
        nice: int = 10,
        gentle: bool = False,
        max_input: int = 2 << 20,
        standby: bool = False,
        budget: Budget | None = None,
        start_deadline_s: float = 30.0,
        recheck_s: float = 600.0,
        recovery: Recovery = RECOVERY,
        command: Sequence[str] | None = None,
    ) -> None:
        self.max_input = max_input
        self._wanted = workers
        self._standby = standby
        # without a common budget this crew is never held up
        self._budget = budget or Budget(1 << 16, 1 << 20)
        self._recovery = recovery
        self._roster = Roster(
            list(command or python_module("gateway.infer.worker")), self._budget, self,
            standby=standby, nice=nice, gentle=gentle, max_input=max_input, start_deadline_s=start_deadline_s, recheck_s=recheck_s,
        )  # fmt: skip
        self._over: asyncio.Event | None = None
        self._start_failures = 0  # in a row
        self._crashes = 0  # workers in a row that served nothing
        self._not_before = 0.0  # the loop's time of the next start
        self._timer: asyncio.TimerHandle | None = None
        self._lacking = 0  # workers in a row that lack a model
        self._standby_failures = 0
        self._standby_not_before = 0.0
        self._desk = Dispatcher(self._roster.members, self._roster.serving, self._budget)
        self.dispatch = self._desk.dispatch

    def join(self, engine: Engine) -> int:
        """Add a model, before `supervise`; its number in every worker."""
        self._roster.members.append(engine)
        return len(self._roster.members) - 1

    async def supervise(self) -> None:
        """Keep what should be until cancelled; see `Engine.supervise`."""
        if self._over is not None:
            await self._over.wait()
            return
        self._over = asyncio.Event()
        try:
            async with asyncio.TaskGroup() as self._roster.tasks:
                try:
                    self.reconcile()
                    await self._over.wait()
                finally:
                    self._roster.tasks = None  # it is ending: nothing more is started
        finally:
            self._over.set()
            if self._timer is not None:
                self._timer.cancel()
            for seat in [*self._roster.seats]:
                for job in seat.take_back():
                    job.engine.queue.append(job)
                self._roster.end(seat)
                self._desk.release(seat)
            for engine in self._roster.members:
                engine.stop()
            self._budget.withdraw(self._desk)

    def changed(self) -> None:
        """A model has another bundle: who serves goes on until it is there, who does not is of no use."""
        for seat in [*self._roster.seats]:
            if seat not in self._roster.serving and seat.role is not Role.LEAVE and self._roster.is_outdated(seat):
                self._roster.end(seat)
        self._start_failures = self._crashes = self._lacking = 0
        self._wait(0.0)
        self.reconcile()

    def pids(self) -> list[int]:
        """Of the workers that serve, or else of those that start."""
        return [seat.pid for seat in self._roster.serving or self._roster.seats if seat.pid]

    def serving(self) -> int:
        """How many workers are given jobs."""
        return len(self._roster.serving)

    def rss_mib(self) -> int:
        """Of those that serve, as last told."""
        return sum(seat.rss_mib for seat in self._roster.serving)

    def standby_of(self, tenant: int) -> wire.Loaded | None:
        for seat in self._roster.seats:
            if seat.role is Role.STANDBY and seat.is_ready and isinstance(found := seat.loaded[tenant], wire.Loaded):
                return found
        return None

    # --- what the seats tell ------------------------------------------------------------------------------------

    def tried(self, trying: wire.Trying) -> None:
        self._roster.members[trying.tenant].ranking.learn(trying.order)

    def ready(self, seat: Seat) -> None:
        """Everything that this worker can load is loaded."""
        now = self._now()
        for engine, found in zip(self._roster.members, seat.loaded, strict=True):
            if isinstance(found, wire.Fault):
                engine.faulted(seat, str(found), crash=False)
                continue
            for candidate, why in found.rejected:
                engine.ranking.reject(candidate, now, why)
        seat.limit_mib = limit_mib(seat)
        faults = [found for found in seat.loaded if isinstance(found, wire.Fault)]
        if seat.probing is not None:
            self._passed(seat)
        elif len(faults) == len(seat.loaded):
            self._roster.end(seat)
            for engine in self._roster.members:
                engine.ranking.forget()
            self._useless([str(fault) for fault in faults], final=True)
        elif seat.role is Role.SERVE:
            if len(self._roster.serving) < self._wanted or any(map(self._roster.why_replace, self._roster.serving)):
                self._serve(seat)
            else:  # a standby was faster
                self._roster.retire(seat)
        self.reconcile()

    def answered(self, seat: Seat, job: Job | None, answer: wire.Answer) -> None:
        """One answer of a packet."""
        if answer.kind is Kind.FAILED:
            self._device_failed(seat, job, _decode_fault(answer.payload))
        elif job is None:
            self._passed(seat)
        else:
            loaded = seat.loaded[job.engine.tenant]
            assert isinstance(loaded, wire.Loaded)
            if answer.kind is Kind.REFUSED:
                job.engine.refused(job, _decode_fault(answer.payload), loaded)
                return
            job.engine.done(job, answer.took_us, _decode_result(answer.payload), loaded, bytes(answer.picture))

    def idle(self, seat: Seat) -> None:
        """Everything in hand is answered."""
        if seat.role is Role.LEAVE:
            self._roster.retire(seat)
            self.reconcile()
        elif seat.rss_mib > seat.limit_mib and not seat.tired:
            seat.tired = f"worker {seat.pid} grew to {seat.rss_mib} MiB, {seat.limit_mib} are allowed"
            self.reconcile()
        self._desk.release(seat)

    def ended(self, seat: Seat, why: str) -> None:
        """A worker is gone; its jobs go to the next."""
        serving, jobs = seat in self._roster.serving, seat.take_back()
        self._roster.end(seat)
        for engine in {job.engine for job in jobs} or {*self._roster.members}:
            engine.faulted(seat, why, crash=True)
        self._blame(seat, jobs, why)
        if serving:
            self._crashes = 0 if seat.served else self._crashes + 1
            for engine in self._roster.members:
                engine.restarting(why, serving=bool(self._roster.serving))
            self._wait(_backoff(self._crashes - _START_FAILURES, _CRASH_BACKOFF_S, _CRASH_BACKOFF_MAX_S))
        elif seat.role is Role.SERVE:
            self._useless([why] * len(self._roster.members), final=False)
        elif seat.role is Role.STANDBY:  # without anything to do: not at once again
            self._standby_failures += 1
            pause = _backoff(self._standby_failures, _START_BACKOFF_S, _START_BACKOFF_MAX_S)
            self._standby_not_before = self._now() + pause
        for engine in self._roster.members:
            engine.redo([job for job in jobs if job.engine is engine], why, overdue=seat.overdue)
        self.reconcile()
        self._desk.release(seat)

    # --- blame --------------------------------------------------------------------------------------------------

    def _blame(self, seat: Seat, jobs: Sequence[Job], why: str) -> None:
        """Whose fault it was: who was tried, or loaded, or had the work; without either, the only model there is."""
        now = self._now()
        if self._roster.is_outdated(seat):  # a candidate that fails with another bundle may work with this
            return
        if seat.probing is not None:
            tenant, candidate = seat.probing
            self._roster.members[tenant].ranking.fail(candidate, now, why)
        elif not seat.loaded:
            if (trying := seat.trying) is not None:
                self._roster.members[trying.tenant].ranking.fail(trying.order[trying.at], now, why)
        elif len(engines := {job.engine for job in jobs} or {*self._roster.members}) == 1:
            (engine,) = engines
            loaded = seat.loaded[engine.tenant]
            if isinstance(loaded, wire.Loaded) and engine.ranking.fail(loaded.candidate, now, why):
                for job in jobs:
                    job.blamed.append(loaded.candidate)

    def _device_failed(self, seat: Seat, job: Job | None, fault: wire.Fault) -> None:
        """A runtime raised, or computes wrongly. The worker lives, and may go on with its other models."""
        jobs = [job] if job is not None else []
        self._roster.members[fault.tenant].faulted(seat, fault.what, crash=False)
        if seat.probing is not None or len(self._roster.members) == 1:
            seat.in_hand = {**dict.fromkeys((-1,) if jobs else (), job), **seat.in_hand}
            seat.dismiss()
            self.ended(seat, f"worker {seat.pid}: {fault}")
            return
        engine = self._roster.members[fault.tenant]
        seat.shunned.add(fault.tenant)
        seat.tired = f"worker {seat.pid}: {fault}"
        loaded = seat.loaded[fault.tenant]
        if isinstance(loaded, wire.Loaded) and engine.ranking.fail(loaded.candidate, self._now(), fault.what):
            for each in jobs:
                each.blamed.append(loaded.candidate)
        engine.redo(jobs, fault.what, overdue=False)
        self.reconcile()

    def _useless(self, why: Sequence[str], *, final: bool) -> None:
        """A worker ended before it could serve: why, by model."""
        self._start_failures += 1
        if not self._roster.serving and (final or self._start_failures >= _START_FAILURES):
            for engine in self._roster.members:
                engine.fail(why[engine.tenant])
        self._wait(_backoff(self._start_failures, _START_BACKOFF_S, _START_BACKOFF_MAX_S))

    def _passed(self, seat: Seat) -> None:
        """A probe has reproduced the golden samples, once more; enough of it, and it serves."""
        assert seat.probing is not None
        tenant, candidate = seat.probing
        ranking, found = self._roster.members[tenant].ranking, seat.loaded[tenant]
        if isinstance(found, wire.Fault):
            self._roster.end(seat)
            self._blame(seat, (), str(found))
            return
        seat.passes += 1
        if seat.passes < self._recovery.passes:
            pause = self._recovery.hold_s / (self._recovery.passes - 1)
            asyncio.get_running_loop().call_later(pause, self._check, seat, tenant)
            return
        ranking.close(candidate, self._now())
        seat.probing = None
        if any(self._roster.why_replace(other) for other in self._roster.serving):
            self._serve(seat)
        else:
            self._roster.retire(seat)
        self.reconcile()

    def _check(self, seat: Seat, tenant: int) -> None:
        if not seat.over:
            seat.check(tenant)

    # --- what should be -----------------------------------------------------------------------------------------

    def reconcile(self) -> None:
        """Start, switch and end workers until what is there is what should be."""
        if self._roster.tasks is None:
            return
        now = self._now()
        standby = next((seat for seat in self._roster.seats if seat.role is Role.STANDBY), None)
        lacking = self._wanted - len(self._roster.serving)
        outdated = [seat for seat in self._roster.serving if self._roster.why_replace(seat)]
        if (
            standby is not None
            and standby.is_ready
            and (lacking > 0 or (outdated and not self._roster.why_replace(standby)))
        ):
            self._serve(standby)
            self.reconcile()
            return
        starting = sum(seat.role is Role.SERVE for seat in self._roster.seats) - len(self._roster.serving)
        wanted = max(lacking, 1 if outdated else 0) - starting
        looks = [self._not_before] if wanted > 0 else []
        if now >= self._not_before:
            for _ in range(wanted):
                self._roster.start(Role.SERVE, [engine.ranking.order() for engine in self._roster.members])
        if lacking <= 0:
            looks += self._spare(standby, now)
        self._look_again(min((when for when in looks if when > now), default=NEVER))

    def _spare(self, standby: Seat | None, now: float) -> list[float]:
        """Probe and standby, while there is somebody to serve; when to look again."""
        looks = []
        if not any(seat.probing for seat in self._roster.seats):
            tenant, due, candidate = self._roster.probe_due()
            if candidate is not None and due <= now:
                orders = [engine.ranking.order() for engine in self._roster.members]
                orders[tenant] = (candidate,)
                self._roster.start(Role.PROBE, orders, probing=(tenant, candidate))
            else:
                looks.append(due)
        if standby is not None and standby.is_ready and self._roster.misplaced(standby):
            self._roster.end(standby)
            standby = None
        if standby is None and self._standby and now < self._standby_not_before:
            looks.append(self._standby_not_before)
        elif standby is None and self._standby:
            size = self._roster.serving[0].fresh_mib
            if self._budget.admit(size):
                self._roster.start(Role.STANDBY, self._roster.spare_orders(), admitted_mib=size)
        return looks

    def _serve(self, seat: Seat) -> None:
        """From now on this worker is given jobs; who served in its place goes when it has nothing in hand."""
        seat.role = Role.SERVE
        self._budget.dismiss(seat.admitted_mib)
        seat.admitted_mib = 0
        self._start_failures = self._standby_failures = 0
        self._roster.serving.append(seat)
        lacks = False
        for engine, found in zip(self._roster.members, seat.loaded, strict=True):
            if isinstance(found, wire.Loaded):
                engine.ranking.close(found.candidate, self._now())
                engine.served_by(found)
            else:
                lacks = True
                engine.fail(str(found))
        # a worker that lacks a model is replaced, each time later
        self._lacking = self._lacking + 1 if lacks else 0
        self._wait(_backoff(self._lacking, _START_BACKOFF_S, _START_BACKOFF_MAX_S))
        if len(self._roster.serving) > self._wanted:
            old = next(
                (other for other in self._roster.serving if other is not seat and self._roster.why_replace(other)), None
            )
            self._roster.leave(old or self._roster.serving[0])
        self.dispatch()

    def _wait(self, pause: float) -> None:
        """Before the next worker is started."""
        self._not_before = self._now() + pause if pause else 0.0

    def _look_again(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if when < NEVER:
            self._timer = asyncio.get_running_loop().call_at(when, self.reconcile)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


def _backoff(failures: int, first: float, most: float) -> float:
    """Doubling from `first` at one failure; 0 for none or fewer."""
    return 0.0 if failures <= 0 else min(most, first * 2.0 ** min(failures - 1, 30))
