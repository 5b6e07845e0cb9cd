"""One worker process as long as it lives: what it has loaded, what it has in hand, and its deadlines."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Sequence
from enum import Enum, auto
from typing import TYPE_CHECKING, Protocol

import msgspec

from gateway.contract import Result
from gateway.errors import ModelError
from gateway.infer import wire
from gateway.infer.candidate import Candidate
from gateway.infer.process import SharedMemory, WorkerProcess
from gateway.infer.wire import Kind

if TYPE_CHECKING:
    from gateway.infer.engine import Engine

BATCH = 32  # jobs of micro-models in one packet
_LAST_WORDS_S = 0.2  # how long the exit status of a worker that closed its socket is waited for
_decode_ready = msgspec.msgpack.Decoder(wire.Ready).decode
_decode_trying = msgspec.msgpack.Decoder(wire.Trying).decode


Input = tuple[str, int]
"""Where an input comes from: a stream or a source, and its sequence number there."""
NOBODYS: Input = ("", -1)


class Role(Enum):
    SERVE = auto()  # gets jobs, once it is ready
    STANDBY = auto()  # ready, and idle: takes over in the moment in which another fails
    PROBE = auto()  # tries a candidate that had failed
    LEAVE = auto()  # finishes what it has in hand


class Job:
    """One input of one model, until it has its answer."""

    __slots__ = ("attempts", "blamed", "data", "engine", "future", "media", "of", "sent_ns", "since_ns")

    def __init__(self, engine: Engine, data: bytes, media: bytes, since_ns: int, of: Input = NOBODYS) -> None:
        self.engine = engine
        self.data = data
        self.media = media
        self.since_ns = since_ns
        self.of = of
        self.sent_ns = 0
        self.attempts = 0
        self.blamed: list[Candidate] = []  # who failed with it
        self.future: asyncio.Future[tuple[Result, wire.Loaded, bytes]] = asyncio.get_running_loop().create_future()

    @property
    def small(self) -> bool:
        return len(self.data) + len(self.media) <= wire.INLINE_MAX


class Listener(Protocol):
    """Who has the seat."""

    def tried(self, trying: wire.Trying) -> None: ...
    def ready(self, seat: Seat) -> None: ...
    def answered(self, seat: Seat, job: Job | None, answer: wire.Answer) -> None: ...
    def idle(self, seat: Seat) -> None: ...
    def ended(self, seat: Seat, why: str) -> None: ...


class Seat:
    """Run `live` as a task. Once `ended` was called nothing more is heard of it.

    Args:
        argv: the worker's command line before the setup.
        role: why it is started.
        probing: tenant and candidate that a PROBE is about.
    """

    def __init__(
        self,
        argv: Sequence[str],
        setup: wire.Setup,
        role: Role,
        start_deadline_s: float,
        listener: Listener,
        probing: tuple[int, Candidate] | None = None,
    ) -> None:
        self.role = role
        self.probing = probing
        self.passes = 0
        self.trying: wire.Trying | None = None
        self.loaded: tuple[wire.Loaded | wire.Fault, ...] = ()  # by tenant, once it is ready
        self.in_hand: dict[int, Job | None] = {}  # by number; None is a check
        self.tokens = 0  # of the budget, held
        self.admitted_mib = 0  # of the budget, while it is a standby
        self.shunned: set[int] = set()  # tenants whose runtime failed here
        self.tired = ""  # why it is to be replaced
        self.wish: list[tuple[Candidate, ...]] = []  # whom it was to try, by tenant
        self.served = 0
        self.rss_mib = self.fresh_mib = self.limit_mib = 0
        self.overdue = False
        self.over = False
        self._argv, self._setup, self._listener = argv, setup, listener
        self._start_deadline_s = start_deadline_s
        self._process: WorkerProcess | None = None
        self._memory: SharedMemory | None = None
        self._gone = asyncio.Event()
        self._closed = False
        self._number = 0
        self._limit_s = 0.0
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    @property
    def is_ready(self) -> bool:
        return bool(self.loaded) and not self.over

    @property
    def bundles(self) -> tuple[str, ...]:
        """What it loads, by tenant."""
        return tuple(tenant.bundle for tenant in self._setup.tenants)

    def takes(self, tenant: int) -> bool:
        """Whether this model may be computed here."""
        return isinstance(self.loaded[tenant], wire.Loaded) and tenant not in self.shunned

    async def live(self) -> None:
        """Start the worker and see it through to its end; the listener has been told by then."""
        self._arm(self._start_deadline_s)
        try:
            with SharedMemory(self._setup.tenants[0].name, self._setup.slot_bytes) as self._memory:
                process = WorkerProcess(self._argv, self._setup, self._memory, self._on_answers, self._on_close)
                async with process:
                    self._process = process
                    await self._gone.wait()
                    if not self.over:  # it closed its socket: its status and last words are worth a moment
                        with contextlib.suppress(TimeoutError):
                            await asyncio.wait_for(process.child.wait(), _LAST_WORDS_S)
                        self._end(_how(process))
        except ModelError as error:
            self._end(error.what)
        finally:
            self.over = True
            self._disarm()

    def send(self, jobs: Sequence[Job], deadline_s: float) -> None:
        """Hand jobs over, all small or one large; the deadline is for all of them together."""
        assert self._process is not None and self._memory is not None
        parts: list[bytes] = []
        now = time.monotonic_ns()
        for job in jobs:
            job.attempts += 1
            job.sent_ns = now
            self._number += 1
            self.in_hand[self._number] = job
            tenant = job.engine.tenant
            if job.small:
                header = wire.pack_job(self._number, tenant, job.media, wire.NO_SLOT, len(job.data))
                parts += (header, job.media, job.data)
            else:
                self._memory.write(job.data)
                parts += (wire.pack_job(self._number, tenant, job.media, 0, len(job.data)), job.media)
        self._arm(deadline_s)
        self._process.send(b"".join(parts))

    def check(self, tenant: int) -> None:
        """Have it reproduce the golden samples of one model; answered like a job."""
        assert self._process is not None
        self._number += 1
        self.in_hand[self._number] = None
        self._arm(self._start_deadline_s)
        media = wire.CHECK.encode()
        self._process.send(wire.pack_job(self._number, tenant, media, wire.NO_SLOT, 0) + media)

    def dismiss(self) -> None:
        """End it without a word to the listener."""
        self.over = True
        self._disarm()
        if self._process is not None:
            self._process.close()
            self._process.kill()
        self._gone.set()

    def take_back(self) -> list[Job]:
        """What was in hand, in its order."""
        jobs = [job for job in self.in_hand.values() if job is not None]
        self.in_hand.clear()
        return jobs

    # --- what the process does ----------------------------------------------------------------------------------

    def _on_answers(self, answers: list[wire.Answer]) -> None:
        for answer in answers:
            if self.over:
                return
            if answer.kind is Kind.TRYING:
                self.trying = _decode_trying(answer.payload)
                self._listener.tried(self.trying)
            elif answer.kind is Kind.READY:
                self._disarm()
                self.rss_mib = self.fresh_mib = answer.rss_mib
                self.loaded = _decode_ready(answer.payload).tenants
                self._listener.ready(self)
            elif answer.number in self.in_hand or answer.number == 0:
                job = self.in_hand.pop(answer.number, None)
                self.rss_mib = answer.rss_mib
                self.served += 1
                self._listener.answered(self, job, answer)
        if self.loaded and not self.in_hand and not self.over:
            self._listener.idle(self)

    def _on_close(self) -> None:
        self._closed = True
        self._gone.set()

    def _end(self, why: str) -> None:
        if not self.over:
            self.over = True
            self._disarm()
            self._listener.ended(self, f"worker {self.pid}: {why}" if self.pid else why)

    # --- one timer, moved only when it rings: most jobs are answered long before ---------------------------------

    def _arm(self, limit_s: float) -> None:
        loop = asyncio.get_running_loop()
        self._limit_s = limit_s
        self._due = loop.time() + limit_s
        if self._timer is not None and self._timer.when() > self._due:
            self._disarm()
        if self._timer is None:
            self._timer = loop.call_at(self._due, self._rings)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _rings(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        if (self.is_ready and not self.in_hand) or self._closed:
            return
        if loop.time() < self._due:
            self._timer = loop.call_at(self._due, self._rings)
            return
        self.overdue = True
        if self._process is not None:
            # it may be stuck in the kernel and die late: nothing waits for that
            self._process.close()
            self._process.kill()
        self._end(f"no answer in {self._limit_s:g} s, killed")
        self._gone.set()


def _how(process: WorkerProcess) -> str:
    """How a worker ended, in one line, with the last of what it said."""
    status = process.child.returncode
    if status is None:
        how = "closed its socket"
    elif status < 0:
        how = f"killed by {_signal_name(-status)}"
    else:
        how = f"exit status {status}"
    # who is killed from outside had no time to say why
    said = process.child.tail().splitlines() if status != -signal.SIGKILL else []
    return how + (f": {said[-1][:500]}" if said else "")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
