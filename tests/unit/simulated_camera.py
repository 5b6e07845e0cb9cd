"""A simulation of a V4L2 camera, at the level of open, ioctl and mmap: the kernel's buffer queue without a kernel.

It is modelled on videobuf2: buffers are queued, filled in that order, and wait as done until they are dequeued; a
picture that finds no queued buffer is lost but counted by the sequence; after an unplug every call fails with ENODEV
while descriptors and mappings stay valid until they are closed.
"""

from __future__ import annotations

import asyncio
import errno
import mmap
import os
import struct
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from gateway.acquire import v4l2
from gateway.contract import Frame
from tests.unit.fake_node import Changes, FakeSink

JPEG = b"\xff\xd8" + b"picture" + b"\xff\xd9"
Sizes = Mapping[tuple[int, int], tuple[float, ...]]
USUAL: Mapping[int, Sizes] = {
    v4l2.MJPG: {(640, 480): (30.0, 15.0, 5.0), (1280, 720): (30.0,)},
    v4l2.YUYV: {(640, 480): (30.0,), (320, 240): (30.0,)},
}
EXPOSURE = {
    0x00980913: ["Gain", 1, 0, 100, 1, 50, 0],
    0x009A0901: ["Auto Exposure", 3, 0, 3, 1, 3, 0],
    0x009A0902: ["Exposure Time, Absolute", 1, 3, 2047, 1, 250, 0],
    0x009A0907: ["Pan, Relative", 1, -10, 10, 1, 0, 4],  # read only
}


