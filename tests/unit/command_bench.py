"""Commands with operations whose effects and audit rows are seen, for the tests of commands."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from gateway import command
from gateway.command import Answer, NoArgs
from gateway.errors import StoreError
from gateway.sync.commands import Commands, Guard, Operation
from gateway.sync.journal import Journal

HERE = Guard("uplink", "line-1")
NOW_MS = 1_800_000_000_000


class EchoArgs(command.Part, frozen=True):
    text: str


class Bench:
    """Commands with two operations, whose effects and audit rows are seen."""

    def __init__(self, folder: Path, *, spool_takes: bool = True, wall_ms: int | None = NOW_MS) -> None:
        self.trail: list[str] = []  # audit rows and effects, in order
        self.spool_takes = spool_takes
        operations = {
            "set": Operation(EchoArgs, self._set, changes=True),
            "read": Operation(NoArgs, self._read),
        }
        self.commands = Commands(operations, Journal(folder / "journal.db"), self._audit, lambda: wall_ms)

    async def _set(self, args: EchoArgs, id: str) -> str:
        self.trail.append(f"do {args.text}")
        if args.text == "wrong":
            raise StoreError("no", hint="yes")
        return args.text.upper()

    async def _read(self, _: NoArgs, id: str) -> int:
        self.trail.append("do read")
        return 5

    def _audit(self, name: str, well: bool, message: str, detail: Mapping[str, Any]) -> asyncio.Future[None]:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.trail.append(name.partition(".")[2])
        if self.spool_takes:
            done.set_result(None)
        return done

    def effects(self) -> list[str]:
        return [step for step in self.trail if step.startswith("do ")]

    async def ask(self, payload: bytes, id: str = "a1", guard: Guard = HERE, retained: bool = False) -> Answer:
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.commands.receive(guard, id, payload, answer.set_result, retained)
        return await asyncio.wait_for(answer, 20)


@asynccontextmanager
async def bench(folder: Path, **more: Any) -> AsyncIterator[Bench]:
    made = Bench(folder, **more)
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(made.commands.run(), name="commands")
        yield made
        task.cancel()


def request(op: str = "set", deadline: float = 30, **args: Any) -> bytes:
    return json.dumps({"op": op, "deadline": deadline, "args": args}).encode()


class FakeLink:
    def __init__(self) -> None:
        self.room = True
        self.largest = 1 << 20
        self.sent: list[tuple[str, bytes, int, bool]] = []

    def fits(self, topic: str, payload: bytes) -> bool:
        return len(payload) <= self.largest

    def publish(self, topic: str, payload: bytes, *, qos: int = 0, retain: bool = False) -> bool:
        self.sent.append((topic, payload, qos, retain))
        return True
