"""A broker of one client that writes down what it hears, packet by packet: MQTT 3.1.1, no more than tests need."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

CONNECT, PUBLISH, SUBSCRIBE, PINGREQ, DISCONNECT = 1, 3, 8, 12, 14


@dataclass
class Connect:
    client_id: str
    level: int  # 4 is MQTT 3.1.1
    clean: bool
    will_qos: int
    will_retain: bool
    will_topic: str
    will_payload: bytes


@dataclass
class Publish:
    topic: str
    payload: bytes
    qos: int
    retain: bool


@dataclass
class Subscribe:
    topic: str
    qos: int


@dataclass
class Disconnect:
    """The client said goodbye."""


Heard = Connect | Publish | Subscribe | Disconnect


class WireBroker:
    """Heard packets in `heard`, of all connections; `send` publishes to the newest."""

    def __init__(self) -> None:
        self.port = 0
        self.heard: list[Heard] = []
        self.on_subscribe: Callable[[str], tuple[str, bytes] | None] = lambda _: None  # what is retained there
        self._news = asyncio.Event()
        self._writers: list[asyncio.StreamWriter] = []
        self._names: dict[asyncio.StreamWriter, str] = {}

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._news.clear()
            await self._news.wait()

    @property
    def published(self) -> list[Publish]:
        return [packet for packet in self.heard if isinstance(packet, Publish)]

    @property
    def connects(self) -> list[Connect]:
        return [packet for packet in self.heard if isinstance(packet, Connect)]

    @property
    def subscribed(self) -> dict[str, int]:
        return {packet.topic: packet.qos for packet in self.heard if isinstance(packet, Subscribe)}

    @property
    def subscriptions(self) -> list[str]:
        """Every SUBSCRIBE, in order."""
        return [packet.topic for packet in self.heard if isinstance(packet, Subscribe)]

    def clients(self, client_id: str) -> list[asyncio.StreamWriter]:
        """The connections of one client, oldest first."""
        return [writer for writer, name in self._names.items() if name == client_id]

    def send(self, topic: str, payload: bytes, *, retain: bool = False, to: asyncio.StreamWriter | None = None) -> None:
        body = _text(topic.encode()) + payload
        (to or self._writers[-1]).write(bytes([PUBLISH << 4 | retain]) + _length(len(body)) + body)

    def cut(self) -> None:
        """Break every connection off."""
        for writer in self._writers:
            writer.close()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        try:
            while True:
                head = (await reader.readexactly(1))[0]
                body = await reader.readexactly(await _read_length(reader))
                self._take(head, body, writer)
                self._news.set()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    def _take(self, head: int, body: bytes, writer: asyncio.StreamWriter) -> None:
        kind = head >> 4
        if kind == CONNECT:
            self.heard.append(connect := _connect(body))
            self._names[writer] = connect.client_id
            writer.write(b"\x20\x02\x00\x00")
        elif kind == SUBSCRIBE:
            topic, rest = _take_text(body[2:])
            self.heard.append(Subscribe(topic.decode(), rest[0]))
            writer.write(b"\x90\x03" + body[:2] + bytes([rest[0]]))
            if (retained := self.on_subscribe(topic.decode())) is not None:
                self.send(*retained, retain=True, to=writer)
        elif kind == PUBLISH:
            topic, rest = _take_text(body)
            qos = head >> 1 & 3
            if qos:
                writer.write(b"\x40\x02" + rest[:2])
                rest = rest[2:]
            self.heard.append(Publish(topic.decode(), rest, qos, bool(head & 1)))
        elif kind == PINGREQ:
            writer.write(b"\xd0\x00")
        elif kind == DISCONNECT:
            self.heard.append(Disconnect())


@asynccontextmanager
async def wire_broker() -> AsyncIterator[WireBroker]:
    broker = WireBroker()
    server = await asyncio.start_server(broker.serve, "127.0.0.1", 0)
    broker.port = server.sockets[0].getsockname()[1]
    try:
        yield broker
    finally:
        server.close()
        broker.cut()
        await server.wait_closed()


def _connect(body: bytes) -> Connect:
    _, rest = _take_text(body)
    level, flags, rest = rest[0], rest[1], rest[4:]
    client_id, rest = _take_text(rest)
    topic, payload = b"", b""
    if flags & 4:
        topic, rest = _take_text(rest)
        payload, rest = _take_text(rest)
    return Connect(
        client_id.decode(), level, bool(flags & 2), flags >> 3 & 3, bool(flags & 32), topic.decode(), payload
    )


def _text(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data


def _take_text(data: bytes) -> tuple[bytes, bytes]:
    size = int.from_bytes(data[:2], "big")
    return data[2 : 2 + size], data[2 + size :]


def _length(size: int) -> bytes:
    out = bytearray()
    while size > 0x7F:
        out.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([*out, size])


async def _read_length(reader: asyncio.StreamReader) -> int:
    size = shift = 0
    while True:
        byte = (await reader.readexactly(1))[0]
        size |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return size
