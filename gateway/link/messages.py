"""What nodes and the gateway say to each other: frames from the node, ASCII lines towards it (docs/link.md).

Every message has `to_payload`/`from_payload` (node to host) or `to_line` (host to node; `parse_line` is the inverse).
Lines never hold byte 0x03, which is KeyboardInterrupt on a MicroPython board.
"""

from __future__ import annotations

import re
import struct
from typing import ClassVar, Self

import msgspec

from gateway.contract import CHANNEL_TYPES, Channel, Schema
from gateway.errors import LinkError
from gateway.link import framing
from gateway.link.framing import Type

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,47}")
_UNIT = re.compile(r"[^,:\s]{0,24}")
_HINT = "update the node's firmware: firmware_tools/node_firmware"


class NodeStream(msgspec.Struct, frozen=True):
    """One stream that a node announces: channels are [name, struct code, unit]; rate in readings/s, 0 if irregular."""

    id: int
    name: str
    channels: tuple[tuple[str, str, str], ...]
    rate: float = 0.0

    def schema(self) -> Schema:
        """How its records read.

        Raises:
            LinkError: a name or a code that may not be.
        """
        if not _NAME.fullmatch(self.name) or not self.channels or not 0 <= self.id <= 255:
            raise LinkError(f"the node announces a stream '{self.name}', which is not a valid one", hint=_HINT)
        for name, code, unit in self.channels:
            if not _NAME.fullmatch(name) or len(code) != 1 or code not in CHANNEL_TYPES or not _UNIT.fullmatch(unit):
                raise LinkError(f"the node announces a channel '{name}:{code}:{unit}'", hint=_HINT)
        return Schema(tuple(Channel(*channel) for channel in self.channels))


class Hello(msgspec.Struct, frozen=True):
    """Who the node is and what it still holds. Times in microseconds since its boot, seqs not wrapped."""

    kind: ClassVar[Type] = Type.HELLO
    versions: tuple[int, ...]
    node: str
    session: int  # random u32, made at boot
    firmware: str
    oldest: int  # seq of the first DATA frame it still holds
    next: int  # seq that its next DATA frame will have
    us: int
    streams: tuple[NodeStream, ...]
    ring: int = 0  # frames it can hold
    asked: bool = True  # it answers a HELLO of the host; False: just booted, and no ACK or NAK is heeded before one
    cameras: tuple[str, ...] = ()  # their names; a BLOB's high byte counts them

    def to_payload(self) -> bytes:
        return msgspec.json.encode(self)

    def camera(self, blob: int) -> str:
        """The camera that a blob is of; LinkError when it was not announced, or its name may not be."""
        if blob >> 8 >= len(self.cameras) or not _NAME.fullmatch(self.cameras[blob >> 8]):
            raise LinkError(f"the node sends a picture of camera {blob >> 8}, which it has not announced", hint=_HINT)
        return self.cameras[blob >> 8]

    @classmethod
    def from_payload(cls, payload: bytes) -> Self:
        try:
            return msgspec.json.decode(payload, type=cls)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise LinkError(f"the node's HELLO cannot be read: {error}", hint=_HINT) from error


class _Packed(msgspec.Struct, frozen=True):
    """A message whose payload is a packed struct, in the order of its fields, and perhaps bytes after it."""

    kind: ClassVar[Type]
    layout: ClassVar[struct.Struct]
    has_rest: ClassVar[bool] = False

    def to_payload(self) -> bytes:
        values = msgspec.structs.astuple(self)
        if self.has_rest:
            return self.layout.pack(*values[:-1]) + bytes(values[-1])
        return self.layout.pack(*values)

    @classmethod
    def from_payload(cls, payload: bytes) -> Self:
        size = cls.layout.size
        if len(payload) < size or (len(payload) > size and not cls.has_rest):
            raise LinkError(f"a {cls.kind.name} frame of {len(payload)} bytes", hint=_HINT)
        values = cls.layout.unpack_from(payload)
        return cls(*values, payload[size:]) if cls.has_rest else cls(*values)


class Data(_Packed, frozen=True):
    """Packed records of one stream, `step_us` apart, the first at the frame's ticks."""

    kind = Type.DATA
    layout = struct.Struct("<BI")
    has_rest = True
    stream: int
    step_us: int
    records: bytes


