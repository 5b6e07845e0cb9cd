"""What the node link costs: decoding against the bare C calls, receiving against a bare read loop.

    python -m bench.link                 everything, as a table and one JSON line

- decode: `Receiver.feed` on chunks of 4 kB, beside a loop that only splits, unstuffs and checks the crc.
- receive: CPU time of the reading process per MB and readings/s through a pseudo terminal that another process fills
  (`bench.producer`): `NodeSource` with a sink that commits every 20 ms to nowhere, beside `add_reader` + `os.read`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cobs import cobs

from gateway.acquire.node import NodeSource
from gateway.acquire.port import PortGone, SerialPort
from gateway.clock import Clock
from gateway.config import NodeSource as NodeConfig
from gateway.contract import Frame, Mark, Sample, Severity
from gateway.link import messages
from gateway.link.receiver import Receiver

CHUNK = 4095  # what a read from a Linux terminal gives at most
COMMIT_S = 0.02
RUN_MAX_S = 30.0
RESIDUE = 0x2144DF1C


def _chunks(frame: int, frames: int) -> list[bytes]:
    records = b"\x00\x00\xc0\x3f\x9a\x99\x13\x43" * frame
    wire = b"".join(messages.encode(messages.Data(0, 5000, records), k, k * 5000) for k in range(frames))
    return [wire[at : at + CHUNK] for at in range(0, len(wire), CHUNK)]


def _bare_decode(chunks: list[bytes]) -> int:
    tail, good = b"", 0
    decode, crc32 = cobs.decode, zlib.crc32
    for chunk in chunks:
        pieces = (tail + chunk).split(b"\0")
        tail = pieces.pop()
        for piece in pieces:
            if piece and crc32(decode(piece)) == RESIDUE:
                good += 1
    return good


def _our_decode(chunks: list[bytes]) -> int:
    receiver = Receiver("bench")
    hello = messages.Hello((1,), "b", 1, "b", 0, 0, 0, (messages.NodeStream(0, "s", (("n", "f", ""), ("p", "f", ""))),))
    receiver.start(hello, 0)
    receiver.feed(messages.encode(messages.Resume(0, 0, 0, 0)), 0)
    for chunk in chunks:
        receiver.feed(chunk, 0)
    return receiver.frames


def decode(frame: int, frames: int = 20_000, rounds: int = 7) -> dict[str, float]:
    """Best of `rounds`, microseconds a frame."""
    chunks = _chunks(frame, frames)

    def best(run: Callable[[list[bytes]], int]) -> float:
        times = []
        for _ in range(rounds):
            begin = time.perf_counter()
            assert run(chunks) == frames
            times.append(time.perf_counter() - begin)
        return min(times) / frames * 1e6

    ours, bare = best(_our_decode), best(_bare_decode)
    return {"frame": frame, "us_frame": ours, "bare_us_frame": bare, "frames_s": 1e6 / ours, "ratio": ours / bare}


class NullSink:
    """Commits every 20 ms, to nowhere."""

    wait_s = COMMIT_S

    def __init__(self) -> None:
        self.readings = self.calls = 0
        self._group: asyncio.Future[None] | None = None

    def samples(self, samples: Sequence[Sample], mark: Mark | None, since: float | None = None) -> asyncio.Future[None]:
        self.calls += 1
        self.readings += sum(sample.n for sample in samples)
        if self._group is None:
            loop = asyncio.get_running_loop()
            self._group = loop.create_future()
            loop.call_later(COMMIT_S, self._commit)
        return self._group

    def _commit(self) -> None:
        group, self._group = self._group, None
        if group:
            group.set_result(None)

    def frame(self, frame: Frame) -> None: ...

    def event(self, name: str, state: str, severity: Severity, message: str, **detail: Any) -> None: ...


async def _bare_reader(port: Path, frame_bytes: float) -> None:
    """Only reads, and acknowledges by what it read; ends when the producer does."""
    line = SerialPort(str(port), 115200, COMMIT_S)  # for its settings only
    loop, fd, done = asyncio.get_running_loop(), line._fd, asyncio.Event()
    got = 0
    later: asyncio.TimerHandle | None = None
    loop.remove_reader(fd)

    def acknowledge() -> None:
        nonlocal later
        later = None
        with contextlib.suppress(OSError):
            os.write(fd, b"ACK %d\n" % (got / frame_bytes + 1))

    def read() -> None:
        nonlocal got, later
        try:
            chunk = os.read(fd, 65536)
        except OSError:
            chunk = b""
        if not chunk:
            done.set()
            loop.remove_reader(fd)
            return
        got += len(chunk)
        later = later or loop.call_later(COMMIT_S, acknowledge)

    loop.add_reader(fd, read)
    os.write(fd, b"HELLO 1\nNAK 0\n")
    await done.wait()
    line.close()


async def _port_reader(port: Path, frame_bytes: float) -> None:
    """Our port without the link: what moving the bytes to a task costs."""
    line = SerialPort(str(port), 115200, COMMIT_S)
    loop = asyncio.get_running_loop()
    got = 0
    later: asyncio.TimerHandle | None = None

    def acknowledge() -> None:
        nonlocal later
        later = None
        line.write(b"ACK %d\n" % (got / frame_bytes + 1))

    line.set_prompt(False)
    line.write(b"HELLO 1\nNAK 0\n")
    with contextlib.suppress(PortGone):
        while True:
            await line.wait()
            got += len(line.take())
            later = later or loop.call_later(COMMIT_S, acknowledge)
    line.close()


async def receive(frame: int, count: int, rate: float, who: str) -> dict[str, Any]:
    """One run of the producer into one reader in this process."""
    frame_bytes = sum(map(len, _chunks(frame, 64))) / 64
    with tempfile.TemporaryDirectory() as folder:
        port = Path(folder) / "port"
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "bench.producer", str(port), "--frame", str(frame), "--count", str(count),
            "--rate", str(rate), stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout
        while not port.exists():  # encoding takes seconds and is not measured
            await asyncio.sleep(0.05)
        cpu, sink = time.process_time(), NullSink()
        guard = asyncio.get_running_loop().call_later(RUN_MAX_S, process.kill)
        if who == "NodeSource":
            source = NodeSource(NodeConfig(name="bench", port=str(port)), None, Clock())
            async with asyncio.TaskGroup() as tasks:
                task = tasks.create_task(source.run(sink), name="source")
                output = await process.stdout.read()
                cpu = time.process_time() - cpu
                task.cancel()
            assert sink.readings == count, (sink.readings, source.status())
        else:
            async with asyncio.TaskGroup() as tasks:
                reader = _bare_reader if who == "bare" else _port_reader
                tasks.create_task(reader(port, frame_bytes), name=who)
                output = await process.stdout.read()
                cpu = time.process_time() - cpu
        await process.wait()
        guard.cancel()
    report = json.loads(output)
    seconds = report["last_ack_at"] - report["first_at"]
    megabytes = count / frame * frame_bytes / 1e6
    return {
        "frame": frame, "rate": rate, "who": who, "readings_s": count / seconds,
        "cpu_ms_mb": cpu * 1000 / megabytes, "cpu_s_1e5": cpu / count * 1e5, "calls": sink.calls,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="of the runs through a terminal; the median is shown")
    args = parser.parse_args()
    decoded = [decode(1), decode(50)]
    for row in decoded:
        print("decode  frame {frame:3}: {us_frame:6.2f} us, bare {bare_us_frame:6.2f} us, {ratio:.2f}x".format(**row))
    received = []
    for frame, count, rate in ((1, 400_000, 0.0), (50, 4_000_000, 0.0), (1, 4500, 300.0)):
        for who in ("NodeSource", "SerialPort", "bare"):
            runs = [asyncio.run(receive(frame, count, rate, who)) for _ in range(args.rounds if not rate else 1)]
            row = {
                **runs[0],
                **{k: statistics.median(r[k] for r in runs) for k in ("readings_s", "cpu_ms_mb", "cpu_s_1e5")},
            }
            received.append(row)
            print(
                "receive frame {frame:3} rate {rate:5.0f} {who:10}: {readings_s:10,.0f} readings/s, "
                "{cpu_ms_mb:7.1f} CPU ms/MB, {cpu_s_1e5:7.3f} CPU s/1e5, {calls} calls".format(**row)
            )
    print(json.dumps({"decode": decoded, "receive": received}))


if __name__ == "__main__":
    main()
