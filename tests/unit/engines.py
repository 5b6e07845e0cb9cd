"""An engine under supervision for the length of a block, and what it notified."""

import asyncio
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
