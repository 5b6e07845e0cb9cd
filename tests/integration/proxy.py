"""A TCP proxy on loopback that can do to a link what networks do: cut it, stall it, leave it half open."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

PIECE = 65536


class Proxy:
    """Stands between a client and `target` on 127.0.0.1; made by `Proxy.open`.

    Attributes:
        port: where clients connect.
        accepted: connections taken so far.
        passed: bytes handed on, both directions.
    """

    def __init__(self, target: int) -> None:
        self.port = 0
        self.accepted = 0
        self.passed = 0
        self._target = target
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._deaf: set[asyncio.StreamWriter] = set()  # towards clients that are not told that the link is gone
        self._pairs: dict[asyncio.StreamWriter, asyncio.StreamWriter] = {}  # client's -> broker's
        self._server: asyncio.Server | None = None

    @classmethod
    @asynccontextmanager
    async def open(cls, target: int) -> AsyncIterator[Proxy]:
        proxy = cls(target)
        await proxy.mend()
        try:
            yield proxy
        finally:
            await proxy.cut()

    async def mend(self) -> None:
        """Take connections, move bytes."""
        self._flowing.set()
        for writer in list(self._deaf):
            _reset(writer)
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        """Reset every connection and refuse new ones, until `mend`."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self._flowing.set()
        for client, broker in list(self._pairs.items()):
            _reset(client)
            _reset(broker)
        for writer in list(self._deaf):
            _reset(writer)
        async with asyncio.timeout(10):
            while self._pairs or self._deaf:
                await asyncio.sleep(0.005)

    def stall(self) -> None:
        """Hold every byte back, until `mend`; nobody is told."""
        self._flowing.clear()

    def half_open(self) -> None:
        """The broker sees its connections end; the clients see nothing, and what they send vanishes.

        New connections are taken and heard by nobody, until `mend`.
        """
        self._flowing.clear()
        for client, broker in list(self._pairs.items()):
            self._deaf.add(client)
            _reset(broker)

    async def _serve(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        self.accepted += 1
        broker: asyncio.StreamWriter | None = None
        try:
            await self._flowing.wait()
            answers, broker = await asyncio.open_connection("127.0.0.1", self._target)
            self._pairs[client] = broker
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._move(client, reader, broker), name="up")
                tasks.create_task(self._move(broker, answers, client), name="down")
        except* OSError:
            pass
        finally:
            if broker is not None:
                _reset(broker)
            while client in self._deaf and not client.transport.is_closing():
                with contextlib.suppress(OSError):
                    if not await reader.read(PIECE):
                        break
            self._deaf.discard(client)
            self._pairs.pop(client, None)
            _reset(client)

    async def _move(
        self, source: asyncio.StreamWriter, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        sock = source.get_extra_info("socket")
        while data := await reader.read(PIECE):
            # a broker that sends with Nagle's algorithm waits for the ACK of its last PUBACK: not ours to delay
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            await self._flowing.wait()
            writer.write(data)
            self.passed += len(data)
            await writer.drain()
        raise ConnectionResetError("ended")


def _reset(writer: asyncio.StreamWriter) -> None:
    """RST instead of FIN: what is under way is gone."""
    sock = writer.get_extra_info("socket")
    if not writer.transport.is_closing() and sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
