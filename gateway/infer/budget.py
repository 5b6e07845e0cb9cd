"""What inference may take of this machine: processor tokens for work in hand, and memory for standby workers.

One for the whole gateway. A token is a thread: a job holds as many as its candidate's threads while a worker has it.
Pure bookkeeping in the loop's thread: no tasks, no timers.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

Claim = tuple[int, int]
"""Minus the priority, and since when the oldest job waits (ns): the smallest goes first."""

_MEMINFO = Path("/proc/meminfo")
_KEEP_FREE_MIB = 192  # of the machine's memory: not for standby workers


class Claimant(Protocol):
    """Who waits for tokens."""

    def claim(self) -> Claim | None:
        """None when nothing waits any more."""

    def dispatch(self) -> None:
        """Tokens may be there: `take` again."""


class Budget:
    """Tokens by priority; of equals, who waits longest.

    Args:
        cpus: tokens; 0 takes as many as processors may be used here.
        standby_mib: resident memory that all standby workers may take together; 0 is none.
    """

    def __init__(self, cpus: int = 0, standby_mib: int = 0) -> None:
        self.cpus = cpus or len(os.sched_getaffinity(0))
        self._free = self.cpus
        self._standby_mib = standby_mib
        self._waiting: dict[Claimant, None] = {}

    def take(self, who: Claimant, tokens: int) -> bool:
        """Take tokens, or be called (`dispatch`) when it is worth another try. More than all there are is all."""
        tokens = min(tokens, self.cpus)
        if tokens <= self._free and (not self._waiting or self._first() is who):
            self._waiting.pop(who, None)
            self._free -= tokens
            return True
        self._waiting[who] = None
        if tokens <= self._free and self._first() is who:
            return self.take(who, tokens)
        return False

    def give(self, tokens: int, who: Claimant) -> None:
        """Give back what was taken; who waits, the giver too, is served in order, until the first that does not fit."""
        self._free += min(tokens, self.cpus)
        if not self._waiting:
            who.dispatch()
            return
        self._waiting[who] = None
        while self._free and (first := self._first()) is not None:
            waiting = len(self._waiting)
            first.dispatch()
            if len(self._waiting) >= waiting:  # still waits: for more tokens than there are
                return

    def withdraw(self, who: Claimant) -> None:
        """Nothing waits there any more."""
        self._waiting.pop(who, None)

    def _first(self) -> Claimant | None:
        best: tuple[Claim, Claimant] | None = None
        for who in [*self._waiting]:
            claim = who.claim()
            if claim is None:
                del self._waiting[who]
            elif best is None or claim < best[0]:
                best = (claim, who)
        return best[1] if best else None

    def admit(self, mib: int) -> bool:
        """Whether a standby worker of this size may be; if so `dismiss` it in the end."""
        if mib > self._standby_mib or _available_mib() < mib + _KEEP_FREE_MIB:
            return False
        self._standby_mib -= mib
        return True

    def dismiss(self, mib: int) -> None:
        self._standby_mib += mib


def _available_mib() -> int:
    for line in _MEMINFO.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) >> 10
    return 0
