"""The child process that runs models: `python -m gateway.infer.worker '<Setup as JSON>'`.

It loads and verifies each bundle, chooses a candidate, proves it on the golden samples, says READY and then answers
one packet of jobs after the other until its socket is closed. Whatever hangs or crashes here takes only this process
along; a runtime that raises is reported, and the other models go on.
"""

from __future__ import annotations

import gc
import mmap
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from gateway.child import die_with_parent
from gateway.contract import Result
from gateway.errors import ModelError, OutputError
from gateway.infer import wire
from gateway.infer.candidate import Candidate
from gateway.infer.wire import Kind, Loaded, Setup, Tenant, Trying

if TYPE_CHECKING:
    from gateway.infer.backend import Runner
    from gateway.infer.golden import Samples
    from gateway.infer.manifest import Precision
    from gateway.infer.recipe import Recipe
    from gateway.infer.steps import Array

_encode = msgspec.msgpack.Encoder().encode
_RAW = "image/x-"
_WEIGH_S = 0.25  # of work between two looks at its own memory: reading it costs as much as a small model
_PAGES_PER_MIB = (1 << 20) // os.sysconf("SC_PAGE_SIZE")


class Broken(Exception):
    """The runtime or its device failed, not the input: somebody else must redo the job."""


class Model:
    """One loaded candidate of one bundle."""

    def __init__(self, samples: Samples, recipe: Recipe, runner: Runner, precision: Precision, batch: int) -> None:
        self._samples = samples
        self._recipe = recipe
        self._runner = runner
        self._precision = precision
        self._batch = batch
        self.checked = time.monotonic()
        self.check()

    def check(self) -> None:
        """Reproduce the golden samples.

        Raises:
            ModelError: it does not.
        """
        from gateway.infer import golden

        golden.check(self._samples, self._recipe, self._runner, self._precision)
        self.checked = time.monotonic()

    def answer(self, data: memoryview, media: str) -> Result:
        """Compute one input.

        Raises:
            ModelError: the input is not usable.
            Broken: the runtime failed, or computes wrongly.
        """
        try:
            return self._recipe.run(self._compute, data, media, self._batch)
        except OutputError:
            self.recheck()  # the input's fault only if the golden samples still come out right
            raise

    def _compute(self, inputs: Sequence[Array]) -> Sequence[Array]:
        try:
            return self._runner(inputs)
        except ModelError as error:
            raise Broken(str(error)) from error

    def recheck(self) -> None:
        """`check` in service. Raises `Broken`."""
        try:
            self.check()
        except ModelError as error:
            raise Broken(str(error)) from error


def main(argument: str) -> int:
    """The worker's exit status: 0 when its socket was closed, 1 when it cannot serve."""
    setup = msgspec.json.decode(argument, type=Setup)
    die_with_parent(setup.parent)
    # the daemon ends its workers itself; a Ctrl-C or a service stop goes to the whole group at once
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.dup2(2, 1)  # a runtime that prints must not write into the daemon's output
    if setup.gentle:
        _be_nice(setup.nice)
    worker = Worker(setup)
    if not worker.load():
        return 1
    if not setup.gentle:
        _be_nice(setup.nice)
    worker.serve()
    return 0


