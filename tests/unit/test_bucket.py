"""The token bucket holds its rate, whatever the sizes and the moments."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.sync.bucket import TokenBucket


def test_without_a_rate_nothing_waits() -> None:
    bucket = TokenBucket(0, 0)
    bucket.take(1 << 30)
    assert bucket.wait_s(0.0) == 0.0


def test_a_burst_then_the_rate() -> None:
    bucket = TokenBucket(1000, 1000)
    assert bucket.wait_s(10.0) == 0.0
    bucket.take(3000)  # larger than the burst: goes whole, and is paid off
    wait_s = bucket.wait_s(10.0)
    assert 2.0 <= wait_s <= 2.01
    assert bucket.wait_s(10.0 + wait_s + 1e-6) == 0.0


@given(st.lists(st.tuples(st.integers(1, 5000), st.floats(0, 3)), min_size=1, max_size=60), st.integers(100, 10_000))
def test_no_more_goes_out_than_the_rate_allows(messages: list[tuple[int, float]], rate: int) -> None:
    bucket, now, sent, largest = TokenBucket(rate, rate), 1.0, 0, 0
    for size, pause in messages:
        now += pause
        for _ in range(3):  # rounding may ask for a hair more
            now += bucket.wait_s(now)
        if bucket.wait_s(now) > 1e-6:
            raise AssertionError("waiting does not help")
        bucket.take(size)
        sent, largest = sent + size, max(largest, size)
        assert sent <= rate * (now - 1.0) + rate + largest + 1
