"""The parsers of `bench.fuzz`, each as a function of some bytes that lets only what it must not raise pass.

The unit tests hold the same parsers with hypothesis, which knows how valid input looks; tests/unit/test_fuzz_targets.py runs
these functions once in a while too, so that they do not rot.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import mmap
import struct
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

from cobs import cobs
from pymodbus.framer import FramerRTU
from pymodbus.pdu import DecodePDU
from pymodbus.pdu.register_message import ReadInputRegistersRequest

from firmware_tools.flash import check_uf2
from firmware_tools.rawrepl import RawRepl, Window
from firmware_tools.wire import Wire
from gateway.acquire import v4l2, videowire
from gateway.acquire.capture import Capture, whole_jpeg
from gateway.acquire.modbus_line import ModbusLine
from gateway.acquire.modbus_map import load_map
from gateway.acquire.nodewords import NodeWords
from gateway.acquire.pattern import Pattern
from gateway.acquire.textlines import LineReader
from gateway.acquire.v4l2 import Device
from gateway.clock import Clock
from gateway.errors import ConfigError, LinkError, SourceError
from gateway.link import messages
from gateway.link.framing import Deframer
from gateway.link.messages import Data, Hello, NodeStream, Resume
from gateway.link.receiver import Receiver
from gateway.recording import Reading, Record, RecordingError, pack_block, parse_frame, unpack_block
from gateway.source_tables import CameraSource

Target = Callable[[bytes], None]
FOLDER = Path(tempfile.gettempdir())
HELLO = Hello((1,), "n", 7, "0", 0, 0, 0, (NodeStream(0, "c", (("n", "I", "1"),)),), cameras=("top",))
PATTERNS = [
    Pattern(text) for text in ("W={w:float kg}", "{a:int},{b:hex},{c:text}", "$GP{_}A,{lat:angle},{t:float Cel}")
]


def pieces(data: bytes) -> list[bytes]:
    """Chunks of lengths that the data's own first byte says."""
    step = 1 + (data[0] if data else 0)
    return [data[at : at + step] for at in range(1, len(data), step)]


def framing(data: bytes) -> None:
    """The node link's bytes: frames, text between them, noise."""
    deframer = Deframer()
    for chunk in pieces(data):
        for frame in deframer.feed(chunk):
            with contextlib.suppress(LinkError):
                messages.decode(frame)
    deframer.rest()


def link(data: bytes) -> None:
    """Frames whose checksum is right and whose content is anything, into the receiver."""
    receiver = Receiver("fuzz", 1 << 16)
    receiver.start(HELLO, 0)
    receiver.feed(messages.encode(Resume(0, 0, 0, 0)), 0)
    for body in data.split(b"\xff\xfe"):
        wire = cobs.encode(body + struct.pack("<I", zlib.crc32(body)))
        receiver.feed(b"\0" + wire + b"\0", 0)


def lines(data: bytes) -> None:
    """What a gateway says to a node, as the fake node reads it."""
    for line in data.split(b"\n"):
        with contextlib.suppress(ValueError):
            messages.parse_line(line)


def words(data: bytes) -> None:
    """Prints and tracebacks of a node."""
    told = NodeWords(lambda *_, **__: None, lambda: 0.0)
    text = data.decode(errors="replace")
    told.lines(text.splitlines())
    told.tail(text, final=bool(len(data) & 1))


def modbus_map(data: bytes) -> None:
    """A register map of one's own, and the decoding of registers by it."""
    with tempfile.NamedTemporaryFile(dir=FOLDER, suffix=".toml") as file:
        file.write(data)
        file.flush()
        with contextlib.suppress(ConfigError):
            found = load_map("fuzz.toml", Path(file.name))
            found.record([[65535 - i & 0xFFFF for i in range(block.count)] for block in found.blocks])


def modbus_decode(data: bytes) -> None:
    """Registers of any content, by a map of ours."""
    blocks = SDM630.blocks
    need = sum(block.count for block in blocks)
    registers = list(struct.unpack(f">{need}H", data[: 2 * need].ljust(2 * need, b"\0")))
    answers = []
    for block in blocks:
        answers.append(registers[: block.count])
        del registers[: block.count]
    assert len(SDM630.record(answers)) == SDM630.schema.record_size


class _Line(ModbusLine):
    """The reader of answers without a port."""

    def __init__(self) -> None:
        self._framer = FramerRTU(DecodePDU(False))


SDM630 = load_map("sdm630", FOLDER)
LINE = _Line()
REQUEST = ReadInputRegistersRequest(dev_id=1, address=0, count=2)


def modbus_answer(data: bytes) -> None:
    """What a bus says to a question, with a checksum that is right and as it is."""
    for heard in (data, data + struct.pack(">H", LINE._framer.compute_CRC(data))):
        with contextlib.suppress(SourceError):
            LINE._answer(REQUEST, heard, lambda _: True)


def text_lines(data: bytes) -> None:
    """Lines of a text sensor, plain and with NMEA's checksum."""
    for nmea in (False, True):
        reader = LineReader(PATTERNS, nmea=nmea)
        for chunk in pieces(data):
            for i, match in reader.feed(chunk):
                if PATTERNS[i].schema is not None:
                    PATTERNS[i].record(match)


def pattern(data: bytes) -> None:
    """A pattern from the config, and a line for it."""
    text, _, line = data.decode(errors="replace").partition("\n")
    with contextlib.suppress(ConfigError):
        LineReader([Pattern(text)]).feed(b"\n" + line.encode() + b"\n")


