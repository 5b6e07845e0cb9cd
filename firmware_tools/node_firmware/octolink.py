# The node's half of the link; docs/link.md specifies it.
#
# MicroPython 1.19 or newer, and CPython unchanged.
import binascii
import json
import os
import select
import struct
import sys
import time
from array import array

VERSION = 1
FIRMWARE = "0.1.0"
HELLO, DATA, BLOB, PONG, RESUME, LOG, REPLY = 1, 2, 3, 4, 5, 6, 7
HEAD = "<BBHI"  # version, type, seq, ticks
DATA_HEAD = "<BBHIBI"  # and stream, step_us
DATA_OVERHEAD = 17  # with the crc
BLOB_PIECE = 512
LINE_MAX = 512
CONTROL_MAX = 8  # answers that wait to be sent; the oldest goes first
PROBE_US = (2000000, 60000000)  # un-acked frames and silence: the newest is sent again after so long
CODES = bytes(range(256))

try:
    ticks_us, ticks_diff = time.ticks_us, time.ticks_diff
except AttributeError:  # CPython

    def ticks_us():
        return time.monotonic_ns() // 1000

    def ticks_diff(a, b):
        return a - b


try:
    _read, _write = os.read, os.write  # CPython
except AttributeError:

    def _read(fd, n):
        # one byte: a board's stdin blocks until it has all that was asked for
        return sys.stdin.buffer.read(1)

    def _write(fd, data):
        return sys.stdout.buffer.write(data)


class Clock:
    """Microseconds since boot; the counter wraps at 2^30 on boards, so look at least every 8 minutes."""

    def __init__(self):
        self._last = ticks_us()
        self.us = 0

    def now(self):
        ticks = ticks_us()
        self.us += ticks_diff(ticks, self._last)
        self._last = ticks
        return self.us


def cobs(raw):
    """Byte stuffing, zeros at both ends; a loop over bytes is slow."""
    out = [b"\0"]
    for part in raw.split(b"\0"):
        while len(part) >= 254:
            out.append(b"\xff")
            out.append(part[:254])
            part = part[254:]
        n = len(part) + 1
        out.append(CODES[n : n + 1])
        out.append(part)
    out.append(b"\0")
    return memoryview(b"".join(out))


def frame(kind, seq, us, payload):
    raw = struct.pack(HEAD, VERSION, kind, seq & 0xFFFF, us & 0xFFFFFFFF) + payload
    return cobs(raw + struct.pack("<I", binascii.crc32(raw)))


