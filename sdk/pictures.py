"""The receiver of pictures: puts the blocks of any number of gateways together into files that are whole and verified.

A picture stands under `<folder>/<gateway>/<name>` only when its SHA-256 is right and it is on disk. What is not complete
is a `.part` file whose length says how far it is; so a receiver that was killed goes on where it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from gateway import durable
from gateway.blocks import BLOCK, Block, PictureAck, count, parse, topic_picture_ack
from gateway.contract import TOPIC_ROOT
from gateway.errors import StoreError

GATEWAY = re.compile(r"[a-z0-9][a-z0-9_-]{0,47}")
MAX_WAITING = 256  # blocks in memory
MAX_PARTS = 16  # incomplete pictures of one gateway; the oldest is given up first


class Receiver:
    """Takes blocks into a folder. Calls block; one thread at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def take(self, gateway: str, block: Block) -> PictureAck:
        """Store a block; what is had of its picture now.

        Raises:
            ValueError: the gateway's name is none.
            StoreError: the disk refused.
        """
        if not GATEWAY.fullmatch(gateway):
            raise ValueError(f"not a gateway's name: {gateway[:80]!r}")
        digest, blocks = block.sha256.hex(), count(block.size)
        path = self._folder / gateway / block.name
        part = path.with_name(f"{block.name}.{digest[:12]}.part")
        try:
            if path.exists() and _digest(path) == block.sha256:
                return PictureAck(block.name, digest, blocks, done=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            have = self._add(part, block)
            if have < blocks:
                return PictureAck(block.name, digest, have)
            if part.stat().st_size != block.size or _digest(part) != block.sha256:
                part.unlink()  # mixed up, or holes of a power cut: from the start
                return PictureAck(block.name, digest, 0, refused=True)
            _keep(part, path)
        except OSError as error:
            raise StoreError(f"{path}: cannot store the picture: {error.strerror}", hint="check the disk") from error
        return PictureAck(block.name, digest, blocks, done=True)

    def _add(self, part: Path, block: Block) -> int:
        """Append the block if it is the next; how many blocks there are."""
        if not part.exists():
            self._bound(part.parent)
        with part.open("ab") as file:
            have = count(file.tell()) if file.tell() % BLOCK == 0 or file.tell() == block.size else 0
            if have == 0:
                file.truncate(0)  # a write that was cut off
            if block.number == have:
                file.write(block.data)
                have += 1
        return have

    def _bound(self, folder: Path) -> None:
        parts = sorted(folder.glob("*.part"), key=lambda part: part.stat().st_mtime_ns)
        for old in parts[: max(0, len(parts) - MAX_PARTS + 1)]:
            old.unlink()


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _keep(part: Path, path: Path) -> None:
    durable.sync_file(part)
    durable.replace(part, path)


class PictureIngest:
    """A running receiver at a broker; made by `PictureIngest.open`.

    Attributes:
        refused: messages that are no block, or that the disk refused.
    """

    def __init__(self, receiver: Receiver, prefix: str) -> None:
        self.refused = 0
        self._receiver = receiver
        self._prefix = prefix
        self._loop = asyncio.get_running_loop()
        self._arrived: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue(MAX_WAITING)
        self._client = paho.Client(CallbackAPIVersion.VERSION2, clean_session=True, protocol=paho.MQTTv311)
        self._client.reconnect_delay_set(1, 2)
        self._client.on_connect = lambda client, *_: client.subscribe(f"{prefix}/+/pic/#", qos=1)
        self._client.on_message = self._received

    @classmethod
    @asynccontextmanager
    async def open(
        cls, folder: Path, host: str = "127.0.0.1", port: int = 1883, prefix: str = TOPIC_ROOT
    ) -> AsyncIterator[PictureIngest]:
        """Receive every gateway's pictures into `folder` until the block is left."""
        made = cls(Receiver(folder), prefix)
        made._client.connect_async(host, port, keepalive=15)
        made._client.loop_start()
        try:
            async with asyncio.TaskGroup() as tasks:
                task = tasks.create_task(made._take_forever(), name="pictures")
                try:
                    yield made
                finally:
                    task.cancel()
        finally:
            made._client.disconnect()
            await asyncio.to_thread(made._client.loop_stop)

    def _received(self, _client: paho.Client, _userdata: object, message: paho.MQTTMessage) -> None:
        self._loop.call_soon_threadsafe(self._queue, message.topic, bytes(message.payload))  # paho's thread

    def _queue(self, topic: str, payload: bytes) -> None:
        """A sender is never more than a few blocks ahead of our word; what floods is dropped, and sent again."""
        with contextlib.suppress(asyncio.QueueFull):
            self._arrived.put_nowait((topic, payload))

    async def _take_forever(self) -> None:
        while True:
            topic, payload = await self._arrived.get()
            gateway, _, rest = topic.removeprefix(self._prefix + "/").partition("/pic/")
            name, _, number = rest.partition("/")
            try:
                ack = await asyncio.to_thread(self._receiver.take, gateway, parse(name, number, payload))
            except (ValueError, StoreError):
                self.refused += 1
                continue
            self._client.publish(topic_picture_ack(gateway, self._prefix), msgspec.json.encode(ack), qos=1, retain=True)
