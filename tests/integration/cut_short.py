"""`octogate`, killed with SIGKILL before a given step of the desired config's state machine.

    python -m tests.integration.cut_short STEP COUNTER run --config gateway.toml

COUNTER is a file that counts the steps, also across the daemon's own restarts.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from gateway import durable
from gateway.__main__ import main

STEPS = ("write_whole", "replace", "remove")


def counted(real: Callable[..., None], at: int, counter: Path) -> Callable[..., None]:
    def step(*args: object, **more: object) -> None:
        with counter.open("ab") as file:
            file.write(b".")
        if counter.stat().st_size == at:
            os.kill(os.getpid(), signal.SIGKILL)
        real(*args, **more)

    return step


if __name__ == "__main__":
    for name in STEPS:
        setattr(durable, name, counted(getattr(durable, name), int(sys.argv[1]), Path(sys.argv[2])))
    sys.exit(main(sys.argv[3:]))
