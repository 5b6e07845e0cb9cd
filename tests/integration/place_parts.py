"""A worker that crashes at one model, and a measurement that is killed at one step; each a process.

    python -m tests.integration.place_parts worker SETUP      a real worker; SIGSEGV at a variant `crash...`
    python -m tests.integration.place_parts cut COUNTER STEP ORDER   place.py, SIGKILL at its STEPth step
    python -m tests.integration.place_parts tell FILE ORDER   place.py, writes what it does into FILE
    python -m tests.integration.place_parts quick ORDER       place.py, in a tenth of the time
    python -m tests.integration.place_parts daemon ARGUMENTS  octogate, which takes any load for calm and measures quickly

At the ordinary priority: on the machines that run tests the lowest may get nothing for minutes.
COUNTER holds how many have been killed: the first is killed at STEP, the second one step later, and so on. Steps are
what it tells; -2 is before the result is renamed into place, -1 after it.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from gateway import durable
from gateway.child import python_module
from gateway.infer import place, timing, worker
from gateway.infer.order import Order


def crashing_worker(argument: str) -> int:
    if '"file":"crash' in argument:
        os.kill(os.getpid(), signal.SIGSEGV)
    return worker.main(argument)


def cut(step: int, argument: str) -> int:
    """Ends by SIGKILL at `step`; `ranking.save` renames with durable.replace."""
    taken = 0

    def die_at(this: int) -> None:
        if this == step:
            os.kill(os.getpid(), signal.SIGKILL)

    def count(*_: Any) -> None:
        nonlocal taken
        taken += 1
        die_at(taken)

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def save(*args: Any) -> Any:
            die_at(-2)
            done = real(*args)
            die_at(-1)
            return done

        return save

    durable.replace = counted(durable.replace)
    return place.main(argument, count)


def tell(file: Path, argument: str) -> int:
    def write(done: int, total: int, what: str) -> None:
        with file.open("a") as text:
            text.write(f"{what}\n")

    return place.main(argument, write)


def quick(argument: str) -> int:
    order = msgspec.json.decode(argument, type=Order)
    return place.main(msgspec.json.encode(msgspec.structs.replace(order, seconds=0.3)).decode())


def _quick_module(module: str, *arguments: str) -> list[str]:
    return python_module("tests.integration.place_parts", "quick")


def daemon(arguments: list[str]) -> int:
    from gateway.__main__ import main
    from gateway.infer import placer

    placer.CALM, placer.LOOK_S, placer.LONGEST, placer.NICE = 2, 0.05, 1_000_000, 0
    placer.python_module = _quick_module  # type: ignore[attr-defined]
    placer.LAG_S = placer.SHARE = float("inf")
    return main(arguments)


if __name__ == "__main__":
    mode, *rest = sys.argv[1:]
    if mode == "worker":
        sys.exit(crashing_worker(*rest))
    if mode == "daemon":
        sys.exit(daemon(rest))
    timing.lowest_priority = lambda: None
    if mode == "quick":
        sys.exit(quick(*rest))
    if mode == "tell":
        sys.exit(tell(Path(rest[0]), rest[1]))
    counter, first = Path(rest[0]), int(rest[1])
    with counter.open("ab") as file:
        file.write(b".")
    sys.exit(cut(first + counter.stat().st_size - 1, rest[2]))
