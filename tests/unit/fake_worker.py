"""A worker that starts in a moment and does what its input says: `python -m tests.unit.fake_worker MODE SETUP`.

Inputs: b"=<text>" answers with the label <text>; b"die" exits, b"hang" never answers, b"bad" is refused, b"rude"
answers nonsense, b"raise" reports that its device failed, b"once <file>" dies unless the file is there, and makes it,
b"grow" answers and says that it has grown to 5000 MiB, b"pid" answers with its process id, b"batch" with the number of
jobs in its packet.
Modes: `ok`; `unusable` refuses the bundle; `crash` dies before it is ready; `mute` never becomes ready; `file` is
unusable until the bundle is there. A bundle named `broken` is refused in any mode.

A candidate with a device other than CPU has a switch, a file of that name: `dead` in it lets the load fail, `crash`
lets it die while loading, `raise`, `hang`, `die` and `wrong` do that to every job, and let the golden check fail.
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
from gateway.infer.manifest import Limits
from gateway.infer.wire import Kind

FAKE = Candidate(backend="fake", file="fake.onnx", precision="fp32")
_encode = msgspec.msgpack.encode


def switch(candidate: Candidate) -> str:
    path = Path(candidate.device)
    return path.read_text() if candidate.device != "CPU" and path.exists() else ""


class Fake:
    def __init__(self, mode: str, setup: wire.Setup) -> None:
        self.mode = mode
        self.setup = setup
        self.channel = socket.socket(fileno=setup.socket)
        self.loaded: list[wire.Loaded | wire.Fault] = []
        self.rss = 50
        self.batch = 0

    def load(self) -> None:
        if self.mode == "crash":
            sys.exit("the library said no")
        if self.mode == "mute":
            signal.pause()
        self.loaded = [self.load_one(i, tenant) for i, tenant in enumerate(self.setup.tenants)]
        self.say(0, Kind.READY, wire.Ready(os.getpid(), tuple(self.loaded)))
        if all(isinstance(found, wire.Fault) for found in self.loaded):
            sys.exit(1)

    def load_one(self, index: int, tenant: wire.Tenant) -> wire.Loaded | wire.Fault:
        bundle = Path(tenant.bundle)
        if self.mode == "unusable" or bundle.name == "broken" or (self.mode == "file" and not bundle.exists()):
            return wire.Fault("not a usable bundle", "pack it again")
        order = tenant.candidates or (FAKE,)
        rejected: list[tuple[Candidate, str]] = []
        for at, candidate in enumerate(order):
            self.say(0, Kind.TRYING, wire.Trying(index, order, at))
            how = switch(candidate)
            if how == "crash":
                sys.exit("a driver crashed")
            if not how:
                limits = Limits(deadline_ms=300, memory_mib=1000)
                return wire.Loaded(candidate, str(candidate), "f" * 64, "", limits, tuple(rejected))
            rejected.append((candidate, f"golden: {how}" if how != "dead" else "no such device"))
        return wire.Fault("nothing runs here")

    def say(self, number: int, kind: Kind, payload: object) -> None:
        self.channel.send(wire.pack_answer(number, 5, self.rss, kind, _encode(payload)))

    def serve(self) -> None:
        with mmap.mmap(self.setup.memory, 0, access=mmap.ACCESS_READ) as memory:
            while packet := self.channel.recv(wire.PACKET_MAX):
                jobs = wire.unpack_jobs(memoryview(packet))
                self.batch = len(jobs)
                for job in jobs:
                    data = bytes(job.inline) if job.slot == wire.NO_SLOT else memory[: job.size]
                    self.answer(job, data)

    def answer(self, job: wire.Job, data: bytes) -> None:
        found = self.loaded[job.tenant]
        assert isinstance(found, wire.Loaded)
        how = switch(found.candidate)
        word, _, rest = data.partition(b" ")
        if word == b"die" or how == "die" or (word == b"once" and not Path(rest.decode()).exists()):
            if rest:
                Path(rest.decode()).touch()
            sys.exit("it hurts")
        if word == b"hang" or how == "hang":
            signal.pause()
        if word == b"raise" or how in ("raise", "wrong"):
            self.say(job.number, Kind.FAILED, wire.Fault(f"device {how or 'raised'}", tenant=job.tenant))
        elif word == b"rude":
            self.channel.send(b"?")
        elif word == b"bad":
            self.say(job.number, Kind.REFUSED, wire.Fault("bad", "feed better"))
        else:
            self.rss = 5000 if word == b"grow" else self.rss
            known = {b"pid": str(os.getpid()), b"batch": str(self.batch)}
            told = known.get(word) or (data[1:].decode() if len(data) < 100 else str(len(data)))
            self.say(job.number, Kind.RESULT, Result(told))


def main(mode: str, argument: str) -> None:
    setup = msgspec.json.decode(argument, type=wire.Setup)
    die_with_parent(setup.parent)
    fake = Fake(mode, setup)
    fake.load()
    fake.serve()


if __name__ == "__main__":
    main(*sys.argv[1:])
