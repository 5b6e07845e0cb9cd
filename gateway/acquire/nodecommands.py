"""Commands to a node, one at a time: a CMD line is said again until its REPLY comes, and the node obeys it once.

The line is `CMD <id> {"set": <metric>, "value": <value>}`, the answer `{}` or `{"error": "..."}` (docs/link.md).
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable

import msgspec

from gateway.errors import SourceError
from gateway.link.messages import Command, Reply

AGAIN_S = 1.0  # a line that was not answered is said again
ANSWER_S = 4.0  # less than `gateway.writes` waits, so that its event names the node
LINE_MAX = 500  # bytes a node reads of a line, some kept back

Value = bool | int | float | str


class _Answer(msgspec.Struct, frozen=True):
    error: str = ""


_decode = msgspec.json.Decoder(_Answer).decode


class NodeCommands:
    """What was asked of one node and is not answered yet."""

    def __init__(self) -> None:
        # a gateway that restarts must not reuse the number that the node has answered last
        self._id = random.getrandbits(24)
        self._turn = asyncio.Lock()
        self._answer: asyncio.Future[str] | None = None

    async def ask(self, metric: str, value: Value, send: Callable[[Command], None]) -> None:
        """Set `metric` to `value`; returns when the node has said that it did.

        Raises:
            SourceError: the node refused, went away, did not answer in time, or no line can say this.
        """
        try:
            # ASCII with escapes: byte 0x03 would end the node's program
            text = json.dumps({"set": metric, "value": value}, allow_nan=False).encode()
        except ValueError as error:
            raise SourceError(f"{metric}: {value!r} cannot be sent to a node", hint="a finite number") from error
        async with self._turn:
            self._id = (self._id + 1) & 0xFFFFFFFF
            line = Command(self._id, text)
            if len(line.to_line()) > LINE_MAX:
                raise SourceError(
                    f"{metric}: a command of {len(text)} bytes", hint=f"a node reads {LINE_MAX} of a line"
                )
            answer = self._answer = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(ANSWER_S):
                    while not answer.done():
                        send(line)
                        await asyncio.wait([answer], timeout=AGAIN_S)
            except TimeoutError:
                raise SourceError(
                    f"{metric}: the node gave no answer within {ANSWER_S:g} s", hint="is its firmware up to date?"
                ) from None
            finally:
                self._answer = None
            if refused := answer.result():
                raise SourceError(f"{metric}: {refused}")

    def reply(self, reply: Reply) -> None:
        """A REPLY came; one that nobody waits for any more is passed over."""
        if self._answer is None or self._answer.done() or reply.id != self._id:
            return
        try:
            answer = _decode(reply.json)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            answer = _Answer("its answer cannot be read: update its firmware")
        self._answer.set_result(answer.error)

    def drop(self, why: str) -> None:
        """The line was cut or the node has restarted: nobody knows whether it obeyed."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(f"nobody knows whether the node did it: {why}")
