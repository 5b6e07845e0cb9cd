"""Commands to sources: written in order where a source takes them, refused aloud where it does not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from gateway import writes
from gateway.contract import Severity, Sink, Source, SourceState, SourceStatus
from gateway.errors import SourceError
from gateway.writes import MAX_WAITING, Writes


class Sensor:
    """A source that can only be read."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def run(self, sink: Sink) -> None:
        raise NotImplementedError

    def status(self) -> SourceStatus:
        return SourceStatus(self.name, "fake", SourceState.OK, "")


class Drive(Sensor):
    """A source that can be written; `gate` holds it up."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.gate = asyncio.Event()
        self.gate.set()
        self.got: list[tuple[str, bool | int | float | str]] = []

    async def write(self, metric: str, value: bool | int | float | str) -> None:
        await self.gate.wait()
        if metric == "broken":
            raise SourceError("drive: no such register")
        self.got.append((metric, value))


class Bench:
    def __init__(self) -> None:
        self.drive = Drive("drive")
        sources: dict[str, Source] = {"drive": self.drive, "sensor": Sensor("sensor")}
        self.events: list[tuple[str, str]] = []
        self._news = asyncio.Event()
        self.writes = Writes(sources, self._notify)

    def _notify(self, name: str, state: str, severity: Severity, message: str) -> None:
        self.events.append((name, message))
        self._news.set()

    async def has(self, n: int) -> list[tuple[str, str]]:
        while len(self.events) < n:
            self._news.clear()
            await self._news.wait()
        return self.events


@asynccontextmanager
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(made.writes.run(), name="writes")
        yield made
        running.cancel()


def test_writes_happen_in_order_and_are_confirmed() -> None:
    async def scenario() -> None:
        async with bench() as line:
            line.writes.put("drive", "speed", 5)
            line.writes.put("drive", "on", True)
            assert await line.has(2) == [("command.done", "drive: speed = 5"), ("command.done", "drive: on = True")]
            assert line.drive.got == [("speed", 5), ("on", True)]

    asyncio.run(scenario())


def test_what_cannot_be_written_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writes, "REFUSALS_S", 0.0)
    monkeypatch.setattr(writes, "WRITE_S", 0.01)

    async def scenario() -> None:
        async with bench() as line:
            line.writes.put("sensor", "speed", 5)
            line.writes.put("drive", "broken", 5)
            await line.has(2)
            line.drive.gate.clear()
            line.writes.put("drive", "speed", 5)
            assert await line.has(3) == [
                ("command.refused", "sensor: speed: this kind of source takes no commands"),
                ("command.refused", "drive: broken: drive: no such register"),
                ("command.refused", "drive: speed: no answer within 0.01 s"),
            ]
            line.drive.gate.set()
            line.writes.put("drive", "speed", 6)  # a source that hung does not hold up the next
            assert (await line.has(4))[-1] == ("command.done", "drive: speed = 6")

    asyncio.run(scenario())


def test_who_waits_for_the_answer_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writes, "WRITE_S", 0.01)

    async def scenario() -> None:
        line = Bench()
        await line.writes.now("drive", "speed", 5)
        assert line.drive.got == [("speed", 5)]
        for source in ("sensor", "none"):
            with pytest.raises(SourceError, match=f"'{source}' takes no commands.*these do: drive"):
                await line.writes.now(source, "speed", 5)
        with pytest.raises(SourceError, match="no such register"):
            await line.writes.now("drive", "broken", 5)
        line.drive.gate.clear()
        with pytest.raises(SourceError, match="no answer"):
            await line.writes.now("drive", "speed", 5)
        assert line.events == []

    asyncio.run(scenario())


def test_a_flood_is_bounded_and_does_not_fill_the_spool_with_events(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with bench() as line:
            for number in range(MAX_WAITING + 50):
                line.writes.put("drive", "speed", number)
            line.writes.refuse("x" * 10_000, "no")
            assert len(line.events) == 1
            assert f"{MAX_WAITING} writes are waiting" in line.events[0][1]
            await line.has(1 + MAX_WAITING)
            assert [value for _, value in line.drive.got] == list(range(MAX_WAITING))
            monkeypatch.setattr(writes, "REFUSALS_S", 0.0)
            line.writes.refuse("y" * 10_000, "no")
            name, message = line.events[-1]
            assert name == "command.refused" and len(message) < 250
            assert "50 more were refused" in message

    asyncio.run(scenario())
