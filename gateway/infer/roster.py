"""Who is in a crew: its models, its workers, how these come and go, and who would be better in their place."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from gateway.infer import wire
from gateway.infer.breaker import NEVER
from gateway.infer.budget import Budget
from gateway.infer.candidate import Candidate
from gateway.infer.seat import Listener, Role, Seat

if TYPE_CHECKING:
    from gateway.infer.engine import Engine

_GROWTH = 1.5  # a fresh worker may be near the limit: it is not replaced for less growth than this


class Roster:
    """The members and seats of one crew; see `Crew` for the arguments.

    Attributes:
        members: the models; the number of one is its tenant in every worker.
        seats: all workers that live.
        serving: those of them that are given jobs.
        tasks: where workers live; None while none may be started.
    """

    def __init__(
        self,
        command: list[str],
        budget: Budget,
        listener: Listener,
        *,
        standby: bool,
        nice: int,
        gentle: bool,
        max_input: int,
        start_deadline_s: float,
        recheck_s: float,
    ) -> None:
        self.members: list[Engine] = []
        self.seats: list[Seat] = []
        self.serving: list[Seat] = []
        self.tasks: asyncio.TaskGroup | None = None
        self._command, self._budget, self._listener = command, budget, listener
        self._standby = standby
        self._nice, self._gentle, self._max_input = nice, gentle, max_input
        self._start_deadline_s, self._recheck_s = start_deadline_s, recheck_s

    def why_replace(self, seat: Seat) -> str:
        """Why another should serve in its place, or nothing."""
        if seat.tired:
            return seat.tired
        if self.is_outdated(seat):
            return "there is another bundle"
        for engine, found in zip(self.members, seat.loaded, strict=True):
            if isinstance(found, wire.Fault) or engine.ranking.better_than(found.candidate):
                return f"{engine.name} could be computed better"
        return ""

    def is_outdated(self, seat: Seat) -> bool:
        """Whether it was started with a bundle that is no longer wanted."""
        return seat.bundles != tuple(engine.bundle for engine in self.members)

    def spare_orders(self) -> list[tuple[Candidate, ...]]:
        serving = self.serving[0].loaded
        return [
            engine.ranking.spares(found.candidate) if isinstance(found, wire.Loaded) else engine.ranking.order()
            for engine, found in zip(self.members, serving, strict=True)
        ]

    def misplaced(self, standby: Seat) -> bool:
        """Whether it was started for something else than would be now, and did not become that by chance."""
        if self.is_outdated(standby):
            return True
        orders = self.spare_orders()
        if standby.wish == orders:
            return False
        return any(
            isinstance(found, wire.Loaded) and found.candidate != order[0]
            for found, order in zip(standby.loaded, orders, strict=True)
            if order
        )

    def probe_due(self) -> tuple[int, float, Candidate | None]:
        """The next probe: of which model, when, of whom."""
        best: tuple[int, float, Candidate | None] = (0, NEVER, None)
        for engine in self.members:
            due, candidate = engine.ranking.due()
            if due < best[1]:
                best = (engine.tenant, due, candidate)
        return best

    def start(
        self,
        role: Role,
        orders: list[tuple[Candidate, ...]],
        *,
        probing: tuple[int, Candidate] | None = None,
        admitted_mib: int = 0,
    ) -> None:
        assert self.tasks is not None
        tenants = tuple(engine.setup(order) for engine, order in zip(self.members, orders, strict=True))
        setup = wire.Setup(
            tenants=tenants, nice=self._nice, gentle=self._gentle or bool(self.serving), recheck_s=self._recheck_s,
            parent=0, socket=-1, memory=-1, slot_bytes=self._max_input,
        )  # fmt: skip
        seat = Seat(self._command, setup, role, self._start_deadline_s, self._listener, probing)
        seat.wish, seat.admitted_mib = orders, admitted_mib
        self.seats.append(seat)
        self.tasks.create_task(seat.live(), name=f"worker of {tenants[0].name}")

    def leave(self, seat: Seat) -> None:
        self.serving.remove(seat)
        if seat.tired:
            for engine in self.members:
                engine.recycled(seat.tired)
        seat.role = Role.LEAVE
        if not seat.in_hand:
            self.retire(seat)

    def retire(self, seat: Seat) -> None:
        """A good worker that is not needed any more stands by, if that is what would be started next."""
        seat.role = Role.STANDBY
        free = self._standby and not any(s.role is Role.STANDBY and s is not seat for s in self.seats)
        if free and not seat.tired and not self.misplaced(seat) and self._budget.admit(seat.rss_mib):
            seat.admitted_mib = seat.rss_mib
        else:
            self.end(seat)

    def end(self, seat: Seat) -> None:
        """Forget it, and end it if it has not ended by itself."""
        self.seats.remove(seat)
        if seat in self.serving:
            self.serving.remove(seat)
        self._budget.dismiss(seat.admitted_mib)
        seat.admitted_mib = 0
        if not seat.over:
            seat.dismiss()


def limit_mib(seat: Seat) -> int:
    """What the authors say; a worker that is born large is not replaced for being as it is."""
    said = sum(found.limits.memory_mib for found in seat.loaded if isinstance(found, wire.Loaded))
    return max(said, int(seat.fresh_mib * _GROWTH))