class _Open:
    """One open descriptor: what videobuf2 keeps for it."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.memory: list[int] = []  # a memfd a buffer
        self.queued: deque[int] = deque()
        self.done: deque[tuple[int, int, int, int, int]] = deque()  # index, bytes, flags, sequence, time in us
        self.streaming = False

    def show(self) -> None:
        """Readable when something is done."""
        if self.done:
            os.eventfd_write(self.fd, 1)

    def free(self) -> None:
        for fd in self.memory:
            os.close(fd)
        self.memory = []
        self.queued.clear()
        self.done.clear()


class SimulatedCamera:
    """A `v4l2.Kernel` with one camera. `plugged` may be set; `opens` counts what is open now."""

    def __init__(self, formats: Mapping[int, Sizes] = USUAL, *, picture_bytes: int = 100_000) -> None:
        self.formats = formats
        self.picture_bytes = picture_bytes
        self.caps = v4l2.CAP_CAPTURE | v4l2.CAP_STREAMING
        self.all_controls = EXPOSURE
        self.values: dict[int, int] = {}
        self.fails: dict[int, int] = {}  # request -> errno
        self.rate = 30.0
        self.opened = 0  # times
        self.sequence = 0
        self.chosen: tuple[int, int, int] = (0, 0, 0)
        self._opens: dict[int, _Open] = {}
        self._maps: list[mmap.mmap] = []
        self._plugged = True
        self._changes = Changes()

    # --- what the test does

    def unplug(self) -> None:
        self._plugged = False
        for each in self._opens.values():
            os.eventfd_write(each.fd, 1)  # epoll says EPOLLERR | EPOLLHUP

    def plug(self) -> None:
        self._plugged = True

    def stall(self) -> None:
        """Readable for ever and nothing to take, as after an error of the bus."""
        for each in self._opens.values():
            os.eventfd_write(each.fd, 1)

    def deliver(self, data: bytes = JPEG, *, flags: int = 0, at_ns: int | None = None) -> bool:
        """The camera has taken a picture; False when no buffer was free and it is lost."""
        sequence, self.sequence = self.sequence, self.sequence + 1
        stream = next((each for each in self._opens.values() if each.streaming), None)
        if stream is None or not stream.queued:
            return False
        index = stream.queued.popleft()
        os.pwrite(stream.memory[index], data, 0)
        micros = (time.monotonic_ns() if at_ns is None else at_ns) // 1000
        stream.done.append((index, len(data), flags | v4l2.FLAG_TIMESTAMP_MONOTONIC, sequence, micros))
        stream.show()
        return True

    @property
    def streaming(self) -> bool:
        return any(each.streaming for each in self._opens.values())

    @property
    def queued(self) -> int:
        return sum(len(each.queued) for each in self._opens.values())

    @property
    def buffers(self) -> int:
        return sum(len(each.memory) for each in self._opens.values())

    @property
    def held(self) -> int:
        """Descriptors and mappings that are not closed."""
        return len(self._opens) + sum(not each.closed for each in self._maps)

    async def streams(self) -> None:
        await self._changes.until(lambda: self.streaming)

    # --- what the kernel does

    def open(self, path: str) -> int:
        if not self._plugged:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        self.opened += 1
        new = _Open()
        self._opens[new.fd] = new
        return new.fd

    def close(self, fd: int) -> None:
        each = self._opens.pop(fd)
        each.free()
        os.close(fd)

    def map(self, fd: int, length: int, offset: int) -> mmap.mmap:
        self._alive()
        index, odd = divmod(offset, mmap.PAGESIZE)
        each = self._opens[fd]
        if odd or index >= len(each.memory) or length > self.picture_bytes:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        mapped = mmap.mmap(each.memory[index], length)
        self._maps.append(mapped)
        return mapped

    def ioctl(self, fd: int, request: int, argument: bytearray) -> None:
        self._alive()
        if request in self.fails:
            raise OSError(self.fails[request], os.strerror(self.fails[request]))
        handler, packed = self._HANDLERS[request]
        values = list(packed.unpack(argument))
        argument[:] = packed.pack(*handler(self, self._opens[fd], values))

    def _alive(self) -> None:
        if not self._plugged:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    def _querycap(self, each: _Open, v: list[Any]) -> list[Any]:
        return [b"uvcvideo", b"Simulated: Camera", b"usb-sim-1", 0x060100, v4l2.CAP_DEVICE_CAPS | self.caps, self.caps]

    def _enum_fmt(self, each: _Open, v: list[Any]) -> list[Any]:
        return [*v[:4], _nth(list(self.formats), v[0]), 0]

    def _enum_sizes(self, each: _Open, v: list[Any]) -> list[Any]:
        return [*v[:2], v4l2.DISCRETE, *_nth(list(self.formats.get(v[1], ())), v[0]), 0, 0, 0, 0]

    def _enum_rates(self, each: _Open, v: list[Any]) -> list[Any]:
        rate = _nth(list(self.formats.get(v[1], {}).get((v[2], v[3]), ())), v[0])
        return [*v[:4], v4l2.DISCRETE, 1000, round(rate * 1000), 0, 0, 0, 0]

    def _s_fmt(self, each: _Open, v: list[Any]) -> list[Any]:
        if each.memory:
            raise _error(errno.EBUSY)
        code = v[3] if v[3] in self.formats else next(iter(self.formats))
        wanted = v[1] * v[2]
        width, height = min(self.formats[code], key=lambda size: abs(size[0] * size[1] - wanted))
        self.chosen = code, width, height
        stride = width * 2 if code == v4l2.YUYV else 0
        return [v[0], width, height, code, 1, stride, self.picture_bytes]

    def _g_parm(self, each: _Open, v: list[Any]) -> list[Any]:
        return [v[0], v4l2.CAP_TIMEPERFRAME, 0, 1000, round(self.rate * 1000), 0, 0]

    def _s_parm(self, each: _Open, v: list[Any]) -> list[Any]:
        rates = self.formats[self.chosen[0]][self.chosen[1:]]
        self.rate = min(rates, key=lambda rate: abs(rate - v[4] / v[3]))
        return self._g_parm(each, v)

    def _queryctrl(self, each: _Open, v: list[Any]) -> list[Any]:
        after = v[0] & ~v4l2.NEXT_CONTROL
        number = _nth([number for number in sorted(self.all_controls) if number > after], 0)
        name, kind, *rest = self.all_controls[number]
        return [number, kind, str(name).encode(), *rest]

    def _s_ctrl(self, each: _Open, v: list[Any]) -> list[Any]:
        if v[0] == 0x009A0902 and self.values.get(0x009A0901) != 1:  # uvcvideo refuses while it is automatic
            raise _error(errno.EACCES)
        self.values[v[0]] = v[1]
        return v

    def _g_ctrl(self, each: _Open, v: list[Any]) -> list[Any]:
        return [v[0], self.values.get(v[0], self.all_controls[v[0]][5])]

    def _reqbufs(self, each: _Open, v: list[Any]) -> list[Any]:
        if any(other.memory for other in self._opens.values()) and v[0]:
            raise _error(errno.EBUSY)
        each.free()
        for number in range(v[0]):
            fd = os.memfd_create(f"sim-{number}")
            os.ftruncate(fd, self.picture_bytes)
            each.memory.append(fd)
        return v

    def _querybuf(self, each: _Open, v: list[Any]) -> list[Any]:
        _nth(each.memory, v[0])
        return [*v[:9], v[0] * mmap.PAGESIZE, self.picture_bytes]

    def _qbuf(self, each: _Open, v: list[Any]) -> list[Any]:
        _nth(each.memory, v[0])
        if v[0] in each.queued or any(done[0] == v[0] for done in each.done):
            raise _error(errno.EINVAL)
        each.queued.append(v[0])
        return v

    def _dqbuf(self, each: _Open, v: list[Any]) -> list[Any]:
        if not each.streaming:
            raise _error(errno.EINVAL)
        if not each.done:
            raise _error(errno.EAGAIN)
        index, used, flags, sequence, micros = each.done.popleft()
        os.eventfd_read(each.fd)
        each.show()
        return [index, v[1], used, flags, 1, *divmod(micros, 10**6), sequence, v[8], 0, self.picture_bytes]

    def _on(self, each: _Open, v: list[Any]) -> list[Any]:
        if not each.memory:
            raise _error(errno.EINVAL)
        each.streaming = True
        self.sequence = 0
        self._changes.tell()
        return v

    def _off(self, each: _Open, v: list[Any]) -> list[Any]:
        each.streaming = False
        each.queued.clear()
        each.done.clear()
        return v

    _HANDLERS: Mapping[int, tuple[Callable[[SimulatedCamera, _Open, list[Any]], list[Any]], struct.Struct]] = {
        v4l2.QUERYCAP: (_querycap, v4l2.CAPABILITY),
        v4l2.ENUM_FMT: (_enum_fmt, v4l2.FORMAT_DESCRIPTION),
        v4l2.ENUM_FRAMESIZES: (_enum_sizes, v4l2.FRAME_SIZE),
        v4l2.ENUM_FRAMEINTERVALS: (_enum_rates, v4l2.FRAME_INTERVAL),
        v4l2.S_FMT: (_s_fmt, v4l2.FORMAT),
        v4l2.G_PARM: (_g_parm, v4l2.STREAM_PARAMETERS),
        v4l2.S_PARM: (_s_parm, v4l2.STREAM_PARAMETERS),
        v4l2.QUERYCTRL: (_queryctrl, v4l2.QUERY_CONTROL),
        v4l2.G_CTRL: (_g_ctrl, v4l2.CONTROL),
        v4l2.S_CTRL: (_s_ctrl, v4l2.CONTROL),
        v4l2.REQBUFS: (_reqbufs, v4l2.REQUEST_BUFFERS),
        v4l2.QUERYBUF: (_querybuf, v4l2.BUFFER),
        v4l2.QBUF: (_qbuf, v4l2.BUFFER),
        v4l2.DQBUF: (_dqbuf, v4l2.BUFFER),
        v4l2.STREAMON: (_on, v4l2.STREAM_TYPE),
        v4l2.STREAMOFF: (_off, v4l2.STREAM_TYPE),
    }


class PictureSink(FakeSink):
    """Keeps the pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.frames: list[Frame] = []

    def frame(self, frame: Frame) -> None:
        self.frames.append(frame)
        self._changes.tell()

    async def has_frames(self, n: int) -> None:
        await self._changes.until(lambda: len(self.frames) >= n)

    async def until(self, true: Callable[[], bool]) -> None:
        """Until something is so, looked at whenever the loop has run once."""
        while not true():
            await asyncio.sleep(0)

    async def until_slowly(self, true: Callable[[], bool]) -> None:
        """The same where other processes do the work."""
        while not true():
            await asyncio.sleep(0.02)


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def _nth(items: list[Any], index: int) -> Any:
    if not 0 <= index < len(items):
        raise _error(errno.EINVAL)
    return items[index]
