"""A node as fast as C: frames are encoded beforehand and written as fast as the terminal takes them.

    python -m bench.producer LINK --frame 50 --count 1000000            a burst
    python -m bench.producer LINK --frame 1 --count 3000 --rate 300     paced, encoded when due

Makes a pseudo terminal, puts a symbolic link to it at LINK, and speaks enough of the node link (docs/link.md) for
`NodeSource`: HELLO, PING, NAK, ACK. Reading k holds k, in the channel `n`, which proves what arrived. Ends when
everything is acknowledged, with one JSON line: what was sent, and when (monotonic) the first left and the last ACK came.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import struct
import time
import tty
from array import array
from pathlib import Path

from gateway.link import framing, messages
from gateway.link.framing import Type

WINDOW = 30_000  # frames un-acked at most: seq has 16 bits, a ring fewer than 32768 frames
_PIECE = 65536
FIELDS = {"ff": (("n", "f", "1"), ("p", "f", "W")), "Id": (("n", "I", "1"), ("t", "d", "s"))}


class Producer:
    """The node's side of one link over an open terminal (its master side, not blocking).

    Args:
        fd: where to write and read.
        frame: readings a frame.
        count: readings in all.
        rate: readings/s, 0 for a burst.
        fields: struct codes of a record: "ff" (counter, constant) or "Id" (counter, monotonic time in s; paced only).
    """

    def __init__(self, fd: int, frame: int, count: int, rate: float = 0.0, fields: str = "ff") -> None:
        self.fd, self.frame, self.rate, self.fields = fd, frame, rate, fields
        self.frames = count // frame
        self.session = random.getrandbits(30)
        self.acked = 0
        self.resumes = 0
        self.first_at = self.last_ack_at = 0.0
        self._born = time.monotonic_ns()
        self._record = struct.Struct("<" + fields)
        self._step_us = int(1_000_000 / rate) if rate else 10
        self._wire = bytearray()
        self._starts = array("q")  # where in _wire each frame begins
        self._at = 0  # bytes of _wire written
        self._begun = 0.0  # when the first frame was asked for; 0 until then
        self._answers = bytearray()
        self._line = b""
        if not rate:
            for _ in range(self.frames):
                self._encode(len(self._starts) * frame * self._step_us, 0.0)

    def run(self) -> None:
        """Until every frame is acknowledged."""
        poll = select.poll()
        while self.acked < self.frames:
            limit = self._limit()
            busy = self._answers or self._at < limit
            poll.register(self.fd, select.POLLIN | (select.POLLOUT if busy else 0))
            for _, events in poll.poll(self._wait_ms()):
                if events & select.POLLIN:
                    self._listen()
                if events & select.POLLOUT:
                    self._send(self._limit())

    def _limit(self) -> int:
        """Up to where in _wire may be written now."""
        if not self._begun:
            return self._at
        if self.rate:
            due = min(self.frames, int((time.monotonic() - self._begun) * self.rate / self.frame))
            while len(self._starts) < due:
                self._encode((time.monotonic_ns() - self._born) // 1000, time.monotonic())
        end = self.acked + WINDOW
        return self._starts[end] if end < len(self._starts) else len(self._wire)

    def _wait_ms(self) -> float | None:
        if not (self.rate and self._begun) or len(self._starts) >= self.frames:
            return None
        due = self._begun + (len(self._starts) + 1) * self.frame / self.rate
        return max(0.0, (due - time.monotonic()) * 1000)

    def _encode(self, us: int, now: float) -> None:
        seq = len(self._starts)
        first = seq * self.frame
        second = now if self.fields == "Id" else 1.5
        records = b"".join(self._record.pack(k, second) for k in range(first, first + self.frame))
        payload = messages.Data(0, self._step_us, records).to_payload()
        self._starts.append(len(self._wire))
        self._wire += framing.encode(Type.DATA, seq, us, payload)

    def _send(self, limit: int) -> None:
        if self._answers and (self._at in (0, len(self._wire)) or self._at in self._boundaries()):
            sent = self._write(bytes(self._answers))
            del self._answers[:sent]
            return
        if self._answers:  # in the midst of a frame: finish it first
            limit = min(limit, self._next_start())
        if self._at < limit:
            self.first_at = self.first_at or time.monotonic()
            self._at += self._write(memoryview(self._wire)[self._at : min(limit, self._at + _PIECE)])

    def _boundaries(self) -> tuple[int, ...]:
        return (self._next_start(),) if self._next_start() == self._at else ()

    def _next_start(self) -> int:
        """The first frame boundary at or after what is written."""
        low, high = 0, len(self._starts)
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if self._starts[middle] < self._at else (low, middle)
        return self._starts[low] if low < len(self._starts) else len(self._wire)

    def _write(self, data: bytes | memoryview) -> int:
        try:
            return os.write(self.fd, data)
        except BlockingIOError:
            return 0

    def _listen(self) -> None:
        *lines, self._line = (self._line + os.read(self.fd, _PIECE)).split(b"\n")
        for line in lines:
            self._heard(messages.parse_line(line))

    def _heard(self, line: messages.Line) -> None:
        us = (time.monotonic_ns() - self._born) // 1000
        match line:
            case messages.SayHello():
                stream = messages.NodeStream(0, "bench", FIELDS[self.fields], self.rate)
                self._answer(
                    messages.Hello(
                        (1,), "producer", self.session, "bench", self.acked, len(self._starts), us, (stream,)
                    )
                )
            case messages.Ping():
                self._answer(messages.Pong(line.nonce, us, len(self._starts)))
            case messages.Ack():
                self.acked = max(self.acked, line.seq)
                self.last_ack_at = time.monotonic()
            case messages.Nak():
                self._begun = self._begun or time.monotonic()
                self.resumes += 1
                self._at = self._starts[line.seq] if line.seq < len(self._starts) else len(self._wire)
                self._answer(messages.Resume(line.seq, line.seq * self.frame * self._step_us, 0, 0))

    def _answer(self, message: messages.Message) -> None:
        self._answers += messages.encode(message)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("link", type=Path, help="where to put the symbolic link to the terminal")
    parser.add_argument("--frame", type=int, default=50, help="readings a frame")
    parser.add_argument("--count", type=int, default=1_000_000, help="readings in all")
    parser.add_argument("--rate", type=float, default=0.0, help="readings/s; 0 is a burst")
    parser.add_argument("--fields", choices=FIELDS, default="ff", help="the record: ff, or Id with the time of sending")
    args = parser.parse_args()
    master, slave = os.openpty()  # ours to the end, so that the reader may come and go
    tty.setraw(slave)
    os.set_blocking(master, False)
    producer = Producer(master, args.frame, args.count, args.rate, args.fields)
    args.link.unlink(missing_ok=True)
    args.link.symlink_to(os.ttyname(slave))
    try:
        producer.run()
    finally:
        args.link.unlink(missing_ok=True)
    report = {
        "readings": producer.frames * producer.frame,
        "first_at": producer.first_at,
        "last_ack_at": producer.last_ack_at,
        "resumes": producer.resumes,
    }
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
