"""Who on the bus is asked when, sans-I/O: times in, turns out.

A device that answers is asked once a period; on a bus that is too slow for all periods it is whose turn is longest due,
so all get the same share. A device that did not answer is asked again only in time that nobody else wants: in a pause
long enough for it to stay silent once more, or within a small share of the bus's time. So a dead device costs the others
the one turn in which it died and nearly nothing after, however many there are.
"""

from __future__ import annotations

import math

PROBE_SHARE = 0.05  # of the bus's time, for those that do not answer, when there are no pauses
BACKOFF_MAX_S = 30.0
SILENT_AFTER = 3  # turns without an answer


class Slot:
    """One device's place on the bus.

    Args:
        period_s: between two turns.
        cost_s: how long a turn takes at most when the device does not answer.

    Attributes:
        due: when its next turn should be, loop time.
        failures: turns without an answer since the last one with; 0 is healthy.
    """

    def __init__(self, name: str, period_s: float, cost_s: float, now: float) -> None:
        self.name = name
        self.period_s = period_s
        self.cost_s = cost_s
        self.due = now
        self.failures = 0


class Schedule:
    """All slots of one bus."""

    def __init__(self, slots: list[Slot]) -> None:
        self.slots = slots
        self._probes_from = -math.inf  # outside of pauses
        self._in_pause = False  # the turn that was given last cost nobody anything

    def next(self, now: float) -> tuple[Slot | None, float]:
        """Whose turn it is; nobody's, and for how many seconds not."""
        healthy = min((s for s in self.slots if not s.failures), key=_due, default=None)
        failing = min((s for s in self.slots if s.failures), key=_due, default=None)
        pause = healthy.due - now if healthy else math.inf
        wait = pause
        self._in_pause = False
        if failing is not None:
            self._in_pause = pause >= failing.cost_s
            allowed = failing.due if self._in_pause else max(failing.due, self._probes_from)
            if allowed <= now:
                return failing, 0.0
            wait = min(pause, allowed - now)
        if healthy is not None and pause <= 0:
            return healthy, 0.0
        return None, wait

    def answered(self, slot: Slot, now: float) -> None:
        """It had its turn and answered, with readings or a refusal."""
        slot.failures = 0
        slot.due = max(slot.due + slot.period_s, now)

    def failed(self, slot: Slot, now: float, took_s: float) -> None:
        """It had its turn and was silent for `took_s`."""
        slot.failures += 1
        pause = min(slot.period_s * 2 ** (min(slot.failures, 20) - 1), max(BACKOFF_MAX_S, slot.period_s))
        # not before a late answer would be over: it must not pass for the answer to the next question
        slot.due = now + max(pause, slot.cost_s)
        if not self._in_pause:
            self._probes_from = now + took_s * (1 / PROBE_SHARE - 1)

    def soon(self, slot: Slot, now: float) -> None:
        """It was written to: what it says now is worth a turn, if it speaks at all."""
        if not slot.failures:
            slot.due = min(slot.due, now)


def _due(slot: Slot) -> float:
    return slot.due
