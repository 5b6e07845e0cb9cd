"""The child process that reads one video: `python -m gateway.acquire.videochild <descriptor>`.

FFmpeg (by PyAV) opens the stream or file, decodes it and makes JPEGs; MJPEG passes through as it is. Whatever hangs or
crashes in there takes only this process along: the daemon kills it when it says nothing for too long.
"""

from __future__ import annotations

import mmap
import signal
import socket
import sys
import time
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import msgspec

from gateway.acquire import videowire
from gateway.acquire.videowire import SLOTS, Kind, Setup, Told
from gateway.child import die_with_parent

ALIVE_S = 0.5  # life is shown so often while no picture is wanted
BAD_MAX = 200  # packets in a row that cannot be decoded: the stream is not what it says
MAX_SIDE = 16384
_QUALITY = {"qmin": "4", "qmax": "4"}  # about 85 of libjpeg
_NET = "rtsp,rtsps,rtp,srtp,udp,tcp,tls,http,https,httpproxy,crypto"
_FILE = "file,crypto"  # a playlist in a file must not fetch anything


class _Unusable(Exception):
    """It will not get better by trying again soon."""


def main(descriptor: int) -> int:
    """The exit status: 0 when it said why it ends, or the daemon is gone."""
    channel = socket.socket(fileno=descriptor)
    setup = msgspec.json.decode(channel.recv(videowire.PACKET_MAX), type=Setup)
    die_with_parent(setup.parent)
    for number in (signal.SIGINT, signal.SIGTERM):  # the daemon ends its children itself
        signal.signal(number, signal.SIG_IGN)
    out = _Out(channel, setup)
    try:
        import av
    except ImportError as error:
        out.tell(Told(Kind.UNUSABLE, text=f"{error}; install octogate[video]"))
        return 0
    av.logging.set_level(av.logging.ERROR)
    try:
        while True:
            _play(av, setup, out)
            if not setup.loop or "://" in setup.url:
                break
        out.tell(Told(Kind.ENDED))
    except _Unusable as error:
        out.tell(Told(Kind.UNUSABLE, text=str(error)))
    except av.error.FFmpegError as error:
        out.tell(Told(Kind.FAULT, text=error.strerror or type(error).__name__))  # str(error) would show the password
    except (BrokenPipeError, ConnectionResetError):
        pass
    return 0


def _play(av: Any, setup: Setup, out: _Out) -> None:
    """From opening it to its end."""
    live = "://" in setup.url
    options = {"protocol_whitelist": _NET if live else _FILE}
    if setup.url.startswith("rtsp"):
        options["rtsp_transport"] = setup.transport
    form = None
    if setup.url.startswith("tcp:"):  # bare JPEGs, one after the other: FFmpeg would need 10 s to guess it
        form, options["analyzeduration"] = "mjpeg", "500000"
    with av.open(setup.url, format=form, options=options) as container:
        if not container.streams.video:
            raise _Unusable("there are no pictures in it")
        stream = container.streams.video[0]
        codec = stream.codec_context
        codec.thread_type, codec.thread_count = "SLICE", 1  # threads by frame would delay each picture
        rate = f", {float(stream.average_rate):g} fps" if stream.average_rate else ""
        out.tell(Told(Kind.OPENED, text=f"{codec.name} {codec.width} x {codec.height}{rate}"))
        pace = _Pace(setup.fps, live)
        encoder = _Encoder(av)
        seen = False
        for item in _items(av, container, stream, out):
            seen = True
            if pace.wanted(item.time if hasattr(item, "time") else float((item.pts or 0) * item.time_base)):
                slot = out.free()
                if slot is None:
                    out.dropped += 1
                else:
                    out.picture(slot, encoder.jpeg(item))
            out.alive()
        if not seen:
            raise _Unusable("there is no picture in it that can be decoded")
        pace.finish()


