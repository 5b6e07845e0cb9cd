"""The node's half under CPython, its line in the test's hands: how pictures and readings share it."""

from __future__ import annotations

import importlib.util
import itertools
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.link import messages
from gateway.link.framing import Deframer
from gateway.link.messages import BlobChunk, Data, Hello, Message, Resume
from gateway.link.receiver import Receiver

OCTOLINK = Path(__file__).parents[2] / "firmware_tools" / "node_firmware" / "octolink.py"
STREAM = {"id": 0, "name": "count", "channels": [["n", "I", "1"]], "rate": 100}
JPEG = b"\xff\xd8" + bytes(range(256)) * 20 + b"\xff\xd9"


class Line:
    """Says that it can be written to and that nothing came; keeps what was written."""

    def __init__(self) -> None:
        self.sent = b""

    def register(self, *_: object) -> None:
        pass

    def poll(self, _: int) -> list[object]:
        return []


class Writable(Line):
    def poll(self, _: int) -> list[object]:
        return [1]


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, bytearray]:
    """A link with a camera, greeted and asked for everything; and what it has written."""
    spec = importlib.util.spec_from_file_location("octolink", OCTOLINK)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written = bytearray()

    def write(_: int, data: memoryview) -> int:
        written.extend(data)
        return len(data)

    monkeypatch.setattr(module, "select", SimpleNamespace(poll=Line, POLLIN=1, POLLOUT=4))
    monkeypatch.setattr(module, "_write", write)
    link = module.Link("n", [STREAM], ring=64, slot=21, piece=4096, cameras=["top"])
    link._stdout = Writable()
    link._heard(b"HELLO 1")
    link._heard(b"NAK 0")
    link.poll(0)
    return link, written


def said(written: bytearray) -> list[Message]:
    return [messages.decode(frame) for frame in Deframer().feed(bytes(written))]


def test_at_most_a_piece_stands_between_two_waiting_readings(node: tuple[Any, bytearray]) -> None:
    link, written = node
    link.picture(0, JPEG, 1000)
    written.clear()
    n = 0
    while link.sending:
        for _ in range(2):
            link.put(0, n, 10, struct.pack("<I", n), 1)
            n += 1
        before = len(written)
        link.poll(0)
        fresh = said(bytearray(written[before:]))
        assert sum(isinstance(m, BlobChunk) for m in fresh) <= 2  # a poll writes twice, a piece each time
        assert isinstance(fresh[0], Data)
    kinds = [type(message) for message in said(written)]
    assert not any(a is b is BlobChunk for a, b in itertools.pairwise(kinds))
    assert b"".join(m.data for m in said(written) if isinstance(m, BlobChunk)) == JPEG


def test_hello_lets_the_picture_begin_anew(node: tuple[Any, bytearray]) -> None:
    link, written = node
    link.picture(0, JPEG, 1000)
    link.poll(0)
    link._heard(b"HELLO 1")
    written.clear()
    link.poll(0)
    assert not any(isinstance(m, BlobChunk) for m in said(written))  # not before NAK says from where
    link._heard(b"NAK 0")
    while link.sending:
        link.poll(0)
    link.poll(0)
    heard = said(written)
    hello = next(m for m in heard if isinstance(m, Hello))
    assert hello.cameras == ("top",)
    receiver = Receiver("m")
    receiver.start(hello, 0)
    assert any(isinstance(m, Resume) for m in heard)
    receiver.feed(bytes(written), 0)
    assert [(name, us, data) for name, us, data in receiver.pictures] == [("top", 1000, JPEG)]