class Worker:
    """All models of one process, and its side of the socket."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._channel = socket.socket(fileno=setup.socket)
        self._memory = memoryview(mmap.mmap(setup.memory, 0, access=mmap.ACCESS_READ))
        self._models: list[Model | None] = []
        self._statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        self._rss_mib = 0
        self._weighed = 0.0
        self._reply = bytearray()

    def load(self) -> bool:
        """Load what can be loaded and say READY; whether there is anything to serve."""
        said: list[Loaded | wire.Fault] = []
        for index, tenant in enumerate(self._setup.tenants):
            try:
                model, loaded = self._load_one(index, tenant)
            except ModelError as error:
                self._models.append(None)
                said.append(_fault(error))
            else:
                self._models.append(model)
                said.append(loaded)
        gc.freeze()  # the runtimes' modules need not be walked again
        self._weigh()
        self._add(0, 0, Kind.READY, _encode(wire.Ready(os.getpid(), tuple(said))))
        self._flush()
        return any(self._models)

    def _load_one(self, index: int, tenant: Tenant) -> tuple[Model, Loaded]:
        """The first candidate that loads and is right.

        Raises:
            ModelError: the bundle is not usable, or no variant of it runs here; each one's reason is named.
        """
        from gateway.infer.backend import load  # loads NumPy
        from gateway.infer.bundle import Bundle
        from gateway.infer.candidate import defaults
        from gateway.infer.golden import Samples
        from gateway.infer.recipe import Recipe, batch_of

        with Bundle(Path(tenant.bundle)) as bundle:
            verified = bundle.verify(map(Path, tenant.keys), allow_unsigned=tenant.allow_unsigned)
            manifest = bundle.manifest
            recipe = Recipe(manifest, tenant.threads)
            samples = Samples.of(bundle)
            files = {variant.file for variant in manifest.variants}
            # the bundle may have been replaced since its candidates were ranked
            order = tuple(candidate for candidate in tenant.candidates if candidate.file in files)
            order = order or defaults(manifest, backend=tenant.backend, threads=tenant.threads)
            rejected: list[tuple[Candidate, str]] = []
            for at, candidate in enumerate(order):
                self._add(0, 0, Kind.TRYING, _encode(Trying(index, order, at)))
                self._flush()
                try:
                    found = load(manifest, bundle.member, candidate)
                    model = Model(samples, recipe, found.runner, found.variant.precision, batch_of(manifest, candidate))
                except ModelError as error:
                    rejected.append((candidate, f"{candidate.file} on {candidate.backend}: {error}"[:2000]))
                    continue
                return model, Loaded(
                    candidate, found.runner.description, verified.digest, verified.signed_by, manifest.limits,
                    tuple(rejected),
                )  # fmt: skip
        raise ModelError(
            f"{tenant.bundle}: no variant runs here: " + "; ".join(why for _, why in rejected),
            hint="install a runtime for one of its formats, or pack one that fits",
        )

    def serve(self) -> None:
        """Answer packets in their order until the peer is gone."""
        packet = bytearray(wire.PACKET_MAX)
        view = memoryview(packet)
        try:
            while n := self._channel.recv_into(packet):
                jobs = wire.unpack_jobs(view[:n])
                for job in jobs:
                    self._answer(job)
                self._flush()
                now = time.monotonic()
                if now - self._weighed > _WEIGH_S:
                    self._weigh()
                    self._weighed = now
                for tenant in {job.tenant for job in jobs}:
                    self._recheck(tenant, now)
        except (BrokenPipeError, ConnectionResetError):
            return

    def _answer(self, job: wire.Job) -> None:
        started = time.monotonic_ns()
        model = self._models[job.tenant]
        assert model is not None  # the engine knows what is loaded
        kind = Kind.RESULT
        try:
            if job.media == wire.CHECK:
                model.recheck()
                payload = b""
            elif job.media.startswith(_RAW):
                kind, payload = Kind.PICTURED, _pictured(model.answer, self._data(job), job.media)
            else:
                payload = _encode(model.answer(self._data(job), job.media))
        except ModelError as error:
            self._add(job.number, 0, Kind.REFUSED, _encode(_fault(error, job.tenant)))
        except Broken as error:
            self._add(job.number, 0, Kind.FAILED, _encode(wire.Fault(str(error)[:8000], tenant=job.tenant)))
        else:
            self._add(job.number, (time.monotonic_ns() - started) // 1000, kind, payload)

    def _data(self, job: wire.Job) -> memoryview:
        if job.slot == wire.NO_SLOT:
            return job.inline
        at = job.slot * self._setup.slot_bytes
        return self._memory[at : at + job.size]

    def _recheck(self, index: int, now: float) -> None:
        """A device that silently goes wrong is found after so long of work: no timer, and not while somebody waits."""
        model = self._models[index]
        if model is not None and now - model.checked > self._setup.recheck_s:
            try:
                model.recheck()
            except Broken as error:
                model.checked = time.monotonic()
                self._add(0, 0, Kind.FAILED, _encode(wire.Fault(str(error)[:8000], tenant=index)))
                self._flush()

    def _add(self, number: int, took_us: int, kind: Kind, payload: bytes) -> None:
        answer = wire.pack_answer(number, took_us, self._rss_mib, kind, payload)
        if len(answer) > wire.PACKET_MAX:
            fault = wire.Fault(
                f"an answer of {len(payload)} bytes is too large", f"at most {wire.PACKET_MAX} are taken"
            )
            answer = wire.pack_answer(number, took_us, self._rss_mib, Kind.REFUSED, _encode(fault))
        if len(self._reply) + len(answer) > wire.PACKET_MAX:
            self._flush()
        self._reply += answer

    def _flush(self) -> None:
        self._channel.send(self._reply)
        self._reply.clear()

    def _weigh(self) -> None:
        """Resident memory, told with the next answer; see proc_pid_statm(5)."""
        self._rss_mib = int(os.pread(self._statm, 64, 0).split()[1]) // _PAGES_PER_MIB


def _pictured(answer: Callable[[memoryview, str], Result], data: memoryview, media: str) -> bytes:
    """An uncompressed picture is looked at as the JPEG that people will see, so that all see the same.

    Raises:
        ModelError: it is not usable, or no quality of it leaves room for the result.
        Broken: see `Model.answer`.
    """
    from gateway.forms import MARK
    from gateway.infer import raw  # loads OpenCV

    shape, mark, form = media.partition(MARK)
    room = wire.PICTURE_MAX
    while True:
        jpeg = raw.to_jpeg(data, shape, room)
        result = _encode(answer(memoryview(jpeg), "image/jpeg" + mark + form))
        room = wire.room_for_picture(result)
        if len(jpeg) <= room:  # else a large result, of many masks: again with a smaller picture
            return wire.pack_pictured(result, jpeg)


def _fault(error: ModelError, tenant: int = 0) -> wire.Fault:
    return wire.Fault(error.what[:8000], error.hint[:1000], tenant)


def _be_nice(nice: int) -> None:
    """Every thread of this process: on Linux niceness is a thread's own, and the runtime has made its threads."""
    if nice:
        level = min(19, os.getpriority(os.PRIO_PROCESS, 0) + nice)
        for thread in os.listdir("/proc/self/task"):
            os.setpriority(os.PRIO_PROCESS, int(thread), level)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
