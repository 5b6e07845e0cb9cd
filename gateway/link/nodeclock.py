"""The node's clock, mapped to ours: the offset with the least uncertainty, from PING and PONG.

A round trip of `rtt` says that the node's time lies within `rtt / 2` of the middle. The best one is kept and trusted
less as it ages (two crystals drift apart), so a later, slower one wins when it knows more.
"""

from __future__ import annotations

from gateway.contract import Sample

DRIFT_PPM = 100  # two cheap crystals, one of them warm
_UNKNOWN_NS = 10**9  # before the first round trip: HELLO may have waited in buffers
_OPEN_PINGS = 8
_JUMP_NS = 5 * 10**9  # a step back that no correction of an offset explains is left as it is


class NotBackwards:
    """Keeps the times of each stream in order while the offset is corrected by some milliseconds.

    A better round trip, or a new estimate after a reconnection, may say that the node's readings are a little older than
    the last ones were said to be. Those that would lie before their predecessor get its time, until theirs is later.

    Args:
        newest: stream -> time of the newest reading on disk, monotonic ns of this boot.
    """

    def __init__(self, newest: dict[str, int]) -> None:
        self._newest = newest

    def keep(self, sample: Sample) -> None:
        """Correct the times of the next sample of its stream, in place."""
        firsts, steps, counts = sample.firsts, sample.steps, sample.counts
        floor = self._newest.get(sample.stream, firsts[0])
        if floor - firsts[0] < _JUMP_NS:
            for i, first in enumerate(firsts):
                if first >= floor:
                    break
                firsts[i] = floor
                floor += (counts[i] - 1) * steps[i]
        self._newest[sample.stream] = firsts[-1] + (counts[-1] - 1) * steps[-1]


class NodeClock:
    """Node microseconds since its boot to our monotonic nanoseconds: `us * 1000 + offset_ns`."""

    def __init__(self) -> None:
        self.offset_ns = 0
        self.samples = 0
        self._half_ns = _UNKNOWN_NS
        self._at_ns = 0
        self._nonce = 0
        self._open: dict[int, int] = {}

    def start(self, us: int, now_ns: int) -> None:
        """A first idea of the offset, from HELLO."""
        self.offset_ns = now_ns - us * 1000
        self.samples = self._nonce = 0  # counted from HELLO, so that a recording's PONGs fit its replay's PINGs
        self._half_ns, self._at_ns = _UNKNOWN_NS, now_ns
        self._open.clear()

    def ping(self, now_ns: int) -> int:
        """The nonce of a PING that leaves now."""
        self._nonce = (self._nonce + 1) & 0x7FFFFFFF
        while len(self._open) >= _OPEN_PINGS:  # their answers were lost
            del self._open[next(iter(self._open))]
        self._open[self._nonce] = now_ns
        return self._nonce

    def pong(self, nonce: int, us: int, now_ns: int) -> bool:
        """Takes an answer; False for one that nobody waits for."""
        sent = self._open.pop(nonce, None)
        if sent is None:
            return False
        self.samples += 1
        half = (now_ns - sent) // 2
        if half <= self.uncertainty_ns(now_ns):
            self.offset_ns = sent + half - us * 1000
            self._half_ns, self._at_ns = half, now_ns
        return True

    def uncertainty_ns(self, now_ns: int) -> int:
        """Half width of the interval around a mapped time that holds the true one."""
        return self._half_ns + (now_ns - self._at_ns) * DRIFT_PPM // 1_000_000
