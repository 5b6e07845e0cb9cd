"""Pictures of a V4L2 camera on the event loop: the driver fills mapped buffers, the newest whole picture is copied out.

Every picture is copied once, from the driver's buffer into the bytes that go through the gateway; one that is too many,
broken or overtaken is not copied at all. The buffer goes back to the driver at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
from collections.abc import Mapping

from gateway.acquire import v4l2
from gateway.acquire.states import Unfit
from gateway.acquire.v4l2 import Buffer, CameraGone, Device, Format, Kernel
from gateway.clock import Clock
from gateway.contract import Stamp
from gateway.errors import SourceError
from gateway.source_tables import CameraSource as CameraConfig

BUFFERS = 4  # with fewer a driver skips pictures while one is copied
MIN_BUFFERS = 2
_EMPTY_MAX = 64  # wake-ups in a row without a picture: the descriptor reports an error that no call names
_STALE_NS = 10 * 10**9  # a driver's time this far off is not the time of the picture
_SOI, _EOI = b"\xff\xd8", b"\xff\xd9"  # ISO 10918-1: start and end of image
_WANTED = {"auto": (v4l2.MJPG, v4l2.JPEG, v4l2.YUYV), "mjpeg": (v4l2.MJPG, v4l2.JPEG), "yuyv": (v4l2.YUYV,)}
# what people call it -> the control, and the automatic that must be off (id, value) or the driver ignores or refuses it
_MANUAL = {
    "exposure": (0x009A0902, (0x009A0901, 1)),
    "gain": (0x00980913, (0x00980912, 0)),
    "focus": (0x009A090A, (0x009A090C, 0)),
}


class Capture:
    """A camera that streams; `close` it at once when it is gone, or it comes back under another name.

    Attributes:
        format: what the driver gives.
        fps: its rate, 0 when it does not say.
        refused: controls that could not be set, and why.
        seen_at: when the last whole picture came, loop time.
        dropped: pictures that a newer one replaced here or that the driver skipped.
        bad: pictures that were broken.

    Raises:
        SourceError: it is not there, taken, or none; `Unfit` when it cannot do what is asked.
    """

    def __init__(self, table: CameraConfig, path: str, kernel: Kernel, clock: Clock) -> None:
        self._loop = asyncio.get_running_loop()
        self._clock = clock
        self._maps: list[mmap.mmap] = []
        self._waiter: asyncio.Future[None] | None = None
        self._picture: tuple[bytes, Stamp] | None = None
        self._gone: SourceError | None = None
        self._sequence = -1
        self._empty = 0
        self.dropped = self.bad = 0
        self.seen_at = self._loop.time()
        self._device = Device(path, kernel)
        with contextlib.ExitStack() as failed:
            failed.callback(self.close)
            self._device.identity()
            self.format = self._negotiate(table)
            self.fps = self._device.set_rate(table.fps)
            self.refused = self._set_controls(table.controls)
            self._start(table)
            failed.pop_all()
        # a camera that is faster than wanted is thinned out here; one in the rate's own jitter is not
        self._period_ns = 0 if 0 < self.fps <= table.fps * 1.05 else round(1e9 / table.fps)
        self._slack_ns = round(5e8 / self.fps) if self.fps else self._period_ns // 10
        self._due_ns = 0
        self._loop.add_reader(self._device.fd, self._read)

    @property
    def media(self) -> str:
        if self.format.code != v4l2.YUYV:
            return "image/jpeg"
        return f"image/x-yuyv;{self.format.width};{self.format.height};{self.format.stride}"

    async def picture(self) -> tuple[bytes, Stamp] | None:
        """The newest picture that was not taken yet, waiting for one; None when somebody poked.

        Raises:
            CameraGone: the device has left.
        """
        if self._picture is None and self._gone is None:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self._gone is not None:
            raise self._gone
        picture, self._picture = self._picture, None
        return picture

    def poke(self) -> None:
        """Ends `picture` although none came."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def close(self) -> None:
        if self._device.fd < 0:
            return
        self._loop.remove_reader(self._device.fd)
        with contextlib.suppress(OSError):  # of a device that is gone
            self._device.ask(v4l2.STREAMOFF, v4l2.STREAM_TYPE, v4l2.CAPTURE)
        for mapped in self._maps:
            mapped.close()
        self._maps = []
        self._device.close()

    # --- before the first picture

    def _negotiate(self, table: CameraConfig) -> Format:
        """The first of our formats that the driver has; it chooses the size that is nearest to the one asked for."""
        offered = self._device.formats()
        for code in _WANTED[table.format]:
            if code in offered:
                got = self._device.set_format(code, table.width, table.height)
                if got.code == code and got.width and got.height and got.size:
                    return got
        names = ", ".join(map(v4l2.code_name, offered)) or "none"
        raise Unfit(f"{self._device.path}: no format that is read here; it has: {names}", hint="format = 'auto' helps")

    def _set_controls(self, wanted: Mapping[str, int]) -> list[str]:
        refused = []
        found = {control.name: control for control in self._device.controls()} if wanted else {}
        by_id = {control.id: control for control in found.values()}
        for name, value in wanted.items():
            control = found.get(name)
            if name in _MANUAL:
                number, (automatic, off) = _MANUAL[name]
                control = by_id.get(number, control)
                if control is not None and automatic in by_id:
                    with contextlib.suppress(OSError):  # then setting the value itself says so
                        self._device.set_control(automatic, off)
            if control is None:
                refused.append(f"there is no control '{name}'; it has: {', '.join(sorted(found)) or 'none'}")
            elif not control.minimum <= value <= control.maximum:
                refused.append(f"{name} = {value} is not within {control.minimum} to {control.maximum}")
            else:
                try:
                    self._device.set_control(control.id, value)
                except OSError as error:
                    refused.append(f"{name} = {value}: {error.strerror}")
        return refused

    def _start(self, table: CameraConfig) -> None:
        device, most = self._device, table.memory_mib << 20
        count = min(BUFFERS, most // self.format.size - 1)  # one picture is on its way through the gateway
        if count < MIN_BUFFERS:
            need = -(-(MIN_BUFFERS + 1) * self.format.size >> 20)
            raise Unfit(
                f"{device.path}: pictures of up to {self.format.size} bytes do not fit memory_mib = {table.memory_mib}",
                hint=f"set it to {need} or more, or take smaller pictures",
            )
        granted = device.must("give buffers", v4l2.REQBUFS, v4l2.REQUEST_BUFFERS, count, v4l2.CAPTURE, v4l2.MMAP, 0, 0)
        if not 1 <= granted[0] <= 32:  # VIDEO_MAX_FRAME
            raise SourceError(f"{device.path} gave {granted[0]} buffers")
        try:
            for index in range(granted[0]):
                buffer = device.buffer(v4l2.QUERYBUF, index)
                if len(self._maps) * buffer.length > most:
                    raise Unfit(f"{device.path} insists on more buffers than memory_mib = {table.memory_mib} allows")
                self._maps.append(device.map(buffer.length, buffer.offset))
                device.buffer(v4l2.QBUF, index)
            device.ask(v4l2.STREAMON, v4l2.STREAM_TYPE, v4l2.CAPTURE)
        except OSError as error:
            raise device.fault("start", error) from error

    # --- the pictures

    def _read(self) -> None:
        """The descriptor is readable: take what is ready, keep the newest."""
        newest: tuple[Buffer, int, int] | None = None
        try:
            with contextlib.suppress(BlockingIOError, InterruptedError):
                for _ in self._maps:  # no more than these can be ready
                    buffer = self._device.buffer(v4l2.DQBUF)
                    self._empty = 0
                    self._count_skipped(buffer.sequence)
                    at_ns = self._time_of(buffer)
                    if at_ns + self._slack_ns < self._due_ns:
                        self._device.buffer(v4l2.QBUF, buffer.number)
                        continue
                    if not (size := self._whole(buffer)):
                        self.bad += 1
                        self._device.buffer(v4l2.QBUF, buffer.number)
                        continue
                    if newest is not None:
                        self.dropped += 1
                        self._device.buffer(v4l2.QBUF, newest[0].number)
                    newest = buffer, size, at_ns
            if newest is not None:
                self._take(*newest)
                self._device.buffer(v4l2.QBUF, newest[0].number)
        except OSError as error:
            self._lose(error.strerror or str(error))
            return
        self._empty += 1
        if self._empty > _EMPTY_MAX:
            self._lose("it reports an error and gives no picture")

    def _whole(self, buffer: Buffer) -> int:
        """Bytes of the picture in a buffer, 0 when it is not a whole one: the first ones after a start often are not."""
        if not 0 <= buffer.number < len(self._maps):
            raise OSError(0, f"the driver names buffer {buffer.number} of {len(self._maps)}")
        mapped = self._maps[buffer.number]
        if buffer.flags & v4l2.FLAG_ERROR or not 0 < buffer.used <= len(mapped):
            return 0
        if self.format.code == v4l2.YUYV:
            size = self.format.stride * self.format.height
            return size if buffer.used >= size else 0
        return whole_jpeg(mapped, buffer.used)

    def _take(self, buffer: Buffer, size: int, at_ns: int) -> None:
        if self._picture is not None:
            self.dropped += 1
        self._picture = self._maps[buffer.number][:size], self._clock.at(at_ns)
        self.seen_at = self._loop.time()
        if self._period_ns:
            self._due_ns = max(self._due_ns + self._period_ns, at_ns)
        self.poke()

    def _count_skipped(self, sequence: int) -> None:
        if 0 <= self._sequence < sequence:
            self.dropped += sequence - self._sequence - 1
        self._sequence = sequence

    def _time_of(self, buffer: Buffer) -> int:
        """When it was taken, monotonic ns: the kernel's own time when it is one of this clock and not absurd."""
        now = self._clock.mono_ns()
        at = buffer.seconds * 10**9 + buffer.micros * 1000
        monotonic = buffer.flags & v4l2.FLAG_TIMESTAMP_MASK == v4l2.FLAG_TIMESTAMP_MONOTONIC
        return at if monotonic and 0 <= now - at < _STALE_NS else now

    def _lose(self, reason: str) -> None:
        self._loop.remove_reader(self._device.fd)
        self._gone = CameraGone(
            f"{self._device.path} went away: {reason}", hint="it is opened again when it is back under this name"
        )
        self.poke()


def whole_jpeg(mapped: mmap.mmap, used: int) -> int:
    """Bytes of the JPEG that begins in a buffer of which `used` are filled, from SOI to EOI; 0 when it has not both."""
    if mapped[:2] != _SOI:
        return 0
    end = mapped.rfind(_EOI, 2, used)  # drivers pad behind it
    return end + 2 if end >= 0 else 0
