"""Video4Linux2 as far as a USB camera needs it: the structs of linux/videodev2.h, and a device that is asked by ioctl.

Single-planar capture with memory-mapped buffers. The structs' sizes are part of each request's number, so a wrong one is
refused by the kernel (ENOTTY) and never misread. They depend on the size of C's `long`: `layout` knows both. On 32 bits
it is the layout of a 32-bit time_t, which kernels take beside the newer one; its times of the monotonic clock last.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

from gateway.errors import SourceError

CAPTURE = 1  # V4L2_BUF_TYPE_VIDEO_CAPTURE
MMAP = 1  # V4L2_MEMORY_MMAP
CAP_CAPTURE, CAP_STREAMING, CAP_DEVICE_CAPS, CAP_TIMEPERFRAME = 0x1, 0x0400_0000, 0x8000_0000, 0x1000
CAP_CAPTURE_MPLANE = 0x1000
FLAG_ERROR, FLAG_TIMESTAMP_MASK, FLAG_TIMESTAMP_MONOTONIC = 0x40, 0xE000, 0x2000
DISCRETE = 1  # of sizes and intervals; else from-to-step
NEXT_CONTROL = 0x8000_0000
CONTROL_UNUSABLE = 0x1 | 0x4  # disabled, read only
CONTROL_NUMBERS = {1: "int", 2: "bool", 3: "menu", 9: "menu"}  # the types that take one number

MJPG, JPEG, YUYV = (int.from_bytes(code, "little") for code in (b"MJPG", b"JPEG", b"YUYV"))

MAX_FORMATS, MAX_SIZES, MAX_RATES, MAX_CONTROLS = 64, 64, 64, 256  # of a list; a driver may say what it likes

LONG = struct.calcsize("l")
CAPABILITY = struct.Struct("<16s32s32s3I12x")
FORMAT_DESCRIPTION = struct.Struct("<3I32s2I12x")  # index, type, flags, description, pixel format, bus code
FRAME_SIZE = struct.Struct("<3I6I8x")  # index, pixel format, type, then width, height or min, max, step of each
FRAME_INTERVAL = struct.Struct("<5I6I8x")  # index, pixel format, width, height, type, then fraction or three of them
REQUEST_BUFFERS = struct.Struct("<4IB3x")  # count, type, memory, capabilities, flags
STREAM_PARAMETERS = struct.Struct("<7I176x")  # type, capability, mode, numerator, denominator, mode, buffers
CONTROL = struct.Struct("<Ii")
QUERY_CONTROL = struct.Struct("<2I32s4iI8x")  # id, type, name, min, max, step, default, flags
STREAM_TYPE = struct.Struct("<i")


def layout(long: int) -> tuple[struct.Struct, struct.Struct]:
    """`v4l2_format` (type, then width, height, pixel format, field, bytes per line, size of the picture) and
    `v4l2_buffer` (index, type, bytesused, flags, field, seconds, microseconds, sequence, memory, offset, length) where a
    long has `long` bytes, 4 or 8."""
    if long == 8:
        return struct.Struct("<I4x6I176x"), struct.Struct("<5I4x2q16x2IQI12x")
    return struct.Struct("<I6I176x"), struct.Struct("<5I2i16x2I2I8x")


FORMAT, BUFFER = layout(LONG)


def _request(direction: int, number: int, size: int) -> int:
    """_IOC('V') of asm-generic/ioctl.h, as on x86 and ARM; direction 1 writes, 2 reads."""
    return direction << 30 | size << 16 | ord("V") << 8 | number


QUERYCAP = _request(2, 0, CAPABILITY.size)
ENUM_FMT = _request(3, 2, FORMAT_DESCRIPTION.size)
S_FMT = _request(3, 5, FORMAT.size)
REQBUFS = _request(3, 8, REQUEST_BUFFERS.size)
QUERYBUF = _request(3, 9, BUFFER.size)
QBUF = _request(3, 15, BUFFER.size)
DQBUF = _request(3, 17, BUFFER.size)
STREAMON = _request(1, 18, STREAM_TYPE.size)
STREAMOFF = _request(1, 19, STREAM_TYPE.size)
G_PARM = _request(3, 21, STREAM_PARAMETERS.size)
S_PARM = _request(3, 22, STREAM_PARAMETERS.size)
G_CTRL = _request(3, 27, CONTROL.size)
S_CTRL = _request(3, 28, CONTROL.size)
QUERYCTRL = _request(3, 36, QUERY_CONTROL.size)
ENUM_FRAMESIZES = _request(3, 74, FRAME_SIZE.size)
ENUM_FRAMEINTERVALS = _request(3, 75, FRAME_INTERVAL.size)


class Kernel(Protocol):
    """What a device is asked through: the real kernel, or a simulation of it in the tests."""

    def open(self, path: str) -> int: ...
    def close(self, fd: int) -> None: ...
    def ioctl(self, fd: int, request: int, argument: bytearray) -> None: ...
    def map(self, fd: int, length: int, offset: int) -> mmap.mmap: ...


class Linux:
    """The real one."""

    def open(self, path: str) -> int:
        return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def close(self, fd: int) -> None:
        os.close(fd)

    def ioctl(self, fd: int, request: int, argument: bytearray) -> None:
        fcntl.ioctl(fd, request, argument, True)

    def map(self, fd: int, length: int, offset: int) -> mmap.mmap:
        return mmap.mmap(fd, length, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=offset)


class Format(NamedTuple):
    """What the driver has agreed to; `size` is the most bytes of one picture."""

    code: int
    width: int
    height: int
    stride: int
    size: int


class Buffer(NamedTuple):
    """One `v4l2_buffer`."""

    number: int
    type: int
    used: int
    flags: int
    field: int
    seconds: int
    micros: int
    sequence: int
    memory: int
    offset: int
    length: int


class Control(NamedTuple):
    """A number that can be set; `name` is the driver's in lower case with underscores, as v4l2-ctl writes it."""

    id: int
    name: str
    kind: str
    minimum: int
    maximum: int
    step: int
    default: int


