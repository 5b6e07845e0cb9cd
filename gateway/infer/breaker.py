"""Who may compute a model, and who may not for now: a ranking of candidates with a circuit breaker each.

Pure: time is an argument (seconds, monotonic), nothing is started here. A breaker opens at the first fault, for there
is somebody else to do the work; it closes only when a probe has passed, and a candidate that fails again soon after
that waits longer each time.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

from gateway.infer.candidate import Candidate

NEVER = float("inf")


class Recovery(NamedTuple):
    """How a candidate that failed is brought back.

    Attributes:
        first_s: the wait before the first probe; doubles with each fault, up to `most_s`.
        passes: how often it must reproduce the golden samples, spread over `hold_s`.
        calm_s: who fails within this time after coming back goes on where its waits had ended.
    """

    first_s: float = 5.0
    most_s: float = 600.0
    passes: int = 3
    hold_s: float = 5.0
    calm_s: float = 300.0


RECOVERY = Recovery()


class State(StrEnum):
    CLOSED = "closed"  # may serve
    OPEN = "open"  # failed; probed at `retry_at`
    ABSENT = "absent"  # never loaded here, and nobody expected it to: not probed


class Breaker:
    """Of one candidate."""

    def __init__(self) -> None:
        self.state = State.CLOSED
        self.why = ""
        self.opened_at = 0.0
        self.retry_at = NEVER
        self._faults = 0  # in a row, without `calm_s` of service between them
        self._closed_at = -NEVER

    def fail(self, now: float, why: str, recovery: Recovery) -> None:
        if self.state is State.CLOSED and now - self._closed_at > recovery.calm_s:
            self._faults = 0
        self._faults += 1
        wait = min(recovery.most_s, recovery.first_s * 2.0 ** min(self._faults - 1, 30))
        self.state, self.why, self.opened_at, self.retry_at = State.OPEN, why, now, now + wait

    def close(self, now: float) -> None:
        self.state, self.why, self.retry_at, self._closed_at = State.CLOSED, "", NEVER, now

    def forgive(self) -> None:
        """It was not the candidate's fault."""
        self.state, self.why, self.retry_at = State.CLOSED, "", NEVER
        self._faults = max(0, self._faults - 1)

    def miss(self, why: str) -> None:
        self.state, self.why, self.retry_at = State.ABSENT, why, NEVER


class Ranking:
    """Candidates, the best first.

    Args:
        candidates: a measured or configured ranking, of which all are expected to work; empty means that the worker
            tries the bundle's own order and tells it (`learn`): of those, what does not load here is simply absent.
    """

    def __init__(self, candidates: Sequence[Candidate] = (), recovery: Recovery = RECOVERY) -> None:
        self._recovery = recovery
        self._order = tuple(candidates)
        self._expected = bool(candidates)
        self._breakers: dict[Candidate, Breaker] = {candidate: Breaker() for candidate in candidates}

    def replace(self, candidates: Sequence[Candidate]) -> None:
        """A new order; a candidate that is in both keeps its breaker."""
        self._order, self._expected = tuple(candidates), bool(candidates)
        self._breakers = {candidate: self._breakers.get(candidate, Breaker()) for candidate in candidates}
        for breaker in self._breakers.values():
            if breaker.state is State.ABSENT:  # whoever ranked it has seen it work
                breaker.forgive()

    def learn(self, candidates: Sequence[Candidate]) -> None:
        """The bundle's own order, as the worker found it."""
        if not self._expected and not self._order:
            self._order = tuple(candidates)
            self._breakers = {candidate: Breaker() for candidate in candidates}

    def forget(self) -> None:
        """What was learnt, for the bundle may be another next time."""
        if not self._expected:
            self._order, self._breakers = (), {}

    def order(self) -> tuple[Candidate, ...]:
        """Whom to try: those in order by rank, then those who failed, the longest ago first."""
        closed = [c for c in self._order if self._breakers[c].state is State.CLOSED]
        failed = [c for c in self._order if self._breakers[c].state is State.OPEN]
        failed.sort(key=lambda c: self._breakers[c].opened_at)
        return (*closed, *failed)

    def spares(self, serving: Candidate) -> tuple[Candidate, ...]:
        """Whom to keep ready beside `serving`: the next in order; on the CPU the same once more when there is none."""
        others = [c for c in self._order if c != serving and self._breakers[c].state is State.CLOSED]
        return (*others, *((serving,) if serving.device == "CPU" else ()))

    def better_than(self, serving: Candidate) -> bool:
        """Whether somebody in order should serve instead."""
        best = next((c for c in self._order if self._breakers[c].state is State.CLOSED), None)
        return best is not None and best != serving

    def preferred(self) -> Candidate | None:
        """Who would serve if nothing had failed."""
        return next((c for c in self._order if self._breakers[c].state is not State.ABSENT), None)

    def is_closed(self, candidate: Candidate) -> bool:
        return candidate in self._breakers and self._breakers[candidate].state is State.CLOSED

    def fail(self, candidate: Candidate, now: float, why: str) -> bool:
        """A fault of a candidate while it served or was probed; whether it was known and in order."""
        breaker = self._breakers.get(candidate)
        if breaker is None:
            return False
        was = breaker.state
        breaker.fail(now, why, self._recovery)
        return was is State.CLOSED

    def reject(self, candidate: Candidate, now: float, why: str) -> None:
        """It did not load, or not rightly."""
        if (breaker := self._breakers.get(candidate)) is None or breaker.state is State.OPEN:
            return
        if self._expected:
            breaker.fail(now, why, self._recovery)
        else:
            breaker.miss(why)

    def close(self, candidate: Candidate, now: float) -> None:
        """It serves: tried and found right, or there is nobody else."""
        if candidate in self._breakers and not self.is_closed(candidate):
            self._breakers[candidate].close(now)

    def forgive(self, candidates: Sequence[Candidate]) -> None:
        """What opened these was the input's fault."""
        for candidate in candidates:
            if (breaker := self._breakers.get(candidate)) is not None and breaker.state is State.OPEN:
                breaker.forgive()

    def due(self) -> tuple[float, Candidate | None]:
        """The next probe: when, and of whom (the best of those that are due first)."""
        waiting = [c for c in self._order if self._breakers[c].state is State.OPEN]
        first = min(waiting, key=lambda c: self._breakers[c].retry_at, default=None)
        return (self._breakers[first].retry_at, first) if first is not None else (NEVER, None)

    def why(self, candidate: Candidate) -> str:
        return self._breakers[candidate].why if candidate in self._breakers else ""

    def states(self) -> tuple[tuple[str, str, str], ...]:
        """Candidate, state and reason, in order: for people."""
        return tuple((str(c), str(self._breakers[c].state), self._breakers[c].why) for c in self._order)
