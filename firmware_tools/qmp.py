"""QEMU's control socket (QMP): JSON lines, a greeting, commands with answers, and events in between.

Source: docs/interop/qmp-spec.rst of QEMU.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from gateway.errors import OctogateError

MAX_LINE = 1 << 20
ANSWER_S = 60.0  # a machine that computes in software answers between two of its slices
_EVENTS_KEPT = 256


class Event(msgspec.Struct, frozen=True):
    event: str
    data: dict[str, Any] = {}


class _Fault(msgspec.Struct, frozen=True):
    desc: str


class _Line(msgspec.Struct, frozen=True):
    """Any of the lines that QEMU says; which one tells the key that is there."""

    id: int = 0
    result: Any = msgspec.field(default=msgspec.UNSET, name="return")
    error: _Fault | None = None
    event: str = ""
    data: dict[str, Any] = {}


class QmpError(OctogateError):
    """QEMU refused a command, or is gone."""


class Qmp:
    """One connection; made by `greet`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._next = 0
        self._events: list[Event] = []
        self._decode = msgspec.json.Decoder(_Line).decode
        self._turn = asyncio.Lock()

    async def ask(self, command: str, **arguments: Any) -> Any:
        """One command, its arguments named as QMP does; underscores stand for hyphens where QMP has those.

        Raises:
            QmpError: refused, or QEMU has ended.
        """
        async with self._turn, asyncio.timeout(ANSWER_S):
            self._next += 1
            named = {key.replace("_", "-"): value for key, value in arguments.items()}
            line = {"execute": command, "arguments": named, "id": self._next}
            try:
                self._writer.write(msgspec.json.encode(line) + b"\n")
                await self._writer.drain()
            except ConnectionError as error:
                raise QmpError(f"QEMU is gone: {error}") from error
            while (said := await self._line()).id != self._next:
                pass
        if said.error is not None:
            raise QmpError(f"QEMU refuses {command}: {said.error.desc}")
        return said.result

    async def event(self, name: str, timeout_s: float) -> Event:
        """The next event of this name, perhaps one that has come already.

        Raises:
            QmpError: it did not come in time.
        """
        try:
            async with self._turn, asyncio.timeout(timeout_s):
                while not (found := [event for event in self._events if event.event == name]):
                    await self._line()
        except TimeoutError:
            raise QmpError(f"QEMU reported no {name} in {timeout_s:g} s") from None
        self._events.remove(found[0])
        return found[0]

    def seen(self, name: str) -> bool:
        """True when such an event has come and was not taken."""
        return any(event.event == name for event in self._events)

    async def _line(self) -> _Line:
        try:
            text = await self._reader.readline()
        except (ConnectionError, ValueError) as error:
            raise QmpError(f"QEMU's control socket broke: {error}") from error
        if not text:
            raise QmpError("QEMU closed its control socket", hint="see its log")
        try:
            said = self._decode(text)
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise QmpError(f"QEMU says what is no QMP: {error}") from error
        if said.event:
            self._events.append(Event(said.event, said.data))
            del self._events[:-_EVENTS_KEPT]
        return said


async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Qmp:
    """End the negotiation on a connection that QEMU has made.

    Raises:
        QmpError: what is there is no QMP.
    """
    qmp = Qmp(reader, writer)
    async with asyncio.timeout(ANSWER_S):
        await qmp._line()  # the greeting
    await qmp.ask("qmp_capabilities")
    return qmp