def _items(av: Any, container: Any, stream: Any, out: _Out) -> Iterator[Any]:
    """Decoded pictures, or MJPEG packets as they are."""
    bad = 0
    for packet in container.demux(stream):
        if stream.codec_context.name == "mjpeg":
            if packet.size:
                yield packet
            continue
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            out.bad += 1
            bad += 1
            if bad > BAD_MAX:
                raise
            continue
        bad = 0
        yield from frames


class _Pace:
    """Which pictures are wanted; of a file also when."""

    def __init__(self, fps: float, live: bool) -> None:
        self._period = 1 / fps
        self._live = live
        self._start = time.monotonic()
        self._first: float | None = None
        self._due = 0.0
        self._last = 0.0

    def wanted(self, at: float | None) -> bool:
        """Whether the picture of time `at` (its stream's, seconds) is; a file waits until then."""
        now = time.monotonic() - self._start
        if not self._live and at is not None:
            if self._first is None:
                self._first = at
            at -= self._first
        else:
            at = now  # a stream's own times jump
        if at < self._due - 0.1 * self._period:
            return False
        self._due = max(self._due + self._period, at)
        self._last = at
        if not self._live and at > now:
            time.sleep(min(at - now, 1.0))
        return True

    def finish(self) -> None:
        """The last picture of a file stays for its time: one of a single picture must not spin."""
        left = self._start + self._last + self._period - time.monotonic()
        if not self._live and left > 0:
            time.sleep(min(left, 1.0))


class _Encoder:
    """Pictures to JPEG; a new encoder when their size changes."""

    def __init__(self, av: Any) -> None:
        self._av = av
        self._codec: Any = None
        self._count = 0

    def jpeg(self, item: Any) -> bytes:
        if isinstance(item, self._av.Packet):
            return bytes(item)
        if not (0 < item.width <= MAX_SIDE and 0 < item.height <= MAX_SIDE):
            raise _Unusable(f"pictures of {item.width} x {item.height}")
        if self._codec is None or (self._codec.width, self._codec.height) != (item.width, item.height):
            self._codec = self._av.CodecContext.create("mjpeg", "w")
            self._codec.width, self._codec.height = item.width, item.height
            self._codec.pix_fmt, self._codec.time_base = "yuvj420p", Fraction(1, 1000)
            self._codec.options = _QUALITY
        picture = item.reformat(width=item.width, height=item.height, format="yuvj420p")
        self._count += 1
        # the encoder wants times that grow, and those of a film that jumps do not
        picture.pts, picture.time_base = self._count, self._codec.time_base
        return b"".join(map(bytes, self._codec.encode(picture)))


class _Out:
    """The way to the daemon."""

    def __init__(self, channel: socket.socket, setup: Setup) -> None:
        self._channel = channel
        self._memory = mmap.mmap(setup.memory, SLOTS * setup.slot_bytes)
        self._slot_bytes = setup.slot_bytes
        self._free = list(range(SLOTS))
        self._told_at = 0.0
        self.dropped = self.bad = 0

    def tell(self, told: Told) -> None:
        self._channel.send(videowire.pack(told))
        self._told_at = time.monotonic()

    def alive(self) -> None:
        if time.monotonic() - self._told_at > ALIVE_S:
            self.tell(Told(Kind.ALIVE, dropped=self.dropped, bad=self.bad))

    def free(self) -> int | None:
        """A slot that the daemon has copied out."""
        while True:
            try:
                given = self._channel.recv(16, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            if not given:
                raise BrokenPipeError
            self._free += given
        return self._free[-1] if self._free else None

    def picture(self, slot: int, data: bytes) -> None:
        if len(data) > self._slot_bytes or not data.startswith(b"\xff\xd8") or b"\xff\xd9" not in data[-64:]:
            self.bad += 1
            return
        self._free.remove(slot)
        at = slot * self._slot_bytes
        self._memory[at : at + len(data)] = data
        self.tell(Told(Kind.PICTURE, slot, len(data), time.monotonic_ns(), self.dropped, self.bad))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
