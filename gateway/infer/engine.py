"""The daemon's side of a model: hands inputs to a worker process, watches its deadline, replaces it when it fails.

Nothing here computes: no NumPy, no runtime, no OpenCV. A worker that dies or hangs costs time, never an input: the
job in hand is redone by the next worker.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from gateway.child import python_module
from gateway.contract import ModelStatus, Result, Severity
from gateway.errors import DeadlineError, ModelError
from gateway.infer import wire
from gateway.infer.process import SharedMemory, WorkerProcess
from gateway.infer.wire import Kind, Setup

MAX_ATTEMPTS = 3  # of one job; then it is the job that kills workers
_START_FAILURES = 3  # workers in a row that die before they are ready: the model has failed
_START_BACKOFF_S, _START_BACKOFF_MAX_S = 0.25, 60.0
_CRASH_BACKOFF_S, _CRASH_BACKOFF_MAX_S = 0.25, 10.0
_RECENT = 512  # runs in the percentiles

_decode_result = msgspec.msgpack.Decoder(Result).decode
_decode_ready = msgspec.msgpack.Decoder(wire.Ready).decode
_decode_fault = msgspec.msgpack.Decoder(wire.Fault).decode

Notify = Callable[[str, str, Severity, str], None]
"""Called with an event's name, state (`raised`, `cleared`, `point`), severity and message."""


class Answer(msgspec.Struct, frozen=True, gc=False):
    """What `Engine.run` gives.

    Attributes:
        backend: what computed it, for example `onnx fp32 x1`.
        bundle: the first 12 hex digits of the bundle's digest.
        took_us: from the call of `run` to having the result, queueing and redone attempts included.
        picture: the JPEG that was made of an uncompressed picture; empty for any other input.
    """

    result: Result
    backend: str
    bundle: str
    took_us: int
    picture: bytes = b""


class _Job:
    __slots__ = ("attempts", "data", "future", "media", "sent_ns")

    def __init__(self, data: bytes, media: bytes, future: asyncio.Future[wire.Answer]) -> None:
        self.data = data
        self.media = media
        self.future = future
        self.attempts = 0
        self.sent_ns = 0


