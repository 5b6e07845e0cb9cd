"""The control socket: JSON lines over a unix socket, for `octogate status`, the panel and the SDK.

A request is `{"id": 1, "op": "status", ...}`, its answer `{"id": 1, "ok": true, "result": ...}` or
`{"id": 1, "ok": false, "error": "...", "hint": "..."}`. Only root and the user who runs the daemon are served
(SO_PEERCRED); the socket is mode 0600.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from gateway.errors import ControlError, OctogateError

MAX_LINE = 64 << 10  # of a request; answers may carry a picture
MAX_ANSWER = 64 << 20
_PEERCRED = struct.Struct("3i")  # pid, uid, gid: `man 7 unix`


class Request(msgspec.Struct, frozen=True):
    op: str
    id: int = 0
    args: dict[str, Any] = {}


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    ok: bool
    id: int = 0
    result: msgspec.Raw = msgspec.Raw(b"null")
    error: str = ""
    hint: str = ""


T = TypeVar("T")
Handler = Callable[[Mapping[str, Any]], Awaitable[Any] | Any]

_encode = msgspec.json.Encoder().encode
_decode_request = msgspec.json.Decoder(Request).decode
_decode_answer = msgspec.json.Decoder(Answer).decode


@asynccontextmanager
async def serve(path: Path, handlers: Mapping[str, Handler]) -> AsyncIterator[None]:
    """Serve `handlers` by operation name until the block is left.

    A stale socket of a daemon that was killed is replaced; one that still answers is not.

    Raises:
        ControlError: another daemon serves this path.
    """
    if await _answers(path):
        raise ControlError(
            f"{path}: another gateway is running on this data_dir", hint="stop it, or set another data_dir"
        )
    path.unlink(missing_ok=True)  # noqa: ASYNC240  (a local socket, microseconds)
    connections: set[asyncio.StreamWriter] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.add(writer)
        try:
            await _converse(reader, writer, handlers)
        finally:
            connections.discard(writer)
            writer.close()

    old = os.umask(0o177)
    try:
        server = await asyncio.start_unix_server(connected, path, limit=MAX_LINE)
    finally:
        os.umask(old)
    try:
        yield
    finally:
        server.close()
        for writer in connections:
            writer.transport.abort()  # its conversation reads the end and is over
        path.unlink(missing_ok=True)  # noqa: ASYNC240  (a local socket, microseconds)


async def _answers(path: Path) -> bool:
    try:
        _, writer = await asyncio.open_unix_connection(path)
    except OSError:
        return False
    writer.close()
    return True


async def _converse(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handlers: Mapping[str, Handler]
) -> None:
    sock: socket.socket = writer.get_extra_info("socket")
    peer = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size)
    _, uid, _ = _PEERCRED.unpack(peer)
    if uid not in (0, os.getuid()):
        return
    with contextlib.suppress(ConnectionError, ValueError):  # ValueError: a line past the limit
        while line := await reader.readline():
            writer.write(_encode(await _answer(line, handlers)) + b"\n")
            await writer.drain()


async def _answer(line: bytes, handlers: Mapping[str, Handler]) -> Answer:
    try:
        request = _decode_request(line)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        return Answer(ok=False, error=f"not a request: {error}", hint='send {"id": 1, "op": "status"}')
    handler = handlers.get(request.op)
    if handler is None:
        known = ", ".join(sorted(handlers))
        return Answer(ok=False, id=request.id, error=f"unknown op {request.op!r}", hint=f"known: {known}")
    try:
        result = handler(request.args)
        if isinstance(result, Awaitable):
            result = await result
    except OctogateError as error:
        return Answer(ok=False, id=request.id, error=error.what, hint=error.hint)
    return Answer(ok=True, id=request.id, result=msgspec.Raw(_encode(result)))


class Client:
    """One connection to a running daemon; `ask` one question at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._turn = asyncio.Lock()
        self._next = 0

    @classmethod
    @asynccontextmanager
    async def connect(cls, path: Path) -> AsyncIterator[Client]:
        """Connect to the control socket at `path`.

        Raises:
            ControlError: no daemon serves it, or it is somebody else's.
        """
        try:
            reader, writer = await asyncio.open_unix_connection(path, limit=MAX_ANSWER)
        except OSError as error:
            raise ControlError(
                f"{path}: no gateway answers: {error.strerror}",
                hint="is `octogate run` running with this config?",
            ) from error
        try:
            yield cls(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def ask(self, op: str, kind: type[T], /, **args: Any) -> T:
        """Ask and decode the answer as `kind`; ControlError when refused or cut off."""
        async with self._turn:
            self._next += 1
            try:
                self._writer.write(_encode(Request(op, self._next, args)) + b"\n")
                await self._writer.drain()
                line = await self._reader.readline()
            except (ConnectionError, ValueError) as error:
                raise ControlError(f"the gateway's control socket broke: {error}") from error
        if not line:
            raise ControlError("the gateway closed the control socket", hint="see its log")
        answer = _decode_answer(line)
        if not answer.ok:
            raise ControlError(answer.error, hint=answer.hint)
        return msgspec.json.decode(answer.result, type=kind)
