"""How long a reading may wait for the commit that takes it along.

Two settings bound it. `commit_s` is what is waited when somebody listens and the disk is quick: it is the latency.
`durability_s` is what is declared to be bearable: readings that came less than that ago may be asked for again (a node
keeps them until they are acknowledged) or be lost (another source). Between the two the wait follows the disk, so that a
slow card is busy with commits at most a third of the time; and it is the whole window while no uplink is up, when nobody
sees the latency, and large batches mean a smaller spool, a faster catching up and a card that lives longer.
"""

from __future__ import annotations

PIECES = 64  # frames of a node in one group: a quarter of what its ring holds until they are acknowledged
_BUSY = 2.0  # waits at least so many times as long as a commit takes
_SMOOTH = 0.1
_STEADY = 8  # groups in a row make a flow


class Pace:
    """The wait before a commit, seconds; `durability_s` below `commit_s` counts as the same."""

    def __init__(self, commit_s: float, durability_s: float) -> None:
        self._commit_s = commit_s
        self._durability_s = max(commit_s, durability_s)
        self._took_s = 0.0
        self._last = float("-inf")
        self._row = 0  # groups, each within the window of the one before

    def took(self, seconds: float) -> None:
        """A commit took so long."""
        self._took_s += _SMOOTH * (seconds - self._took_s)

    def begins(self, now: float) -> bool:
        """A group begins at `now` (loop time); whether it is part of a steady flow.

        What comes after a pause longer than the window is not, nor what comes first of all: it is taken soon.
        """
        since, self._last = now - self._last, now
        self._row = self._row + 1 if since <= self._durability_s else 0
        return self._row >= _STEADY

    def wait_s(self, *, eager: bool) -> float:
        """How long a group may wait; `eager` when somebody listens, something in it is urgent or the flow begins."""
        if eager:
            return min(self._durability_s, max(self._commit_s, _BUSY * self._took_s))
        return self._durability_s