class Engine:
    """One model in one worker.

    Args:
        name: the model's name in the config, for messages.
        bundle: the `.octo` file; read again by every new worker, so it may be replaced.
        backend: the only backend to use; empty takes the bundle's first variant that runs here.
        deadline_s: a job without an answer for so long gets its worker killed.
        nice: niceness of the worker once it is ready.
        max_input: bytes of the largest input.
        keys: public keys that may sign the bundle.
        notify: called for `model.restarted` (point) and `model.failed` (raised, cleared).
        start_deadline_s: a worker that is not ready after so long is killed.
        command: the worker's command line, for other workers than ours.
    """

    def __init__(
        self,
        name: str,
        bundle: Path,
        *,
        backend: str = "",
        threads: int = 1,
        deadline_s: float = 1.0,
        nice: int = 10,
        max_input: int = 2 << 20,
        keys: Sequence[Path] = (),
        allow_unsigned: bool = False,
        notify: Notify,
        start_deadline_s: float = 30.0,
        command: Sequence[str] | None = None,
    ) -> None:
        self.name = name
        self._setup = Setup(
            name=name, bundle=str(bundle), backend=backend, threads=threads, nice=nice,
            keys=tuple(map(str, keys)), allow_unsigned=allow_unsigned,
            parent=0, socket=-1, memory=-1, slot_bytes=max_input,
        )  # fmt: skip
        self._command = list(command or python_module("gateway.infer.worker"))
        self._deadline_s = deadline_s
        self._start_deadline_s = start_deadline_s
        self._notify = notify
        self._queue: deque[_Job] = deque()
        self._current: _Job | None = None
        self._number = 0
        self._timer: asyncio.TimerHandle | None = None
        self._overdue = False
        self._worker: WorkerProcess | None = None  # while it is ready
        self._starting: WorkerProcess | None = None
        self._ended = asyncio.Event()
        self._ready: wire.Ready | None = None
        self._refusal: wire.Fault | None = None
        self._state = "starting"
        self._detail = ""
        self._runs = self._restarts = self._starts = 0
        self._served = 0  # jobs answered by the worker at hand
        self._failures = 0  # workers in a row that answered nothing
        self._recent: deque[int] = deque(maxlen=_RECENT)

    async def run(self, data: bytes, media: str) -> Answer:
        """Have one input computed; inputs are taken in the order of the calls, one at a time.

        Args:
            data: a picture's file or the packed records of a window.
            media: `image/jpeg`, `image/png`, `image/x-yuyv;<width>;<height>;<stride>` or `records;<Schema.spec()>`.

        Raises:
            ModelError: the input is not usable, kills every worker, or the model cannot be loaded.
            DeadlineError: no worker answered it in time, MAX_ATTEMPTS times over.
        """
        started = time.monotonic_ns()
        if self._state == "failed":
            raise ModelError(f"model '{self.name}' does not run: {self._detail}", hint="mend its bundle")
        if len(data) > self._setup.slot_bytes:
            raise ModelError(
                f"model '{self.name}': an input of {len(data)} bytes, at most {self._setup.slot_bytes} are taken",
                hint="raise max_input_kib of the model, or have the camera deliver smaller pictures",
            )
        job = _Job(data, media.encode(), asyncio.get_running_loop().create_future())
        self._queue.append(job)
        self._send_next()
        answer = await job.future
        if answer.kind is Kind.REFUSED:
            fault = _decode_fault(answer.payload)
            raise ModelError(fault.what, hint=fault.hint)
        payload, picture = answer.payload, b""
        if answer.kind is Kind.PICTURED:
            payload, picture = wire.unpack_pictured(payload)
        result = _decode_result(payload)
        ready = self._ready
        assert ready is not None  # an answer came
        took = (time.monotonic_ns() - started) // 1000
        return Answer(result, ready.backend, ready.digest[:12], took, picture)

    def status(self) -> ModelStatus:
        """A snapshot; the percentiles are over the last runs, from handing a job over to its answer."""
        ready = self._ready
        at_hand = self._worker or self._starting
        recent = sorted(self._recent)
        p50, p99 = (recent[int(len(recent) * q)] / 1e6 if recent else 0.0 for q in (0.5, 0.99))
        return ModelStatus(
            name=self.name,
            state=self._state,
            backend=ready.backend if ready else "",
            bundle=ready.digest[:12] if ready else "",
            signed=bool(ready and ready.signed_by),
            pid=at_hand.pid if at_hand else 0,
            runs=self._runs,
            restarts=self._restarts,
            p50_ms=p50,
            p99_ms=p99,
            detail=self._detail,
        )

    async def supervise(self) -> None:
        """Keep a worker running until cancelled; then it is gone, and every waiting `run` fails.

        Run it in a TaskGroup. `run` may be called before it is started.
        """
        try:
            with SharedMemory(self.name, self._setup.slot_bytes) as memory:
                while True:
                    pause = await self._one_life(memory)
                    if pause:
                        await asyncio.sleep(pause)
        finally:
            self._state, self._detail = "failed", "the gateway is stopping"
            self._fail_all(ModelError(f"model '{self.name}': the gateway is stopping"))

    async def _one_life(self, memory: SharedMemory) -> float:
        """Start a worker and see it through to its end; how long to wait before the next, in seconds."""
        self._served, self._overdue = 0, False
        self._ended.clear()
        if self._starts:
            self._restarts += 1
        self._starts += 1
        loop = asyncio.get_running_loop()
        worker = WorkerProcess(self._command, self._setup, memory, self._on_answer, self._on_end)
        try:
            async with worker:
                self._starting = worker
                timer = loop.call_later(self._start_deadline_s, self._start_overdue)
                try:
                    await self._ended.wait()
                finally:
                    timer.cancel()
                    self._stop_timer()
                    was_ready = self._starting is None
                    self._worker = self._starting = None
        except ModelError as error:
            return self._start_failed(error.what, final=False)
        refusal, self._refusal = self._refusal, None
        if refusal is not None:
            return self._start_failed(_text(refusal), final=True)
        if was_ready:
            return self._restart(self._why(worker, self._deadline_s))
        return self._start_failed(self._why(worker, self._start_deadline_s), final=False)

    def _start_failed(self, why: str, *, final: bool) -> float:
        """A worker ended before it was ready."""
        self._failures += 1
        self._detail = why
        if (final or self._failures >= _START_FAILURES) and self._state != "failed":
            self._state = "failed"
            self._notify("model.failed", "raised", Severity.ALARM, f"model '{self.name}': {why}")
        if self._state == "failed":
            self._ready = None
            # nothing can compute them, and the next attempt is far: the callers are told
            self._fail_all(ModelError(f"model '{self.name}' does not run: {why}", hint="mend its bundle"))
        return _backoff(self._failures, _START_BACKOFF_S, _START_BACKOFF_MAX_S)

    def _restart(self, why: str) -> float:
        """A worker that was ready ended; its job goes to the next one."""
        self._state, self._detail = "restarting", why
        job, self._current = self._current, None
        if job is not None and not job.future.done():
            if job.attempts < MAX_ATTEMPTS:
                self._queue.appendleft(job)
            else:
                kind = DeadlineError if self._overdue else ModelError
                job.future.set_exception(
                    kind(
                        f"model '{self.name}': one input ended {MAX_ATTEMPTS} workers: {why}",
                        hint="the input is left out; keep it and report it",
                    )
                )
        self._notify("model.restarted", "point", Severity.WARNING, f"model '{self.name}': {why}")
        self._failures = 0 if self._served else self._failures + 1
        # at once, unless the model does nothing but crash
        return _backoff(self._failures - _START_FAILURES, _CRASH_BACKOFF_S, _CRASH_BACKOFF_MAX_S)

    def _send_next(self) -> None:
        if self._worker is None or self._current is not None:
            return
        while self._queue:
            job = self._queue.popleft()
            if job.future.done():  # its caller was cancelled
                continue
            self._current = job
            self._number += 1
            job.attempts += 1
            job.sent_ns = time.monotonic_ns()
            self._timer = asyncio.get_running_loop().call_later(self._deadline_s, self._job_overdue)
            self._worker.send(self._number, job.media, job.data)
            return

    def _on_answer(self, answer: wire.Answer) -> None:
        if answer.kind is Kind.READY:
            self._on_ready(_decode_ready(answer.payload))
        elif answer.kind is Kind.UNUSABLE:
            self._refusal = _decode_fault(answer.payload)
        elif (job := self._current) is not None:
            self._stop_timer()
            self._current = None
            self._served += 1
            self._runs += 1
            self._recent.append(time.monotonic_ns() - job.sent_ns)
            if not job.future.done():
                job.future.set_result(answer)
            self._send_next()

    def _on_ready(self, ready: wire.Ready) -> None:
        if self._state == "failed":
            self._notify("model.failed", "cleared", Severity.INFO, f"model '{self.name}' runs again")
        self._ready = ready
        self._worker, self._starting = self._starting, None
        self._state, self._detail = "ready", "; ".join(ready.rejected)
        self._send_next()

    def _on_end(self) -> None:
        self._ended.set()

    def _job_overdue(self) -> None:
        self._timer = None
        self._overdue = True
        if self._worker is not None:
            self._worker.kill()

    def _start_overdue(self) -> None:
        if self._starting is not None:
            self._overdue = True
            self._starting.kill()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fail_all(self, error: ModelError) -> None:
        jobs = [*self._queue] if self._current is None else [self._current, *self._queue]
        self._queue.clear()
        self._current = None
        for job in jobs:
            if not job.future.done():
                job.future.set_exception(error)

    def _why(self, worker: WorkerProcess, limit: float) -> str:
        """How a worker ended, in one line, with the last of what it said."""
        if self._overdue:
            return f"worker {worker.pid}: no answer in {limit:g} s, killed"
        status = worker.child.returncode
        if status is None:
            how = "closed its socket"
        elif status < 0:
            how = f"killed by {_signal_name(-status)}"
        else:
            how = f"exit status {status}"
        # who is killed from outside had no time to say why
        said = worker.child.tail().splitlines() if status != -signal.SIGKILL else []
        return f"worker {worker.pid}: {how}" + (f": {said[-1][:500]}" if said else "")


def _backoff(failures: int, first: float, most: float) -> float:
    """Doubling from `first` at one failure; 0 for none or fewer."""
    return 0.0 if failures <= 0 else min(most, first * 2.0 ** (failures - 1))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _text(fault: wire.Fault) -> str:
    return f"{fault.what} ({fault.hint})" if fault.hint else fault.what
