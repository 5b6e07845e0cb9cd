"""An engine under supervision for the length of a block, and what it notified."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from gateway.contract import Severity
from gateway.infer.engine import Engine


class Events:
    """Collects what an engine notifies; `seen` waits for one and gives its message."""

    def __init__(self) -> None:
        self.all: list[tuple[str, str, Severity, str]] = []
        self.details: list[dict[str, Any]] = []
        self._changed = asyncio.Event()

    def __call__(self, name: str, state: str, severity: Severity, message: str, /, **detail: Any) -> None:
        self.all.append((name, state, severity, message))
        self.details.append(detail)
        self._changed.set()

    def names(self) -> list[tuple[str, str]]:
        return [event[:2] for event in self.all]

    async def seen(self, name: str, state: str) -> str:
        while True:
            for event in self.all:
                if event[:2] == (name, state):
                    return event[3]
            self._changed.clear()
            await self._changed.wait()


@asynccontextmanager
async def running(bundle: Path, **options: Any) -> AsyncIterator[tuple[Engine, Events]]:
    """Options are `Engine`'s; unsigned bundles are allowed and the deadline is long unless they say otherwise."""
    events = Events()
    engine = Engine("tiny", bundle, notify=events, **{"allow_unsigned": True, "deadline_s": 30.0, **options})
    async with asyncio.TaskGroup() as group:
        task = group.create_task(engine.supervise(), name="engine")
        yield engine, events
        task.cancel()


class Killer:
    """Ends the worker that serves, and each worker once: the state of one may lag behind its death."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._hit = {0}  # no worker, and for kill(2) the whole group

    async def __call__(self, number: signal.Signals = signal.SIGKILL) -> None:
        while (pid := self._engine.status().pid) in self._hit:
            await asyncio.sleep(0.005)
        self._hit.add(pid)
        os.kill(pid, number)
