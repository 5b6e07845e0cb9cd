"""A worker that starts in a moment and does what its input says: `python -m tests.unit.fake_worker MODE SETUP`.

Inputs: b"=<text>" answers with the label <text>; b"die" exits, b"hang" never answers, b"bad" is refused, b"rude"
answers nonsense, b"once <file>" dies unless the file is there, and makes it. Modes: `ok`; `unusable` refuses the
bundle; `crash` dies before it is ready; `mute` never becomes ready; `file` is unusable until the bundle is there.
"""

import mmap
import os
import signal
import socket
import sys
from pathlib import Path

import msgspec

from gateway.child import die_with_parent
from gateway.contract import Result
from gateway.infer import wire
from gateway.infer.candidate import Candidate
from gateway.infer.wire import Kind

FAKE = Candidate(backend="fake", file="fake.onnx", precision="fp32")


def main(mode: str, argument: str) -> None:
    setup = msgspec.json.decode(argument, type=wire.Setup)
    die_with_parent(setup.parent)
    channel = socket.socket(fileno=setup.socket)
    if mode == "crash":
        sys.exit("the library said no")
    if mode == "mute":
        signal.pause()
    if mode == "unusable" or (mode == "file" and not Path(setup.bundle).exists()):
        fault = wire.Fault("not a usable bundle", "pack it again")
        channel.send(wire.pack_answer(0, 0, Kind.UNUSABLE, msgspec.msgpack.encode(fault)))
        sys.exit(1)
    ready = wire.Ready(os.getpid(), FAKE, "fake fp32 x1", "f" * 64, "")
    channel.send(wire.pack_answer(0, 0, Kind.READY, msgspec.msgpack.encode(ready)))
    with mmap.mmap(setup.memory, 0, access=mmap.ACCESS_READ) as memory:
        while packet := channel.recv(wire.PACKET_MAX):
            job = wire.unpack_job(memoryview(packet))
            data = bytes(job.inline) if job.slot == wire.NO_SLOT else memory[: job.size]
            channel.send(answer(job, data))


def answer(job: wire.Job, data: bytes) -> bytes:
    word, _, rest = data.partition(b" ")
    if word == b"die" or (word == b"once" and not Path(rest.decode()).exists()):
        if rest:
            Path(rest.decode()).touch()
        sys.exit("it hurts")
    if word == b"hang":
        signal.pause()
    if word == b"rude":
        return b"?"
    if word == b"bad":
        return wire.pack_answer(job.number, 5, Kind.REFUSED, msgspec.msgpack.encode(wire.Fault("bad", "feed better")))
    label = data[1:].decode() if len(data) < 100 else str(len(data))
    return wire.pack_answer(job.number, 5, Kind.RESULT, msgspec.msgpack.encode(Result(label)))


if __name__ == "__main__":
    main(*sys.argv[1:])
