"""The floor: what about 100 lines of asyncio reach at the same job, with no regard for anything else.

Reads node frames from a terminal, commits them to SQLite (WAL, synchronous=FULL) on a fixed 20 ms tick, acknowledges, and
publishes the payloads over a raw MQTT 3.1.1 socket at QoS 1. No reconnect, no resume, no schema, no compression, no
windows, one stream, and it trusts the node. `bench.throughput` runs it beside the gateway.
"""

from __future__ import annotations

import asyncio
import binascii
import contextlib
import os
import signal
import socket
import sqlite3
import struct
import sys
import tty

from cobs import cobs

TICK_S = 0.02
HEAD = 8  # version, type, seq, ticks
RECORDS = 13  # and stream, step
DATA = 2
TOPIC = b"octo/v1/floor/up/bench"


def frame_type(frame: bytes) -> int:
    return frame[1] if len(frame) > HEAD else -1


def packet(kind: int, body: bytes) -> bytes:
    """A MQTT packet: fixed header, remaining length, body."""
    length, out = len(body), bytearray([kind])
    while True:
        length, digit = divmod(length, 128)
        out.append(digit | 0x80 if length else digit)
        if not length:
            return bytes(out) + body


class Floor:
    def __init__(self, port: str, broker: int, db: str) -> None:
        self.fd = os.open(port, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        tty.setraw(self.fd)
        self.sock = socket.create_connection(("127.0.0.1", broker))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.sendall(packet(0x10, b"\x00\x04MQTT\x04\x02\x00\x3c\x00\x05floor"))
        self.sock.recv(4)
        self.sock.setblocking(False)
        self.db = sqlite3.connect(db, isolation_level=None)
        self.db.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; CREATE TABLE t (seq, data);")
        self.rest = b""
        self.frames: list[bytes] = []
        self.seq = self.mid = 0
        self.started = False

    def read(self) -> None:
        try:
            chunk = os.read(self.fd, 65536)
        except BlockingIOError:
            return
        *pieces, self.rest = (self.rest + chunk).split(b"\0")
        for piece in pieces:
            if not piece:
                continue
            with contextlib.suppress(cobs.DecodeError):
                frame = cobs.decode(piece)
                if binascii.crc32(frame[:-4]) == int.from_bytes(frame[-4:], "little"):
                    if frame_type(frame) == DATA:
                        self.frames.append(frame)
                    elif not self.started:
                        self.started = True
                        os.write(self.fd, b"NAK 0\n")

    def tick(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.call_later(TICK_S, self.tick, loop)
        frames, self.frames = self.frames, []
        if not frames:
            return
        self.db.execute("BEGIN")
        self.db.executemany("INSERT INTO t VALUES (?, ?)", [(self.seq + i, f) for i, f in enumerate(frames)])
        self.db.execute("COMMIT")
        self.seq += len(frames)
        os.write(self.fd, b"ACK %d\n" % self.seq)
        out = []
        for at in range(0, len(frames), 50):
            self.mid = self.mid % 65535 + 1
            payload = b"".join([f[RECORDS:-4] for f in frames[at : at + 50]])
            topic = struct.pack(">H", len(TOPIC)) + TOPIC + struct.pack(">H", self.mid)
            out.append(packet(0x32, topic + payload))
        self.sock.setblocking(True)
        self.sock.sendall(b"".join(out))
        self.sock.setblocking(False)

    def pubacks(self) -> None:
        self.sock.recv(65536)


async def main() -> None:
    floor = Floor(sys.argv[1], int(sys.argv[2]), sys.argv[3])
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_reader(floor.fd, floor.read)
    loop.add_reader(floor.sock, floor.pubacks)
    loop.call_later(TICK_S, floor.tick, loop)
    os.write(floor.fd, b"HELLO 1\n")
    await stop.wait()


asyncio.run(main())