class CameraGone(SourceError):
    """The device was unplugged, or its driver gave up."""


class Device:
    """An open /dev/video*. Every failure of a call is a `SourceError` that names the device; `CameraGone` when it left."""

    def __init__(self, path: str, kernel: Kernel) -> None:
        self.path = path
        self._kernel = kernel
        try:
            self.fd = kernel.open(path)
        except OSError as error:
            raise SourceError(f"cannot open {path}: {error.strerror}", hint=_hint(error.errno)) from error

    def close(self) -> None:
        if self.fd >= 0:
            self._kernel.close(self.fd)
            self.fd = -1

    def ask(self, request: int, packed: struct.Struct, *values: object) -> tuple[Any, ...]:
        """One ioctl; the struct as the driver left it.

        Raises:
            OSError: it refused.
        """
        argument = bytearray(packed.pack(*values))
        self._kernel.ioctl(self.fd, request, argument)
        return packed.unpack(argument)

    def must(self, what: str, request: int, packed: struct.Struct, *values: object) -> tuple[Any, ...]:
        """`ask` for what cannot be done without; SourceError."""
        try:
            return self.ask(request, packed, *values)
        except OSError as error:
            raise self.fault(what, error) from error

    def fault(self, what: str, error: OSError) -> SourceError:
        kind = CameraGone if error.errno in (errno.ENODEV, errno.ENXIO) else SourceError
        return kind(f"{self.path} cannot {what}: {error.strerror}", hint=_hint(error.errno))

    def map(self, length: int, offset: int) -> mmap.mmap:
        try:
            return self._kernel.map(self.fd, length, offset)
        except (OSError, ValueError) as error:
            raise SourceError(f"{self.path} cannot share a buffer of {length} bytes: {error}") from error

    # --- what it is and can do

    def identity(self) -> tuple[str, str, str]:
        """Driver, name and bus of a capture device.

        Raises:
            SourceError: it is none, or of a kind that is not read here.
        """
        driver, card, bus, _, all_caps, own = self.must("say what it is", QUERYCAP, CAPABILITY, b"", b"", b"", 0, 0, 0)
        caps = own if all_caps & CAP_DEVICE_CAPS else all_caps
        if not caps & CAP_CAPTURE or not caps & CAP_STREAMING:
            what = "gives raw planes, as CSI cameras do" if caps & CAP_CAPTURE_MPLANE else "captures no pictures"
            raise SourceError(
                f"{self.path} {what}", hint="docs/cameras.md says how to use those; `octogate cameras` lists the others"
            )
        return _text(driver), _text(card), _text(bus)

    def formats(self) -> list[int]:
        """Pixel formats, best first as the driver sees it."""
        return [values[4] for values in self._list(MAX_FORMATS, ENUM_FMT, FORMAT_DESCRIPTION, CAPTURE, 0, b"", 0, 0)]

    def sizes(self, code: int) -> list[tuple[int, int]]:
        """Widths and heights of a format; of a range the smallest and the largest."""
        found: list[tuple[int, int]] = []
        for _, _, kind, *numbers in self._list(MAX_SIZES, ENUM_FRAMESIZES, FRAME_SIZE, code, *[0] * 7):
            if kind != DISCRETE:
                return [(numbers[0], numbers[3]), (numbers[1], numbers[4])]
            found.append((numbers[0], numbers[1]))
        return found

    def rates(self, code: int, width: int, height: int) -> list[float]:
        """Pictures a second at a size, largest first; of a range the largest and the smallest."""
        found: list[float] = []
        listing = self._list(MAX_RATES, ENUM_FRAMEINTERVALS, FRAME_INTERVAL, code, width, height, *[0] * 7)
        for _, _, _, _, kind, *numbers in listing:
            ends = [numbers[0:2]] if kind == DISCRETE else [numbers[0:2], numbers[2:4]]
            found += [round(below / above, 3) for above, below in ends if above]
            if kind != DISCRETE:
                break
        return sorted(set(found), reverse=True)

    def controls(self) -> Iterator[Control]:
        """Those that take one number and can be set."""
        at = 0
        for _ in range(MAX_CONTROLS):
            try:
                number, kind, name, low, high, step, default, flags = self.ask(
                    QUERYCTRL, QUERY_CONTROL, at | NEXT_CONTROL, 0, b"", 0, 0, 0, 0, 0
                )
            except OSError:  # EINVAL: that was the last one
                return
            if number <= at:
                return
            at = number
            if kind in CONTROL_NUMBERS and not flags & CONTROL_UNUSABLE:
                yield Control(at, plain(_text(name)), CONTROL_NUMBERS[kind], low, high, step, default)

    def _list(self, most: int, request: int, packed: struct.Struct, *rest: object) -> Iterator[tuple[Any, ...]]:
        for index in range(most):
            try:
                yield self.ask(request, packed, index, *rest)
            except OSError:  # EINVAL past the last one; ENOTTY: it keeps no such list
                return

    # --- how it shall be

    def set_format(self, code: int, width: int, height: int) -> Format:
        """Ask for one; the driver may give another size, or another format altogether."""
        values = self.must("take pictures", S_FMT, FORMAT, CAPTURE, width, height, code, 1, 0, 0)
        _, wide, high, got, _, stride, size = values
        return Format(got, wide, high, stride, size)

    def set_rate(self, fps: float) -> float:
        """Ask for a frame rate; the one that the driver gives, 0 when it does not say."""
        try:
            _, capability, *_ = self.ask(G_PARM, STREAM_PARAMETERS, CAPTURE, 0, 0, 0, 0, 0, 0)
            if not capability & CAP_TIMEPERFRAME:
                return 0.0
            got = self.ask(S_PARM, STREAM_PARAMETERS, CAPTURE, 0, 0, 1000, round(fps * 1000), 0, 0)
        except OSError:  # many drivers have one rate and no such request
            return 0.0
        return got[4] / got[3] if got[3] else 0.0

    def set_control(self, number: int, value: int) -> None:
        self.ask(S_CTRL, CONTROL, number, value)

    def get_control(self, number: int) -> int:
        return int(self.ask(G_CTRL, CONTROL, number, 0)[1])

    # --- its buffers

    def buffer(self, request: int, index: int = 0) -> Buffer:
        """QUERYBUF, QBUF or DQBUF; OSError as it came."""
        return Buffer._make(self.ask(request, BUFFER, index, CAPTURE, 0, 0, 0, 0, 0, 0, MMAP, 0, 0))


def plain(name: str) -> str:
    """`Exposure Time, Absolute` -> `exposure_time_absolute`."""
    return "_".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


def code_name(code: int) -> str:
    """A pixel format's four letters."""
    return code.to_bytes(4, "little").decode("latin-1").strip()


def _text(raw: bytes) -> str:
    return raw.partition(b"\0")[0].decode(errors="replace")


def _hint(number: int | None) -> str:
    return {
        errno.ENOENT: "plug it in; `octogate cameras` shows what is there",
        errno.ENODEV: "plug it in; `octogate cameras` shows what is there",
        errno.EACCES: "add the daemon's user to the group that owns it, often video",
        errno.EBUSY: "another program has it open: close it",
        errno.ENOTTY: "is this a camera? `octogate cameras` shows those",
        errno.ENOSPC: "the USB bus has no room: another port, a smaller picture or a lower rate",
    }.get(number or 0, "")
