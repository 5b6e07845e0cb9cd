"""The gateway's half of the link, sans-I/O: chunks of bytes in; samples in order, messages and what to ask for out.

Go-back-N: only the DATA frame with the expected seq is taken. The dense case (a chunk full of good frames of one
stream, in order) is worked on as columns, without a step of Python for a frame; all else goes frame by frame.
"""

from __future__ import annotations

import struct
from array import array
from collections import deque

from gateway.contract import Sample, Schema
from gateway.errors import LinkError
from gateway.link import framing, messages
from gateway.link.blobs import Assembler
from gateway.link.framing import Deframer, Type
from gateway.link.messages import Hello, Message, Resume

_DATA_V1 = Type.DATA << 8 | framing.VERSION  # version and type as one u16
_DATA_HEAD = struct.Struct("<HHIBI")  # version and type, seq, ticks, stream, step
_HEAD = struct.Struct("<HHI")
_RECORDS_AT = _DATA_HEAD.size
_DATA_OVERHEAD = _RECORDS_AT + 4
_FEW = 4  # below so many frames columns do not pay
_TICKS_MASK = 0xFFFFFFFF
_TICKS_HALF = 1 << 31
_MESSAGES_KEPT = 256
_PICTURES_KEPT = 2
_TICKS = struct.Struct("<4xI")


class _Lane:
    """One stream of the node, and the segments of it that the current chunk has brought."""

    __slots__ = ("counts", "data", "firsts", "name", "schema", "size", "steps")

    def __init__(self, name: str, schema: Schema) -> None:
        self.name = name
        self.schema = schema
        self.size = schema.record_size
        self.firsts: list[int] = []
        self.steps: list[int] = []
        self.counts: list[int] = []
        self.data: list[bytes] = []

    def sample(self) -> Sample:
        sample = Sample(
            self.name,
            self.schema,
            array("q", self.firsts),
            array("q", self.steps),
            array("H", self.counts),
            b"".join(self.data),
        )
        self.firsts, self.steps, self.counts, self.data = [], [], [], []
        return sample


