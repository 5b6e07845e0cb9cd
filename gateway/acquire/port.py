"""A serial port on the event loop: pyserial opens and configures it, `add_reader` moves the bytes.

The reader's callback only appends; a task takes the bytes with `wait` and `take`. When the device goes away reading
gives b"" for ever, which counts as gone here.

A wake-up of the loop costs more than the few bytes of a reading, so: sparse bytes are read and handed over at once; a
steady trickle (300 readings/s) is read once a period, by a timer that stops with the trickle; a dense stream is read
whenever there is something, and handed over in lots. The periods of all ports end at the same moments, so that their
readings share a commit.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import termios
from functools import partial

from gateway.acquire.identity import find_port
from gateway.acquire.through import Ear, through
from gateway.errors import SourceError

_READ_BYTES = 65536
_FULL_BYTES = 16384  # so much is handed over at once even when the stream is dense
_DENSE_S = 0.003  # a dense stream is handed over in lots of this length
_STEADY_BYTES = 1024  # pieces up to this size may wait for the end of a period: a terminal holds 4 kB
_UNSENT_MAX = 4096

_HINTS = {
    errno.ENOENT: "plug it in; `ls -l /dev/serial/by-id` shows what is there",
    errno.EACCES: "add the daemon's user to the group that owns it, often dialout",
    errno.EBUSY: "another program has it open: close it",
    errno.EAGAIN: "another program has it open: close it",
}


class PortGone(SourceError):
    """The device was unplugged or refuses to be read or written."""


def open_port(
    device: str, baud: int, period_s: float, *, parity: str = "N", data_bits: int = 8, stop_bits: int = 1
) -> SerialPort:
    """The port of the running source, as `SerialPort`: a recording hears it, a replay gives its own."""
    make = partial(SerialPort, device, baud, period_s, parity=parity, data_bits=data_bits, stop_bits=stop_bits)
    opener = through.get()
    return make() if opener is None else opener.open(device, make)


class SerialPort:
    """An open port; close it at once when it is gone, or the device comes back under another name.

    Args:
        device: a path, best one from /dev/serial/by-id, or a USB identity: see `gateway.acquire.identity`.
        baud: as pyserial takes it.
        period_s: how long the bytes of a steady trickle may wait in the line.
        parity, data_bits, stop_bits: as pyserial takes them.

    Attributes:
        since: when the oldest byte of the last `take` may have come, loop time.
        ear: is told what passes through.

    Raises:
        SourceError: it is not there, taken, or no serial port; the hint says what to do.
    """

    def __init__(
        self, device: str, baud: int, period_s: float, *, parity: str = "N", data_bits: int = 8, stop_bits: int = 1
    ) -> None:
        import serial  # 1 MB, and no gateway without a node needs it

        self.device = device = find_port(device)
        try:
            # inter_byte_timeout makes VMIN 1: with pyserial's own 0 an empty read is b"", as after an unplug
            self._serial = serial.Serial(
                device, baud, data_bits, parity, stop_bits, timeout=0, inter_byte_timeout=0, exclusive=True
            )
        except (OSError, ValueError, termios.error) as error:  # SerialException is an OSError
            number = getattr(error, "errno", None)
            reason = os.strerror(number) if number else str(error)
            raise SourceError(
                f"cannot open {device}: {reason}", hint=_HINTS.get(number or 0, "check the port and the baud rate")
            ) from error
        with contextlib.suppress(OSError, ValueError, NotImplementedError, AttributeError):
            self._serial.set_low_latency_mode(True)  # FTDI holds bytes for 16 ms otherwise; PTYs refuse
        self._fd: int = self._serial.fileno()
        self._loop = asyncio.get_running_loop()
        self._chunks: list[bytes] = []
        self._size = 0
        self._period_s = period_s
        self._taken_at = 0.0
        self._came_at = self.since = 0.0
        self._waiter: asyncio.Future[None] | None = None
        self._later: asyncio.TimerHandle | None = None
        self._unsent = b""
        self._gone = ""
        self._poked = False
        self._read_at = 0.0
        self._timer: asyncio.TimerHandle | None = None  # of a steady trickle; no reader is registered meanwhile
        self._prompt = True
        self.paused = False
        self.ear: Ear | None = None
        self._loop.add_reader(self._fd, self._read)

    async def wait(self) -> None:
        """Until there are bytes, somebody poked, or the device is gone.

        Raises:
            PortGone: it is gone and everything it sent was taken.
        """
        if not self._chunks and not self._poked:
            if self._gone:
                raise PortGone(f"{self.device} went away: {self._gone}", hint="it is opened again when it is back")
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        self._poked = False

    def poke(self) -> None:
        """Ends `wait` although nothing came."""
        self._poked = True
        self._wake()

    def take(self) -> bytes:
        """All bytes that came since the last call."""
        chunks, self._chunks, self._size = self._chunks, [], 0
        self.since = self._came_at
        self._taken_at = self._loop.time()
        if self._later is not None:
            self._later.cancel()
            self._later = None
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        if data and self.ear is not None:
            self.ear.heard(data, self.since)
        return data

    def write(self, line: bytes) -> None:
        """Sends a line, later if the device does not take it now; lines that find no room are dropped.

        Losing one is harmless: every line of the link is said again.
        """
        if self._gone or len(self._unsent) + len(line) > _UNSENT_MAX:
            return
        if self.ear is not None:
            self.ear.said(line)
        if self._unsent:
            self._unsent += line
            return
        self._unsent = line
        self._flush()

    def set_prompt(self, prompt: bool) -> None:
        """Whether all that comes is handed over at once, for as long as round trips are measured."""
        self._prompt = prompt
        if prompt and self._timer is not None:
            self._listen()

    def pause(self) -> None:
        """Stops reading: the kernel and the node's ring hold what comes."""
        if not self.paused and not self._gone:
            self.paused = True
            self._stop()

    def resume(self) -> None:
        if self.paused and not self._gone:
            self.paused = False
            self._listen()

    def close(self) -> None:
        self._lost("closed")
        if self.ear is not None:
            self.ear.gone(self._gone)
            self.ear = None
        with contextlib.suppress(OSError, termios.error):
            self._serial.close()

    def _read(self) -> None:
        try:
            chunk = os.read(self._fd, _READ_BYTES)
        except (BlockingIOError, InterruptedError):
            if self._timer is not None:  # the trickle has stopped
                self._listen()
            return
        except OSError as error:
            self._lost(os.strerror(error.errno or 0))
            return
        if not chunk:
            self._lost("unplugged")
            return
        now = self._loop.time()
        if not self._chunks:
            self._came_at = now if self._timer is None else self._read_at
        self._chunks.append(chunk)
        self._size += len(chunk)
        if self._prompt:
            self._wake()
        elif len(chunk) < _STEADY_BYTES and now - self._read_at < 2 * self._period_s:
            self._wake()
            if self._timer is None:
                self._loop.remove_reader(self._fd)
            self._timer = self._loop.call_at((now // self._period_s + 1) * self._period_s, self._read)
        else:
            if self._timer is not None:
                self._listen()
            self._lot(now)
        self._read_at = now

    def _lot(self, now: float) -> None:
        """Wakes the task at once, or when the lot of a dense stream is full."""
        if self._size >= _FULL_BYTES:
            self._wake()
        elif self._later is None:
            wait = self._taken_at + _DENSE_S - now
            if wait > 0:
                self._later = self._loop.call_later(wait, self._wake)
            else:
                self._wake()

    def _listen(self) -> None:
        self._stop()
        self._loop.add_reader(self._fd, self._read)

    def _stop(self) -> None:
        self._loop.remove_reader(self._fd)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _flush(self) -> None:
        try:
            sent = os.write(self._fd, self._unsent)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            self._lost(os.strerror(error.errno or 0))
            return
        had_writer = sent < len(self._unsent)
        self._unsent = self._unsent[sent:]
        if had_writer:
            self._loop.add_writer(self._fd, self._flush)
        else:
            self._loop.remove_writer(self._fd)

    def _lost(self, reason: str) -> None:
        if self._gone:
            return
        self._gone = reason
        self._stop()
        self._loop.remove_writer(self._fd)
        if self._later is not None:
            self._later.cancel()
            self._later = None
        self._wake()
