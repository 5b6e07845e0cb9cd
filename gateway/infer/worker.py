"""The child process that runs one model: `python -m gateway.infer.worker '<Setup as JSON>'`.

It loads and verifies the bundle, chooses a variant, proves it on the golden samples, says READY and then answers
one job after the other until its socket is closed. Whatever hangs or crashes here takes only this process along.
"""

from __future__ import annotations

import gc
import mmap
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from gateway.child import die_with_parent
from gateway.contract import Result
from gateway.errors import ModelError
from gateway.infer import wire
from gateway.infer.wire import Kind, Setup

_encode = msgspec.msgpack.Encoder().encode
Answerer = Callable[[memoryview, str], Result]


class _Broken(Exception):
    """The runtime failed, not the input: end, so that a fresh worker redoes the job."""


def main(argument: str) -> int:
    """The worker's exit status: 0 when its socket was closed, 1 when it cannot serve."""
    setup = msgspec.json.decode(argument, type=Setup)
    die_with_parent(setup.parent)
    # the daemon ends its workers itself; a Ctrl-C or a service stop goes to the whole group at once
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.dup2(2, 1)  # a runtime that prints must not write into the daemon's output
    channel = socket.socket(fileno=setup.socket)
    try:
        ready, answer = prepare(setup)
    except ModelError as error:
        channel.send(_fault(0, Kind.UNUSABLE, error))
        return 1
    _be_nice(setup.nice)
    memory = mmap.mmap(setup.memory, 0, access=mmap.ACCESS_READ)
    gc.freeze()  # the runtimes' modules need not be walked again
    channel.send(wire.pack_answer(0, 0, Kind.READY, _encode(ready)))
    try:
        serve(channel, memoryview(memory), setup.slot_bytes, answer)
    except _Broken as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def prepare(setup: Setup) -> tuple[wire.Ready, Answerer]:
    """Load the model and prove it.

    Raises:
        ModelError: the bundle is not usable, or no variant of it runs here; each one's reason is named.
    """
    from gateway.infer import golden  # loads NumPy
    from gateway.infer.backend import candidates
    from gateway.infer.bundle import Bundle
    from gateway.infer.recipe import Recipe

    with Bundle(Path(setup.bundle)) as bundle:
        verified = bundle.verify(map(Path, setup.keys), allow_unsigned=setup.allow_unsigned)
        recipe = Recipe(bundle.manifest, setup.threads)
        rejected: list[str] = []
        for variant, runner in candidates(
            bundle.manifest,
            lambda name: bytes(bundle.member(name)),
            wanted=setup.backend,
            threads=setup.threads,
            rejected=rejected,
        ):
            try:
                golden.check(bundle, recipe, runner, variant.precision)
            except ModelError as error:
                rejected.append(f"{variant.file} on {runner.description}: {error}")
                continue
            break
        else:
            raise ModelError(
                f"{setup.bundle}: no variant runs here: " + "; ".join(rejected),
                hint="install a runtime for one of its formats, or pack one that fits",
            )

    def answer(data: memoryview, media: str) -> Result:
        prepared = recipe.prepare(data, media)
        try:
            outputs = runner(prepared.inputs)
        except ModelError as error:
            raise _Broken(str(error)) from error
        return recipe.finish(outputs, prepared.place)

    ready = wire.Ready(os.getpid(), runner.description, verified.digest, verified.signed_by, tuple(rejected))
    return ready, answer


def serve(channel: socket.socket, memory: memoryview, slot_bytes: int, answer: Answerer) -> None:
    """Answer jobs in their order until the peer is gone."""
    packet = bytearray(wire.PACKET_MAX)
    view = memoryview(packet)
    while n := channel.recv_into(packet):
        started = time.monotonic_ns()
        job = wire.unpack_job(view[:n])
        data = job.inline
        if job.slot != wire.NO_SLOT:
            at = job.slot * slot_bytes
            data = memory[at : at + job.size]
        try:
            kind, payload = _answered(answer, data, job.media)
        except ModelError as error:
            reply = _fault(job.number, Kind.REFUSED, error)
        else:
            reply = wire.pack_answer(job.number, (time.monotonic_ns() - started) // 1000, kind, payload)
        try:
            channel.send(reply)
        except (BrokenPipeError, ConnectionResetError):
            return


def _answered(answer: Answerer, data: memoryview, media: str) -> tuple[Kind, bytes]:
    if not media.startswith("image/x-"):
        return Kind.RESULT, _encode(answer(data, media))
    from gateway.infer import raw  # loads OpenCV

    jpeg = raw.to_jpeg(data, media, wire.PICTURE_MAX)
    return Kind.PICTURED, wire.pack_pictured(_encode(answer(memoryview(jpeg), "image/jpeg")), jpeg)


def _fault(number: int, kind: Kind, error: ModelError) -> bytes:
    fault = wire.Fault(error.what[:8000], error.hint[:1000])
    return wire.pack_answer(number, 0, kind, _encode(fault))


def _be_nice(nice: int) -> None:
    """Every thread of this process: on Linux niceness is a thread's own, and the runtime has made its threads."""
    if nice:
        level = min(19, os.getpriority(os.PRIO_PROCESS, 0) + nice)
        for thread in os.listdir("/proc/self/task"):
            os.setpriority(os.PRIO_PROCESS, int(thread), level)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