class Link:
    """Keeps what it was given until the gateway has it on disk.

    Args:
        streams: [{"id": 0, "name": ..., "channels": [[name, struct code, unit], ...], "rate": ...}].
        ring: frames kept, under 32768; when all are un-acked the oldest is overwritten, and told.
        slot: bytes of the largest frame: 17 + records.
        piece: bytes written at once; a board's USB buffer takes 64.
        slab: a bytearray of ring * slot bytes, set aside before the heap was in pieces.
        commands: {"stream/channel": f}: a CMD calls f(value), which raises ValueError to refuse.
        cameras: names of what `picture` sends.
    """

    def __init__(self, node, streams, ring=256, slot=177, piece=64, commands=None, slab=None, cameras=()):
        self.clock = Clock()
        self.node, self.streams, self.cameras = node, streams, cameras
        self.commands = commands or {}
        self.sending = None  # a picture: data, blob, time
        self._at = self._blobs = 0
        self._turn = self._one = False  # a piece after each frame and one a pump: readings do not wait for a picture
        self._obeyed = -1, b""  # the newest command's number and answer: said again, it is not obeyed again
        self.session = struct.unpack("<I", os.urandom(4))[0] & 0x3FFFFFFF  # a small int on 32-bit boards
        self._ring, self._slot, self._piece = ring, slot, piece
        self._slab = memoryview(slab or bytearray(ring * slot))
        # of each slot: bytes, readings, and the time's high half
        self._lengths, self._counts, self._wraps = (array("H", bytes(2 * ring)) for _ in range(3))
        self.oldest = self.next = 0  # seqs held: oldest <= seq < next
        self._cursor = 0  # seq that is sent next
        self._acked = 0
        self.lost_frames = self.lost_readings = 0  # overwritten since the last ACK
        self._greeted = self._sending = False
        self._control = []
        self._out = memoryview(b"")
        self._line = bytearray()
        self._probe_us = PROBE_US[0]
        self._progress = 0
        self._stdin, self._stdout, self._both = select.poll(), select.poll(), select.poll()
        for poll in (self._stdin, self._both):
            poll.register(sys.stdin, select.POLLIN)
        for poll in (self._stdout, self._both):
            poll.register(sys.stdout, select.POLLOUT)
        self._hello(False)

    # --- what the program calls

    def put(self, stream, us, step_us, records, n):
        """Takes n packed records, the first of them read at `us`."""
        seq, i = self.next, self.next % self._ring
        if seq - self.oldest >= self._ring:
            self.lost_frames += 1
            self.lost_readings += self._counts[i]
            self.oldest += 1
            if self._cursor < self.oldest:
                self._cursor = self.oldest
        at, size = i * self._slot, len(records)
        if size + DATA_OVERHEAD > self._slot:
            raise ValueError("records of %d bytes do not fit a slot of %d" % (size, self._slot))
        struct.pack_into(DATA_HEAD, self._slab, at, VERSION, DATA, seq & 0xFFFF, us & 0xFFFFFFFF, stream, step_us)
        end = at + 13 + size
        self._slab[at + 13 : end] = records
        struct.pack_into("<I", self._slab, end, binascii.crc32(self._slab[at:end]))
        self._lengths[i] = end + 4 - at
        self._counts[i] = n
        self._wraps[i] = (us >> 32) & 0xFFFF
        self.next = seq + 1

    def log(self, level, text):
        """A line for the gateway's log; level as in Python's logging."""
        self._say(LOG, struct.pack("<B", level) + text.encode()[:240])

    def picture(self, camera, data, us):
        """`poll` will send a JPEG that cameras[camera] took at `us`: not kept, from its start again after an unplug.
        Leave `data` alone, and take no other, until `sending` is None."""
        self._blobs += 1
        self.sending, self._at = (memoryview(data), camera << 8 | self._blobs & 255, us), 0

    def poll(self, timeout_ms):
        """Sends, listens and answers; returns when something came or after the time."""
        self._probe()
        busy = self._pump()
        (self._both if busy else self._stdin).poll(max(0, min(timeout_ms, 60000)))
        while self._stdin.poll(0):
            data = _read(0, 256)
            if not data:
                break
            for byte in data:
                if byte == 10:
                    self._heard(bytes(self._line))
                    self._line = bytearray()
                elif len(self._line) < LINE_MAX:
                    self._line.append(byte)
        self._pump()

    # --- sending

    def _say(self, kind, payload):
        while len(self._control) >= CONTROL_MAX:
            self._control.pop(0)
        self._control.append(frame(kind, 0, self.clock.now(), payload))

    def _pump(self):
        """Writes what the line takes now; True when something is left."""
        self._one = True
        while True:
            if not self._out and not self._load():
                return self._sending and self.sending
            if not self._stdout.poll(0):
                return True
            try:
                sent = _write(1, self._out[: self._piece])
            except OSError:  # EAGAIN
                sent = 0
            if not sent:
                return True
            self._out = self._out[sent:]

    def _load(self):
        """The next thing to send; False when there is none."""
        if self._control:
            self._out = self._control.pop(0)
            return True
        if not self._sending:
            return False
        data = self._cursor < self.next
        if self.sending and self._one and (self._turn or not data):
            return self._piece_out()
        if not data:
            return False
        self._turn = True
        i = self._cursor % self._ring
        at = i * self._slot
        self._out = cobs(bytes(self._slab[at : at + self._lengths[i]]))
        self._cursor += 1
        return True

    def _piece_out(self):
        data, blob, us = self.sending
        at, self._at = self._at, self._at + BLOB_PIECE
        self._turn = self._one = False
        head = struct.pack("<HII", blob, at, len(data))
        self._out = frame(BLOB, 0, us, head + bytes(data[at : self._at]))
        if self._at >= len(data):
            self.sending = None
        return True

    def _probe(self):
        """The last frame may have been lost and nothing after it says so: say it again, ever more rarely."""
        if self._sending and self.oldest < self.next and self._cursor == self.next:
            now = self.clock.now()
            if now - self._progress > self._probe_us:
                self._progress = now
                self._probe_us = min(self._probe_us * 2, PROBE_US[1])
                self._cursor = self.next - 1
        else:
            self._progress = self.clock.now()

    # --- listening

    def _heard(self, line):
        word, _, rest = line.strip().partition(b" ")
        try:
            if word == b"CMD":
                number, _, text = rest.partition(b" ")
                self._command(int(number), text)
                return
            number = int(rest)
        except ValueError:
            return
        if word == b"HELLO":
            self._greeted, self._sending, self._at = True, False, 0  # until NAK says from where
            self._hello(True)
        elif word == b"PING":
            self._say(PONG, struct.pack("<IQQ", number, self.clock.now(), self.next))
        elif self._greeted and number > self.next:  # meant for what we were before a restart
            self._hello(False)
        elif self._greeted and word == b"ACK":
            self._ack(number)
        elif self._greeted and word == b"NAK":
            self._nak(number)

    def _ack(self, seq):
        if seq <= self._acked:
            return
        if seq >= self.oldest:
            self.oldest = seq
            self.lost_frames = self.lost_readings = 0
            self._cursor = max(self._cursor, seq)
        elif self.lost_frames:  # taken, though overwritten since
            took = seq - self._acked
            self.lost_readings -= self.lost_readings * took // self.lost_frames
            self.lost_frames -= took
        self._acked = seq
        self._progress, self._probe_us = self.clock.now(), PROBE_US[0]

    def _nak(self, seq):
        self._cursor = first = max(seq, self.oldest)
        self._sending = True
        us = self.clock.now()
        if first < self.next:
            i = first % self._ring
            us = self._wraps[i] << 32 | struct.unpack_from("<I", self._slab, i * self._slot + 4)[0]
        self._say(RESUME, struct.pack("<QQII", first, us, self.lost_frames, self.lost_readings))

    def _command(self, number, text):
        if number != self._obeyed[0]:
            self._obeyed = number, json.dumps(self._obey(text)).encode()
        self._say(REPLY, struct.pack("<I", number) + self._obeyed[1])

    def _obey(self, text):
        try:
            asked = json.loads(text)
            name, value = asked["set"], asked["value"]
            if name not in self.commands:
                return {"error": "no such command, only: " + ", ".join(self.commands)}
            self.commands[name](value)
        except (ValueError, TypeError, KeyError, OSError) as error:
            return {"error": repr(error)[:240]}
        return {}

    def _hello(self, asked):
        hello = {"versions": [VERSION], "node": self.node, "session": self.session, "firmware": FIRMWARE}
        hello.update(oldest=self.oldest, next=self.next, us=self.clock.now(), ring=self._ring, asked=asked)
        hello.update(streams=self.streams, cameras=self.cameras)
        self._say(HELLO, json.dumps(hello).encode())