def jpeg(data: bytes) -> None:
    """Where the JPEG in a camera's buffer ends."""
    with mmap.mmap(-1, len(data) + 16) as buffer:
        buffer[: len(data)] = data
        size = whole_jpeg(buffer, len(data))
        assert 0 <= size <= len(data)
        assert not size or (data[:2], data[size - 2 : size]) == (b"\xff\xd8", b"\xff\xd9")


class _Driver:
    """A kernel that answers each ioctl with the next of the bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def open(self, path: str) -> int:
        return 1

    def close(self, fd: int) -> None: ...

    def ioctl(self, fd: int, request: int, argument: bytearray) -> None:
        number = self._data.read(1)
        if not number or number[0] & 0x0F == 0x0F:
            raise OSError(22 if not number else number[0] >> 4, "refused")
        said = self._data.read(len(argument))
        argument[: len(said)] = said

    def map(self, fd: int, length: int, offset: int) -> mmap.mmap:
        if not 0 < length <= 1 << 16:
            raise OSError(22, "absurd")
        return mmap.mmap(-1, length)


def v4l2_structs(data: bytes) -> None:
    """What a V4L2 driver answers: identity, formats, sizes, rates, controls, and a stream's beginning."""
    device = Device("/dev/fuzz", _Driver(data))
    asks = (device.identity, device.formats, lambda: device.sizes(1), lambda: device.rates(1, 2, 3))
    for ask in asks:
        with contextlib.suppress(SourceError):
            ask()
    assert len(list(device.controls())) <= v4l2.MAX_CONTROLS

    async def story() -> None:
        table = CameraSource(name="cam", device="/dev/fuzz", controls={"exposure": 100}, memory_mib=1)
        with contextlib.suppress(SourceError):
            _Stream(table, "/dev/fuzz", _Driver(data), Clock()).close()

    LOOP.run_until_complete(story())


class _Stream(Capture):
    """Without a descriptor that the loop could watch."""

    def __init__(self, table: CameraSource, path: str, kernel: v4l2.Kernel, clock: Clock) -> None:
        loop = asyncio.get_running_loop()
        add, loop.add_reader = loop.add_reader, lambda *_: None  # type: ignore[method-assign]
        try:
            super().__init__(table, path, kernel, clock)
            self._read()
        finally:
            loop.add_reader = add  # type: ignore[method-assign]


LOOP = asyncio.new_event_loop()


class _Board(Wire):
    """A board that says the bytes, whatever it is told, and goes."""

    def __init__(self, data: bytes) -> None:
        super().__init__("fuzz")
        self._held += data
        self._gone = "unplugged"

    async def write(self, data: bytes, timeout_s: float = 10.0) -> None: ...


def raw_repl(data: bytes) -> None:
    """A board that answers the raw REPL with anything."""

    async def story() -> None:
        repl = RawRepl(_Board(data))
        with contextlib.suppress(SourceError):
            await repl.exec("1")

    with contextlib.suppress(SourceError):
        Window(1 + len(data)).take(data)
    LOOP.run_until_complete(story())


def uf2(data: bytes) -> None:
    """MicroPython's image for a board with a drive."""
    block = bytearray(data[:512].ljust(512, b"\0"))
    struct.pack_into("<II", block, 0, 0x0A324655, 0x9E5D5157)
    struct.pack_into("<I", block, 508, 0x0AB16F30)
    for file in (data, bytes(block), bytes(block) + data[512:]):
        with contextlib.suppress(SourceError):
            check_uf2(file)


def recording(data: bytes) -> None:
    """A recording's blocks, its pictures, and a whole file."""
    unpack_block(io.BytesIO(data))
    with contextlib.suppress(RecordingError):
        parse_frame(data)
    with tempfile.NamedTemporaryFile(dir=FOLDER) as file:
        file.write(b"OCTOREC\x01" + data)
        file.flush()
        with contextlib.suppress(RecordingError), Reading(Path(file.name)) as found:
            list(found.records())


def video(data: bytes) -> None:
    """What the process that reads a video tells."""
    with contextlib.suppress(videowire.Mismatch):
        videowire.unpack(data, 1 << 16)


TARGETS: dict[str, Target] = {
    target.__name__: target
    for target in (
        framing, link, lines, words, modbus_map, modbus_decode, modbus_answer, text_lines, pattern, jpeg, v4l2_structs,
        raw_repl, uf2, recording, video,
    )
}  # fmt: skip

# where the search begins: what noise alone would hardly find
SEEDS: dict[str, bytes] = {
    "framing": b"\x20"
    + b"".join(messages.encode(m, 0, 5) for m in (HELLO, Resume(0, 0, 0, 0), Data(0, 5, b"abcd" * 3))),
    "modbus_map": b'title = "t"\nmanual = "m"\n[[channel]]\nname = "v"\nat = 3\ntype = "f32"\nscale = 0.1\nunit = "V"\n',
    "text_lines": b"\x10\nW=12.5kg\r\n-7,fe,word\n$GPA,4807.038,N,11.5*6C\r\n",
    "words": b'Traceback (most recent call last):\n  File "main.py", line 3, in <module>\nOSError: 5\n',
    "pattern": b"ST,GS, {w:float kg} {code:text};{_}\nST,GS, 1.5 kg x;y",
    "raw_repl": b"R\x01\x80\x00\x01\x04OKdone\x04\x04>",
    "recording": pack_block([Record(1, 0, 1, b"some bytes")]),
}