class BlobChunk(_Packed, frozen=True):
    """A piece of a picture: `total` bytes in all, this piece starts at `offset`; blob = camera << 8 | number."""

    kind = Type.BLOB
    layout = struct.Struct("<HII")
    has_rest = True
    blob: int
    offset: int
    total: int
    data: bytes


class Pong(_Packed, frozen=True):
    """Answer to PING: the node's time, and the seq its next DATA frame will have."""

    kind = Type.PONG
    layout = struct.Struct("<IQQ")
    nonce: int
    us: int
    next: int


class Resume(_Packed, frozen=True):
    """Answer to NAK: DATA goes on with `first`, made at `us`.

    `lost_frames` frames before it were overwritten un-acked, with `lost_readings` readings in them, counted from the
    last ACK: some of them may have been taken, which the host knows.
    """

    kind = Type.RESUME
    layout = struct.Struct("<QQII")
    first: int
    us: int
    lost_frames: int
    lost_readings: int


class Log(_Packed, frozen=True):
    """A line of the node's log; level as in Python's logging, 10 to 50."""

    kind = Type.LOG
    layout = struct.Struct("<B")
    has_rest = True
    level: int
    text: bytes


class Reply(_Packed, frozen=True):
    """Answer to CMD: JSON."""

    kind = Type.REPLY
    layout = struct.Struct("<I")
    has_rest = True
    id: int
    json: bytes


Message = Hello | Data | BlobChunk | Pong | Resume | Log | Reply
_TYPES: dict[int, type[Message]] = {m.kind: m for m in (Hello, Data, BlobChunk, Pong, Resume, Log, Reply)}


def encode(message: Message, seq: int = 0, ticks: int = 0) -> bytes:
    """A message as a frame on the wire."""
    return framing.encode(message.kind, seq, ticks, message.to_payload())


def decode(frame: bytes) -> Message:
    """The message in a frame that a `Deframer` gave.

    Raises:
        LinkError: another version, an unknown type, or a payload that does not fit its type.
    """
    version, kind = frame[0], frame[1]
    # the HELLO of every version can be read: it is what says which versions there are
    if version != framing.VERSION and kind != Type.HELLO:
        raise LinkError(f"a frame of protocol version {version}", hint=_HINT)
    found = _TYPES.get(kind)
    if found is None:
        raise LinkError(f"a frame of unknown type {kind}", hint=_HINT)
    return found.from_payload(frame[framing.HEADER.size : -4])


# --- host to node ----------------------------------------------------------------------------------------------


class SayHello(msgspec.Struct, frozen=True):
    """Asks for HELLO; `version` is the one the host speaks."""

    version: int = framing.VERSION

    def to_line(self) -> bytes:
        return b"HELLO %d\n" % self.version


class Ack(msgspec.Struct, frozen=True):
    """Everything before `seq` is on disk and may be forgotten."""

    seq: int

    def to_line(self) -> bytes:
        return b"ACK %d\n" % self.seq


class Nak(msgspec.Struct, frozen=True):
    """Go back: send from `seq` on; answered by RESUME."""

    seq: int

    def to_line(self) -> bytes:
        return b"NAK %d\n" % self.seq


class Ping(msgspec.Struct, frozen=True):
    nonce: int

    def to_line(self) -> bytes:
        return b"PING %d\n" % self.nonce


class Command(msgspec.Struct, frozen=True):
    """Something for the node's program; JSON without control characters."""

    id: int
    json: bytes

    def to_line(self) -> bytes:
        return b"CMD %d %s\n" % (self.id, self.json)


Line = SayHello | Ack | Nak | Ping | Command
_NUMBERED: dict[bytes, type[SayHello] | type[Ack] | type[Nak] | type[Ping]] = {
    b"HELLO": SayHello, b"ACK": Ack, b"NAK": Nak, b"PING": Ping,
}  # fmt: skip


def parse_line(line: bytes) -> Line:
    """The inverse of `to_line`, as a node reads it; ValueError for anything else."""
    word, _, rest = line.strip().partition(b" ")
    if word == b"CMD":
        number, _, json = rest.partition(b" ")
        return Command(int(number), json)
    if word not in _NUMBERED:
        raise ValueError(f"not a line of the link: {line!r}")
    return _NUMBERED[word](int(rest))