class Receiver:
    """Everything that is known about one line. `start` after each HELLO, then `feed`.

    Attributes:
        expected: the seq (not wrapped) that the next taken frame will have.
        ready: the node has said where DATA goes on; before that DATA is not looked at.
        gap: a frame is missing; NAK it.
        messages: all frames but DATA, oldest first; the caller empties it.
        faults: frames that passed their check and still make no sense, the newest few.
        pictures: of the node's cameras, oldest first: name, the node's time in us, JPEG; the caller empties it.
        frames, readings, resent, gaps, lost: counters of this run.
    """

    def __init__(self, source: str, max_picture: int = 2 << 20) -> None:
        self.expected = 0
        self.ready = False
        self.gap = False
        self.messages: deque[Message] = deque(maxlen=_MESSAGES_KEPT)
        self.faults: deque[LinkError] = deque(maxlen=4)
        self.frames = self.readings = self.resent = self.gaps = self.lost = 0
        self.deframer = Deframer()
        self.pictures: deque[tuple[str, int, bytes]] = deque()
        self._pictures_lost = 0
        self._assembler = Assembler(max_picture)
        self._hello: Hello | None = None
        self._malformed = 0
        self._source = source
        self._session = -1
        self._lanes: dict[int, _Lane] = {}
        self._us = 0  # of the newest frame taken, the anchor for unwrapping ticks
        self._layouts: dict[int, struct.Struct] = {}

    @property
    def bad(self) -> int:
        """Pieces and frames refused."""
        return self.deframer.bad + self._malformed

    @property
    def pictures_lost(self) -> int:
        """Begun and never completed, not whole, or replaced by a newer one before they were taken."""
        return self._pictures_lost + self._assembler.dropped

    def start(self, hello: Hello, next_seq: int) -> None:
        """A node said HELLO and will be asked for `next_seq`.

        Raises:
            LinkError: its streams are not usable.
        """
        self._lanes = {s.id: _Lane(f"{self._source}/{s.name}", s.schema()) for s in hello.streams}
        if len({lane.name for lane in self._lanes.values()}) != len(hello.streams):
            raise LinkError("the node announces two streams of one name or id", hint="mend its firmware")
        self._session = hello.session
        self._hello = hello
        self._assembler.stop()
        self.expected = next_seq
        self.ready = self.gap = False

    def stop(self) -> None:
        """The line was cut."""
        self.ready = self.gap = False
        self.deframer.clear()
        self._assembler.stop()

    def feed(self, chunk: bytes, offset_ns: int) -> list[Sample]:
        """What `chunk` brings, in order; one sample a stream.

        Args:
            chunk: bytes of the line, cut anywhere.
            offset_ns: our monotonic clock minus the node's, see `NodeClock`.
        """
        frames = self.deframer.feed(chunk)
        if len(frames) >= _FEW and self.ready:
            sample = self._dense(frames, offset_ns)
            if sample is not None:
                return [sample]
        return self._each(frames, offset_ns)

    def _dense(self, frames: list[bytes], offset_ns: int) -> Sample | None:
        """All `frames` as columns, or None (and nothing done) when they are not of one mould and in order."""
        n, length = len(frames), len(frames[0])
        lane = self._lanes.get(frames[0][8]) if length > _DATA_OVERHEAD else None
        if lane is None or list(map(len, frames)).count(length) != n:
            return None
        count, odd = divmod(length - _DATA_OVERHEAD, lane.size)
        layout = self._layouts.get(length)
        if layout is None:
            layout = self._layouts[length] = struct.Struct(f"<HHIBI{length - _DATA_OVERHEAD}s4x")
        kinds, seqs, ticks, streams, steps, bodies = zip(*layout.iter_unpack(b"".join(frames)), strict=True)
        low = self.expected & 0xFFFF
        if (
            odd
            or kinds.count(_DATA_V1) != n
            or streams.count(streams[0]) != n
            or seqs != tuple(range(low, low + n))  # not where seq wraps: that chunk goes one by one
            or ticks[-1] < ticks[0]
        ):
            return None
        base = offset_ns + (self._unwrap(ticks[0]) - ticks[0]) * 1000
        self._us += ticks[-1] - ticks[0]
        self.expected += n
        self.gap = False
        self.frames += n
        self.readings += n * count
        if steps.count(steps[0]) == n:
            step_ns = array("q", (steps[0] * 1000,)) * n
        else:
            step_ns = array("q", [step * 1000 for step in steps])
        return Sample(
            lane.name,
            lane.schema,
            array("q", [tick * 1000 + base for tick in ticks]),
            step_ns,
            array("H", (count,)) * n,
            b"".join(bodies),
        )

    def _each(self, frames: list[bytes], offset_ns: int) -> list[Sample]:
        touched: dict[int, _Lane] = {}
        for frame in frames:
            kind, seq, ticks = _HEAD.unpack_from(frame)
            if kind != _DATA_V1:
                self._other(frame)
            elif not self.ready:
                continue
            elif seq != self.expected & 0xFFFF:
                self._out_of_order(seq)
            else:
                self.expected += 1
                self.gap = False
                stream = frame[8] if len(frame) > _DATA_OVERHEAD else -1
                lane = self._lanes.get(stream)
                count, odd = divmod(len(frame) - _DATA_OVERHEAD, lane.size) if lane else (0, 0)
                if lane is None or odd or not count:
                    # right seq and checksum: asking again would bring the same, so it is passed over
                    self._malformed += 1
                    self.faults.append(LinkError(f"a DATA frame of {len(frame)} bytes for stream {stream}"))
                    continue
                touched[stream] = lane
                lane.firsts.append(self._unwrap(ticks) * 1000 + offset_ns)
                lane.steps.append(_DATA_HEAD.unpack_from(frame)[4] * 1000)
                lane.counts.append(count)
                lane.data.append(frame[_RECORDS_AT:-4])
                self.frames += 1
                self.readings += count
        return [lane.sample() for lane in touched.values()]

    def _out_of_order(self, seq: int) -> None:
        # the ring is shorter than 32768 frames, so the distance has one meaning
        if (seq - self.expected) & 0xFFFF >= 0x8000:
            self.resent += 1
        elif not self.gap:
            self.gap = True
            self.gaps += 1

    def _other(self, frame: bytes) -> None:
        try:
            message = messages.decode(frame)
            if isinstance(message, messages.BlobChunk):
                self._piece(message, _TICKS.unpack_from(frame)[0])
                return
        except LinkError as error:
            self._malformed += 1
            self.faults.append(error)
            return
        if isinstance(message, Hello) and message.session != self._session:
            self.ready = False  # the node has restarted: its seqs mean something else now
        elif isinstance(message, Resume):
            message = self._resume(message)
        elif isinstance(message, messages.Pong) and message.next == self.expected:
            self._us = max(self._us, message.us)  # caught up: what comes next is not older than this
        self.messages.append(message)

    def _piece(self, chunk: messages.BlobChunk, ticks: int) -> None:
        """A piece of a picture; its ticks say when the picture was taken."""
        if self._hello is None or not self.ready:
            return
        camera = self._hello.camera(chunk.blob)
        picture = self._assembler.add(chunk)
        if picture is None:
            return
        if not picture.startswith(b"\xff\xd8") or picture.rfind(b"\xff\xd9") < 2:
            self._pictures_lost += 1
            raise LinkError(f"a picture of camera '{camera}' that is no whole JPEG")
        if len(self.pictures) == _PICTURES_KEPT:
            self.pictures.popleft()
            self._pictures_lost += 1
        self.pictures.append((camera, self._nearest(ticks), picture))

    def _resume(self, message: Resume) -> Resume:
        """Moves on to where the node can start; the message with the losses that are ours."""
        missing = message.first - self.expected
        if missing < 0:  # the answer to an older NAK
            return Resume(message.first, message.us, 0, 0)
        self.ready, self.gap = True, False
        self._us = message.us
        self.expected = message.first
        frames, readings = message.lost_frames, message.lost_readings
        if missing < frames:  # the node counts from our last ACK; what we took since then is not lost
            readings = readings * missing // frames
        elif missing > frames:  # those before were acknowledged to somebody else
            missing = frames
        self.lost += readings
        return Resume(message.first, message.us, missing, readings)

    def _unwrap(self, ticks: int) -> int:
        """The node's time of a frame, from 32 bits: the value nearest to the frame before it."""
        self._us = self._nearest(ticks)
        return self._us

    def _nearest(self, ticks: int) -> int:
        return self._us + ((ticks - self._us + _TICKS_HALF) & _TICKS_MASK) - _TICKS_HALF
