"""A token bucket: how fast the backlog may go, so that it does not take the line from everything else."""

from __future__ import annotations


class TokenBucket:
    """Bytes that may go out; a message may go whole as soon as there is anything left, and is paid off afterwards.

    So a message larger than the burst passes too, and the rate holds on average. Times are any monotonic clock's.

    Args:
        rate: bytes/s; 0 is without limit.
        burst: bytes that gather at most while nothing is sent.
    """

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._level = burst
        self._at = 0.0

    def wait_s(self, now: float) -> float:
        """Seconds until the next message may go; 0 when it may go now."""
        if not self._rate:
            return 0.0
        if now > self._at:
            self._level = min(self._burst, self._level + (now - self._at) * self._rate)
            self._at = now
        return max(0.0, (1.0 - self._level) / self._rate)  # one byte: a level that only rounds to above 0 is none

    def take(self, size: int) -> None:
        """A message of `size` bytes has gone out."""
        self._level -= size
