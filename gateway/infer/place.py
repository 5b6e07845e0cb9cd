"""Measuring a model's candidates on this machine: `python -m gateway.infer.place '<Order as JSON>'`.

The daemon starts it as a process of its own, at the lowest priority, when nothing else is going on; `octogate bench`
does the same in its own process. It may be stopped (SIGSTOP) and continued at any time: what was being timed
meanwhile is thrown away and done again. Only a finished measurement is written, as a whole.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from gateway.child import die_with_parent
from gateway.errors import ModelError
from gateway.infer import inventory, ranking, timing
from gateway.infer.bundle import Bundle
from gateway.infer.candidate import CPU, Candidate
from gateway.infer.manifest import Manifest
from gateway.infer.order import Order
from gateway.infer.ranking import Measured, Placement
from gateway.infer.timing import Rejected, Sample, Seat, Turn

MEASURED, FAILED, UNCHANGED = 0, 1, 3  # exit statuses
SCREEN_S = 0.3  # of the first, rough timing of each candidate
AT_LEAST = 3  # inferences in any timing
NEAR = 2.0  # whose best run takes at most so many times the best one's takes part in the rounds
FINALISTS = 6  # at most, and no more than fit into half of the free memory
ROUNDS = 9

Tell = Callable[[int, int, str], None]
"""Called before each step: steps done, steps in all as far as is known, what comes."""
T = TypeVar("T")


class Outcome(NamedTuple):
    placement: Placement
    fresh: bool  # measured now; else what was remembered still holds


class Content(NamedTuple):
    """What is needed of a bundle."""

    manifest: Manifest
    digest: str
    samples: tuple[Sample, ...]


class Quick(NamedTuple):
    """The first impression of a candidate that works; `best` is of the objective, from its fastest run."""

    measured: Measured
    best: float = 0.0


async def place(order: Order, tell: Tell, *, again: bool) -> Outcome:
    """Measure one model's candidates and rank them.

    Args:
        again: also when what is remembered still holds.

    Raises:
        ModelError: the bundle cannot be read, is not trusted, or the pinned backend takes none of its variants.
        OSError: the result cannot be written.
    """
    tell(0, 0, "devices")
    content = await asyncio.to_thread(_content, order)
    deadline_s = order.deadline_s or content.manifest.limits.deadline_ms / 1000
    order = msgspec.structs.replace(order, deadline_s=deadline_s)
    found = await inventory.devices(order)
    key = inventory.key(order, content.digest, found)
    remembered = ranking.load(Path(order.cache)) if order.cache else None
    if remembered is not None and remembered.key == key and remembered.ranking and not again:
        return Outcome(remembered, fresh=False)
    if remembered is not None and remembered.key.bundle != content.digest:
        remembered = None  # of another model by now
    possible, measured = inventory.candidates(order, content.manifest, found)
    safe = order.safe(content.manifest)
    measured += await _Contest(order, content.samples, tell).run(possible, remembered, safe)
    measured.sort(key=lambda m: [str(part) for part in msgspec.structs.astuple(m.candidate)])
    before = _before(measured, remembered, safe)
    order_of_merit = ranking.rank(measured, order.objective, present=before, safe=safe)
    placement = Placement(1, key, before, order_of_merit, tuple(measured))
    if order_of_merit and order.cache and order.keep:
        await asyncio.to_thread(ranking.save, Path(order.cache), placement)
    return Outcome(placement, fresh=True)


def _content(order: Order) -> Content:
    with Bundle(Path(order.bundle)) as bundle:
        verified = bundle.verify(map(Path, order.keys), allow_unsigned=order.allow_unsigned)
        samples = tuple(Sample(bytes(bundle.member(g.input)), g.media) for g in bundle.manifest.golden)
        return Content(bundle.manifest, verified.digest, samples)


def _before(measured: Sequence[Measured], remembered: Placement | None, safe: Sequence[Candidate]) -> Candidate | None:
    works = {m.candidate for m in measured if m.figures}
    order = (remembered.ranking[:1] if remembered else ()) + tuple(safe)
    return next((candidate for candidate in order if candidate in works), None)


class _Contest:
    """The candidates of one model against each other: first each alone, then the good ones in turns."""

    def __init__(self, order: Order, samples: Sequence[Sample], tell: Tell) -> None:
        self._order = order
        self._samples = samples
        self._tell = tell
        self._done = self._total = 0
        self._pauses = 0

    async def run(
        self, possible: Sequence[Candidate], remembered: Placement | None, safe: Sequence[Candidate]
    ) -> list[Measured]:
        """One line for each of `possible`."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGCONT, self._continued)
        try:
            self._total = len(possible)
            lines = {}
            for candidate in possible:
                self._step(f"try {candidate}")
                lines[candidate] = await self._undisturbed(partial(self._try, candidate))
            present = _before([quick.measured for quick in lines.values()], remembered, safe)
            finals = await self._rounds(self._finalists(lines, present))
            result = {candidate: quick.measured for candidate, quick in lines.items()} | finals
            return [_held(measured, remembered) for measured in result.values()]
        finally:
            loop.remove_signal_handler(signal.SIGCONT)

    async def _try(self, candidate: Candidate) -> Quick:
        """Load it, have it prove itself, and time it briefly."""
        seat = Seat(self._order, candidate, self._samples)
        async with _seated([seat]):
            try:
                await seat.ready()
                turn = await seat.turn(SCREEN_S, AT_LEAST)
            except Rejected as error:
                return Quick(Measured(candidate, rejected=str(error)[:4000]))
            figures = timing.figures([turn], seat.pss())
        # noise only ever adds: of a handful of runs the fastest tells most
        best = float(min(turn.times_us))
        if self._order.objective == "energy":
            best = figures.cpu_us
        elif self._order.objective == "throughput":
            best /= self._copies(candidate)
        return Quick(Measured(candidate, figures), best)

    def _finalists(self, lines: dict[Candidate, Quick], present: Candidate | None) -> list[Candidate]:
        """The present choice and those that might be better, as many as memory holds at once, two in any case."""
        good = sorted((quick.best, i, c) for i, (c, quick) in enumerate(lines.items()) if quick.measured.figures)
        near = [c for best, _, c in good if best <= NEAR * good[0][0] and c != present][: FINALISTS - 1]
        room = timing.memory_available() // 2
        chosen: list[Candidate] = [] if present is None else [present]
        for candidate in near:
            needs = sum(self._memory(lines[c].measured) for c in (*chosen, candidate))
            if len(chosen) < 2 or needs <= room:
                chosen.append(candidate)
        return chosen

    async def _rounds(self, finalists: Sequence[Candidate]) -> dict[Candidate, Measured]:
        """A B C, A B C, ...: what disturbs, disturbs all alike."""
        seats = [Seat(self._order, c, self._samples, self._copies(c)) for c in finalists]
        turns: dict[Candidate, list[Turn]] = {candidate: [] for candidate in finalists}
        rejected: dict[Candidate, str] = {}
        self._total += len(seats) * (ROUNDS + 1)
        async with _seated(seats):
            for number in range(ROUNDS + 1):
                for seat in seats:
                    candidate = seat.candidate
                    self._step(f"round {number}: {candidate}")
                    if candidate in rejected:
                        continue
                    try:
                        if number == 0:
                            await self._undisturbed(seat.ready)
                        else:
                            turns[candidate].append(await self._undisturbed(partial(self._turn, seat)))
                    except Rejected as error:
                        rejected[candidate] = str(error)[:4000]
            return {
                seat.candidate: Measured(seat.candidate, rejected=rejected[seat.candidate])
                if seat.candidate in rejected
                else Measured(seat.candidate, timing.figures(turns[seat.candidate], seat.pss()), final=True)
                for seat in seats
            }

    async def _turn(self, seat: Seat) -> Turn:
        return await seat.turn(self._order.seconds / ROUNDS, AT_LEAST)

    async def _undisturbed(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """The result of an attempt during which this process was not stopped; deadlines that passed while it was
        stopped do not count either.
        """
        while True:
            pauses = self._pauses
            try:
                result = await attempt()
            except Rejected:
                if self._pauses == pauses:
                    raise
                continue
            if self._pauses == pauses:
                return result

    def _continued(self) -> None:
        self._pauses += 1

    def _copies(self, candidate: Candidate) -> int:
        """Workers at once: throughput is that of the whole budget."""
        if self._order.objective != "throughput" or candidate.device != CPU:
            return 1
        return max(1, self._order.cpus // candidate.threads)

    def _memory(self, measured: Measured) -> int:
        return self._copies(measured.candidate) * (measured.figures.pss if measured.figures else 0)

    def _step(self, what: str) -> None:
        self._tell(self._done, self._total, what)
        self._done += 1


def _held(measured: Measured, remembered: Placement | None) -> Measured:
    """Some devices (an Edge TPU) can be opened by one process only. When the present choice cannot be loaded on its
    device, it is most likely the gateway itself who has it: its figures of last time count. If the device is broken,
    the engine finds out by itself. A wrong answer is never excused.
    """
    if remembered is None or not measured.rejected or measured.candidate != remembered.ranking[0]:
        return measured
    figures = remembered.figures_of(measured.candidate)
    if measured.candidate.device == CPU or figures is None or "golden sample" in measured.rejected:
        return measured
    return Measured(measured.candidate, figures, f"in use? {measured.rejected}"[:4000], final=True)


@asynccontextmanager
async def _seated(seats: Sequence[Seat]) -> AsyncIterator[None]:
    """The workers of these candidates, for as long as the block runs; it must not raise."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(seat.supervise(), name=f"seat {seat.candidate}") for seat in seats]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()


def main(argument: str, tell: Tell = lambda done, total, what: None) -> int:
    """The exit status; the last line on standard error says why it failed."""
    order = msgspec.json.decode(argument, type=Order)
    die_with_parent(order.parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # goes to the whole group; the daemon ends this process itself
    timing.lowest_priority()
    try:
        outcome = asyncio.run(place(order, tell, again=False))
    except (ModelError, OSError) as error:
        print(error, file=sys.stderr)
        return FAILED
    if not outcome.placement.ranking:
        print(no_candidate(order, outcome.placement), file=sys.stderr)
        return FAILED
    return MEASURED if outcome.fresh else UNCHANGED


def no_candidate(order: Order, placement: Placement) -> str:
    why = "; ".join(f"{m.candidate}: {m.rejected}" for m in placement.measured)
    return f"model '{order.name}': no candidate runs here: {why or 'the pins of its config leave none'}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
