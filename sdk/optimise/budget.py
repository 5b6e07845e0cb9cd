"""How much to prune: the smallest share of channels to take away that brings a model into its budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from gateway.errors import ModelError

Unit = Literal["macs", "bytes", "us"]

MOST = 0.95  # of a layer's channels


@dataclass(frozen=True)
class Budget:
    """What a model may need at most.

    Attributes:
        limit: multiplications with additions for one input (`macs`), bytes of its parameters as float32 (`bytes`), or
            microseconds for one input on ONNX Runtime here (`us`; such a build is not the same on another machine).
    """

    limit: float
    unit: Unit = "macs"

    def __str__(self) -> str:
        return f"at most {self.limit:,.0f} {self.unit}"


def search(cost: Callable[[float], float], budget: Budget, *, steps: int = 20, most: float = MOST) -> float:
    """The smallest of `steps` + 1 evenly spaced ratios, 0 first, whose cost is within the budget.

    One after the other and not by bisection: costs do not fall evenly. Channels come in whole numbers, a layer of which
    nothing would be left is not pruned at all, and a measured time is noisy.

    Args:
        cost: of a model from which this share of channels is gone, in the budget's unit.

    Raises:
        ModelError: none is enough.
    """
    least = float("inf")
    for at in range(steps + 1):
        found = cost(most * at / steps)
        if found <= budget.limit:
            return most * at / steps
        least = min(least, found)
    raise ModelError(
        f"pruning leaves {least:,.0f} {budget.unit} at least, the budget is {budget}",
        hint="begin with a smaller network, or allow more",
    )
