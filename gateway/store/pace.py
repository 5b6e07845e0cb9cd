"""How long a reading may wait for the commit that takes it along.

Three settings bound it. `commit_s` is what is waited when somebody listens, the disk is quick and the card is spared: it
is the latency. `durability_s` is what is declared to be bearable: readings that came less than that ago may be asked for
again (a node keeps them until they are acknowledged) or be lost (another source). Between the two the wait follows the
disk, so that a slow card is busy with commits at most a third of the time; and it follows `wear_day`, the bytes a day
that the disk may be written with: a commit costs 14 KB and a flush of the card however little is in it, so what comes
seldom is committed at once, and a steady flow as rarely as the budget asks for. It is the whole window while no uplink is
up, when nobody sees the latency, and large batches mean a smaller spool, a faster catching up and a card that lives
longer.
"""

from __future__ import annotations

from collections.abc import Callable

from gateway.store.wear import process_written

PIECES = 96  # frames of one node in a group: three eighths of what its ring holds until they are acknowledged
SAVED_S = 10.0  # of the budget that quiet times leave for what comes then
OWED_S = 60.0  # of the budget that what was written too fast can take from what follows
_DAY_S = 86_400.0
_BUSY = 2.0  # waits at least so many times as long as a commit takes
_SMOOTH = 0.1
_STEADY = 8  # groups in a row make a flow


class Pace:
    """The wait before a commit.

    Args:
        commit_s, durability_s: see above, seconds; `durability_s` below `commit_s` counts as the same.
        wear_day: bytes a day, 0 for as many as there are.
        written: bytes that were written to the disk so far, for whatever purpose.
    """

    def __init__(
        self,
        commit_s: float,
        durability_s: float,
        wear_day: float = 0.0,
        written: Callable[[], int] = process_written,
    ) -> None:
        self._commit_s = commit_s
        self._durability_s = max(commit_s, durability_s)
        self._took_s = 0.0
        self._last = float("-inf")
        self._row = 0  # groups, each within the window of the one before
        self._bytes_s = wear_day / _DAY_S
        self._written = written
        self._known = written() if wear_day else 0
        self._paid_at = float("-inf")  # when what is written will have been what the budget allows

    def took(self, seconds: float, now: float) -> None:
        """A commit took so long, and is over at `now` (loop time)."""
        self._took_s += _SMOOTH * (seconds - self._took_s)
        if self._bytes_s:
            written = self._written()
            paid_at = max(self._paid_at, now - SAVED_S) + (written - self._known) / self._bytes_s
            self._paid_at = min(paid_at, now + OWED_S)
            self._known = written

    def begins(self, now: float) -> bool:
        """A group begins at `now` (loop time); whether it is part of a steady flow.

        What comes after a pause longer than the window is not, nor what comes first of all: it is taken soon.
        """
        since, self._last = now - self._last, now
        self._row = self._row + 1 if since <= self._durability_s else 0
        return self._row >= _STEADY

    def ends(self, now: float) -> None:
        """The group is on its way to the disk: a pause begins here, the window that it waited was none."""
        self._last = now

    def due(self, since: float, *, eager: bool, listening: bool) -> float:
        """When (loop time) what has waited since then is to be committed.

        Args:
            eager: something in it is urgent, the flow begins, or a node's ring holds no more: the budget does not count.
            listening: somebody waits for readings right now.
        """
        soon = since + min(self._durability_s, max(self._commit_s, _BUSY * self._took_s))
        if eager:
            return soon
        latest = since + self._durability_s
        return min(latest, max(soon, self._paid_at)) if listening else latest
