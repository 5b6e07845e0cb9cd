"""The cable between a node on the host and QEMU's USB-serial adapter; being connected is being plugged in."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tty
from pathlib import Path
from typing import cast

from gateway.errors import LinkError
from gateway.link import framing, messages

_READ_BYTES = 65536
_HALF = 1 << 15  # a number that is further ahead is one of before


class Cable(asyncio.Protocol):
    """Moves bytes both ways between a terminal and a connection to QEMU; what one side does not take holds the other.

    Args:
        port: the node's terminal (see `sdk.testing.MicroPythonNode.port`).
        ledger: what listens in; None for nobody.
    """

    def __init__(self, port: Path, ledger: Acknowledged | None = None) -> None:
        self._fd = os.open(port, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
        tty.setraw(self._fd)
        self._ledger = ledger
        self._to_node = bytearray()
        self._transport: asyncio.Transport | None = None
        self.connected, self.ended = asyncio.Event(), asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.connected.set()
        self.resume_writing()

    def data_received(self, data: bytes) -> None:
        if self._ledger:
            self._ledger.from_gateway(data)
        self._to_node += data
        self._flush()

    def pause_writing(self) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)

    def resume_writing(self) -> None:
        asyncio.get_running_loop().add_reader(self._fd, self._from_node)

    def connection_lost(self, exc: Exception | None) -> None:
        self._let_go()

    def close(self) -> None:
        """Out of its socket, at once."""
        if self._transport:
            self._transport.abort()
        self._let_go()

    def _let_go(self) -> None:
        if self.ended.is_set():
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._fd)
        loop.remove_writer(self._fd)
        os.close(self._fd)
        self.ended.set()

    def _from_node(self) -> None:
        assert self._transport is not None
        try:
            data = os.read(self._fd, _READ_BYTES)
        except BlockingIOError:
            return
        except OSError:  # the node's end of the terminal is gone
            self.pause_writing()
            return
        if self._ledger:
            self._ledger.from_node(data)
        self._transport.write(data)

    def _flush(self) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(BlockingIOError):
            del self._to_node[: os.write(self._fd, self._to_node)]
        if self._to_node:
            loop.add_writer(self._fd, self._flush)
        else:
            loop.remove_writer(self._fd)


class Acknowledged:
    """Listens to a node's line and keeps its own account of what the gateway said is on its disk.

    Attributes:
        sent, readings: that the node has put on the line, and of these those that are acknowledged.
    """

    def __init__(self, record_size: int) -> None:
        self.sent = self.readings = 0
        self._record_size = record_size
        self._frames = framing.Deframer()
        self._lines = bytearray()
        self._next = 0  # the next new frame
        self._sizes: dict[int, int] = {}  # frame -> readings, while it is not acknowledged
        self._acked = 0  # frames before this are
        self.news = asyncio.Event()

    def from_node(self, data: bytes) -> None:
        for frame in self._frames.feed(data):
            _, kind, seq, _ = framing.HEADER.unpack_from(frame)
            ahead = (seq - self._next) & 0xFFFF
            if kind != framing.Type.DATA or ahead >= _HALF:
                continue  # no reading, or one that comes again
            with contextlib.suppress(LinkError):
                message = messages.decode(frame)
                assert isinstance(message, messages.Data)
                n = len(message.records) // self._record_size
                for skipped in range(self._next, self._next + ahead):
                    self._sizes[skipped] = 0  # the node's ring had to overwrite it
                self._next += ahead + 1
                self._sizes[self._next - 1] = n
                self.sent += n

    def from_gateway(self, data: bytes) -> None:
        *lines, rest = (bytes(self._lines) + data).split(b"\n")
        self._lines = bytearray(rest[-framing.MAX_ENCODED :])
        for line in lines:
            with contextlib.suppress(ValueError):
                if isinstance(ack := messages.parse_line(line), messages.Ack):
                    self._acknowledge(ack.seq)

    def _acknowledge(self, seq: int) -> None:
        behind = (self._next - seq) & 0xFFFF
        if behind > self._next - self._acked:
            return  # of before, or of another session
        until = self._next - behind
        while self._acked < until:
            self.readings += self._sizes.pop(self._acked)
            self._acked += 1
        self.news.set()
