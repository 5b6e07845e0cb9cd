"""Which job goes to which worker next: by priority, then by age, as far as the budget goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.infer import wire
from gateway.infer.budget import Budget, Claim
from gateway.infer.candidate import CPU
from gateway.infer.seat import BATCH, Job, Seat

if TYPE_CHECKING:
    from gateway.infer.engine import Engine


class Dispatcher:
    """The waiting jobs of a crew's models, and the workers that may take them.

    Args:
        members: the models; their queues are taken from.
        serving: the workers; both lists are the crew's own and change under way.
    """

    def __init__(self, members: list[Engine], serving: list[Seat], budget: Budget) -> None:
        self._members = members
        self._serving = serving
        self._budget = budget

    def claim(self) -> Claim | None:
        """See `budget.Claimant`: of work that somebody here is free to do."""
        claims = [self._next(seat) for seat in self._serving if not seat.in_hand]
        return min((claim for claim, _ in filter(None, claims)), default=None)

    def dispatch(self) -> None:
        """Hand waiting jobs to idle workers."""
        for seat in self._serving:
            if seat.in_hand:
                continue
            if (found := self._next(seat)) is None:
                self._budget.withdraw(self)
                continue
            engine = found[1]
            loaded = seat.loaded[engine.tenant]
            assert isinstance(loaded, wire.Loaded)
            # another device computes there; here it only needs somebody for the steps before and after
            tokens = loaded.candidate.threads if loaded.candidate.device == CPU else 1
            if not self._budget.take(self, tokens):
                return
            seat.tokens = tokens
            seat.send(self._batch(engine, seat), engine.deadline_s(loaded))

    def release(self, seat: Seat) -> None:
        """This worker has nothing in hand any more: something else may be."""
        tokens, seat.tokens = seat.tokens, 0
        if tokens:
            self._budget.give(tokens, self)
        else:
            self.dispatch()

    def _next(self, seat: Seat) -> tuple[Claim, Engine] | None:
        """The model whose job goes first."""
        best: tuple[Claim, Engine] | None = None
        for engine in self._members:
            claim = engine.claim()
            if claim is not None and (best is None or claim < best[0]) and seat.takes(engine.tenant):
                best = (claim, engine)
        return best

    def _batch(self, engine: Engine, seat: Seat) -> list[Job]:
        """Its oldest job; of micro-models all that wait. Who was in hand when a worker failed goes alone."""
        jobs = [engine.queue.popleft()]
        if not engine.micro or jobs[0].attempts or not jobs[0].small:
            return jobs
        room = wire.INLINE_MAX
        waiting = 1 + sum(len(member.queue) for member in self._members)
        share = min(BATCH, -(-waiting // len(self._serving)))  # the other workers want some, too
        while len(jobs) < share and (found := self._next(seat)) is not None and found[1].micro:
            job = found[1].queue[0]
            room -= len(job.data) + len(job.media)
            if job.attempts or room < 0:
                break
            jobs.append(found[1].queue.popleft())
        return jobs
