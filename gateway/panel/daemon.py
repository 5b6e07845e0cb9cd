"""What the panel asks the daemon, so that many viewers cost one question."""

from __future__ import annotations

import asyncio
import base64
import binascii
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from gateway.contract import GatewayStatus, Inference
from gateway.control import Client
from gateway.errors import ControlError

FRESH_S = 0.25  # an answer younger than this is given again
ANSWER_S = 2.0  # a daemon that says nothing for so long counts as away
PICTURES_KEPT = 2  # a source: the one the page is loading, and the newest

T = TypeVar("T")


class Picture(msgspec.Struct, frozen=True):
    """The newest picture of a source with what its pipeline found on it."""

    seq: int
    media: str
    data: bytes
    inference: Inference | None = None


class _PictureAnswer(msgspec.Struct, frozen=True):
    """As the control operation `picture` answers: `data` is base64."""

    seq: int
    media: str
    data: str
    inference: Inference | None = None


class _Said(msgspec.Struct, frozen=True):
    """An answer, or the refusal, and when it came. Refusals are kept too: a dead daemon is asked 4 times a second."""

    at: float
    value: Any = None
    error: ControlError | None = None


class Daemon:
    """The gateway's control socket, asked one question at a time and only when somebody looks."""

    def __init__(self, control: Path) -> None:
        self._path = control
        self._stack = AsyncExitStack()
        self._client: Client | None = None
        self._turn = asyncio.Lock()
        self._said: dict[str, _Said] = {}
        self._pictures: dict[str, list[Picture]] = {}

    async def close(self) -> None:
        """Leave the control socket; the next question connects again."""
        stack, self._stack, self._client = self._stack, AsyncExitStack(), None
        await stack.aclose()

    async def status_json(self) -> bytes:
        """The daemon's `GatewayStatus` as the JSON it sent.

        Raises:
            ControlError: it is away, or too slow.
        """

        async def ask() -> bytes:
            return bytes(await self._ask("status", msgspec.Raw))

        return await self._once("status", ask)

    async def status(self) -> GatewayStatus:
        """The same answer, decoded; ControlError also when it is of another version."""
        try:
            return msgspec.json.decode(await self.status_json(), type=GatewayStatus)
        except msgspec.DecodeError as error:
            raise ControlError(
                f"the gateway's status cannot be read: {error}", hint="is the panel of the same version?"
            ) from error

    async def picture(self, source: str, seq: int | None = None) -> Picture | None:
        """The newest picture of a source that exists; or the one with number `seq`, None if it is gone."""

        async def ask() -> None:
            answer = await self._ask("picture", _PictureAnswer | None, source=source)
            kept = self._pictures.setdefault(source, [])
            if answer is not None and (not kept or kept[-1].seq != answer.seq):
                kept.append(_decoded(answer))
                del kept[:-PICTURES_KEPT]

        if seq is not None:
            for picture in self._pictures.get(source, []):
                if picture.seq == seq:
                    return picture
        await self._once(f"picture {source}", ask)
        newest = next(reversed(self._pictures.get(source, [])), None)
        return newest if newest is None or seq in (None, newest.seq) else None

    async def _once(self, key: str, ask: Callable[[], Awaitable[T]]) -> T:
        """What was said for `key` in the last FRESH_S, else a new answer: waiters share it."""
        if (said := self._fresh(key)) is None:
            async with self._turn:
                if (said := self._fresh(key)) is None:
                    said = self._said[key] = await self._answer(ask)
        if said.error is not None:
            raise said.error
        value: T = said.value
        return value

    def _fresh(self, key: str) -> _Said | None:
        said = self._said.get(key)
        return said if said is not None and time.monotonic() - said.at < FRESH_S else None

    async def _answer(self, ask: Callable[[], Awaitable[Any]]) -> _Said:
        try:
            async with asyncio.timeout(ANSWER_S):
                value = await ask()
        except TimeoutError:
            error = ControlError(f"the gateway did not answer within {ANSWER_S:g} s", hint="see its log")
            return _Said(time.monotonic(), error=error)
        except ControlError as error:
            return _Said(time.monotonic(), error=error)
        return _Said(time.monotonic(), value)

    async def _ask(self, op: str, kind: Any, **args: Any) -> Any:
        if self._client is None:
            self._client = await self._stack.enter_async_context(Client.connect(self._path))
        answered = False
        try:
            answer = await self._client.ask(op, kind, **args)
            answered = True
        except msgspec.DecodeError as error:
            raise ControlError(f"the gateway's answer to '{op}' cannot be read: {error}") from error
        finally:
            if not answered:  # refused, cut off or cancelled midway: never read another's answer
                await self.close()
        return answer


def _decoded(answer: _PictureAnswer) -> Picture:
    try:
        data = base64.b64decode(answer.data, validate=True)
    except binascii.Error as error:
        raise ControlError(f"the gateway sent a broken picture: {error}") from error
    return Picture(answer.seq, answer.media, data, answer.inference)
