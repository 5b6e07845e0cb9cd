"""Who is worth having: not beaten in both cost and gain by another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def front(items: Sequence[T], cost: Callable[[T], float], gain: Callable[[T], float]) -> list[T]:
    """Those that no other beats: none costs as little and gains more, or costs less and gains as much.

    From the cheapest on. Of equals all are there. What is not a number is left out.
    """
    known = [item for item in items if cost(item) == cost(item) and gain(item) == gain(item)]

    def beaten(item: T) -> bool:
        return any(
            cost(other) <= cost(item)
            and gain(other) >= gain(item)
            and (cost(other) < cost(item) or gain(other) > gain(item))
            for other in known
        )

    return sorted((item for item in known if not beaten(item)), key=lambda item: (cost(item), -gain(item)))
