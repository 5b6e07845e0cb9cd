"""Measuring in the daemon: in idle time, one model after the other, each in a process of the lowest priority.

A timer runs only while something waits to be measured. The measuring process is stopped as soon as the gateway has
something to do, continued when that is over, and given up when it is not over soon; then the next attempt waits
for a longer calm.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec

from gateway.child import Child, ended, python_env, python_module
from gateway.contract import ModelStatus, Severity
from gateway.infer import ranking
from gateway.infer.candidate import Candidate
from gateway.infer.order import Order, cpus_here

log = logging.getLogger("octogate.place")

LOOK_S = 1.0  # between two looks at the load, while something waits to be measured
# The rest is counted in looks, that is in seconds.
CALM = 60  # in a row, before it starts
CALM_MAX = 3600  # attempts that were given up double it, up to this
RESUME = 5  # calm ones before a stopped measurement goes on
GIVE_UP = 60  # stopped for so long, it is ended
LONGEST = 1800  # of one measurement; then something in it hangs
ATTEMPTS = 3  # that ended by a signal: killed from outside, or for memory
NICE = 19  # of the measuring process, which lowers itself still more
LAG_S = 0.05  # the loop's timer may be so late
SHARE = 0.5  # of the processors that others, and our own models, may use
_UNCHANGED, _MEASURED = 3, 0  # exit statuses of place.py


class Placed(Protocol):
    """An engine."""

    def prefer(self, candidates: Sequence[Candidate]) -> None: ...

    def status(self) -> ModelStatus: ...


class Notify(Protocol):
    def __call__(self, origin: str, name: str, state: str, severity: Severity, message: str, **detail: Any) -> None: ...


class Load(NamedTuple):
    """What went on since the last look.

    Attributes:
        lag_s: how late the loop's timer came.
        others: share of the processors used by programs of ordinary priority; workers and measurements are niced.
        models: share of the processors that the models' workers used, as far as their runs tell.
    """

    lag_s: float
    others: float
    models: float

    @property
    def calm(self) -> bool:
        return self.lag_s <= LAG_S and self.others <= SHARE and self.models <= SHARE


Look = Callable[[], Awaitable[Load]]


class Watch:
    """Looks at the load once a LOOK_S."""

    def __init__(self, engines: Mapping[str, Placed]) -> None:
        self._engines = engines
        self._cpus = cpus_here()
        self._jiffies = _jiffies()
        self._runs = self._total_runs()

    async def look(self) -> Load:
        loop = asyncio.get_running_loop()
        asleep = loop.time()
        await asyncio.sleep(LOOK_S)
        took = loop.time() - asleep
        before, self._jiffies = self._jiffies, _jiffies()
        runs, self._runs = self._runs, self._total_runs()
        busy, every = self._jiffies[0] - before[0], self._jiffies[1] - before[1]
        ran_ms = sum(
            (now - runs.get(name, now)) * self._engines[name].status().p50_ms for name, now in self._runs.items()
        )
        return Load(took - LOOK_S, busy / max(every, 1), ran_ms / 1000 / took / self._cpus)

    def _total_runs(self) -> dict[str, int]:
        return {name: engine.status().runs for name, engine in self._engines.items()}


def _jiffies() -> tuple[int, int]:
    """(busy at ordinary priority, all) since boot: the first line of /proc/stat, see proc(5).

    Without `system`: it counts the system calls of niced processes too, of the measurement for one.
    """
    with open("/proc/stat") as file:
        user, nice, system, idle, iowait, irq, softirq, steal = map(int, file.readline().split()[1:9])
    busy = user + irq + softirq + steal
    return busy, busy + system + nice + idle + iowait


class Placer:
    """Keeps every model's ranking up to date.

    Args:
        orders: by model; those whose pins leave nothing to choose cost a look and no measurement.
        engines: by model.
        notify: called for `model.placed` and `model.unplaced` (points).
        command: the measuring process's command line, for another than ours.
    """

    def __init__(
        self,
        orders: Mapping[str, Order],
        engines: Mapping[str, Placed],
        notify: Notify,
        *,
        command: Sequence[str] | None = None,
        look: Look | None = None,
    ) -> None:
        self._orders = orders
        self._engines = engines
        self._notify = notify
        self._command = list(command or python_module("gateway.infer.place"))
        self._look = look
        self._due = deque(orders)
        self._wake = asyncio.Event()
        self._wake.set()

    def request(self, model: str) -> None:
        """Have a model looked at again: its bundle, its devices or its packages may have changed."""
        if model not in self._due:
            self._due.append(model)
        self._wake.set()

    def reload(self, model: str) -> None:
        """Use what is remembered of a model by now: `octogate bench` may have measured it."""
        self._apply(self._orders[model])

    async def run(self) -> None:
        """Until cancelled; every model is due at the start."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            look = self._look or Watch(self._engines).look
            calm, failures = CALM, 0
            while self._due:
                await _calm(look, calm)
                order = self._orders[self._due.popleft()]
                status, said = await self._measure(order, look)
                if status is None:  # given up
                    self._due.appendleft(order.name)
                    calm = min(2 * calm, CALM_MAX)
                    continue
                failures = failures + 1 if status < 0 else 0
                if 0 < failures < ATTEMPTS:
                    self._due.appendleft(order.name)
                    continue
                failures = 0
                if status == _MEASURED:
                    self._apply(order)
                elif status != _UNCHANGED:
                    how = ended(status) if status < 0 else said
                    message = f"model '{order.name}': could not be measured, goes on as it is: {how}"
                    self._notify(order.name, "model.unplaced", "point", Severity.WARNING, message)

    async def _measure(self, order: Order, look: Look) -> tuple[int | None, str]:
        """One process from start to end: its exit status, or None when there was no time for it, and its last words."""
        argument = msgspec.json.encode(msgspec.structs.replace(order, parent=os.getpid())).decode()
        child = Child([*self._command, argument], env=python_env(), nice=NICE, capture_stderr=True)
        async with child, asyncio.TaskGroup() as group:
            governor = group.create_task(_govern(child, look), name=f"measuring {order.name}")
            status = await child.wait()
            governor.cancel()
        last = child.tail().splitlines()[-1:] or [ended(status)]
        return (status if governor.cancelled() else None), last[0][:1000]

    def _apply(self, order: Order) -> None:
        placement = ranking.load(Path(order.cache))
        if placement is None or not placement.ranking:
            return
        self._engines[order.name].prefer(placement.ranking)
        before, choice, ratio = placement.before, placement.ranking[0], placement.gain
        if before is None or before == choice:
            return
        ratio = ratio and round(ratio, 2)
        gain = f", {ratio:g} times better by {placement.key.objective}" if ratio else ""
        message = f"model '{order.name}': measured, {_named(before)} -> {_named(choice)}{gain}"
        detail = {"from": _named(before), "to": _named(choice), "ratio": ratio, "objective": placement.key.objective}
        self._notify(order.name, "model.placed", "point", Severity.INFO, message, **detail)


async def _calm(look: Look, wanted: int, patience: int | None = None) -> bool:
    """Whether so many looks in a row were calm, of at most `patience`."""
    calm = looks = 0
    while calm < wanted:
        if looks == patience:
            return False
        calm = calm + 1 if (await look()).calm else 0
        looks += 1
    return True


async def _govern(child: Child, look: Look) -> None:
    """Stop the measurement while something is going on, continue it after; ends when it has killed it."""
    for _ in range(LONGEST):
        if (await look()).calm:
            continue
        # the process that conducts is stopped; a worker at most ends the inference or the loading in hand
        child.send_signal(signal.SIGSTOP)
        if not await _calm(look, RESUME, GIVE_UP):
            break
        child.send_signal(signal.SIGCONT)
    log.info("a measurement is given up: there is too much to do")
    child.kill()


def _named(candidate: Candidate) -> str:
    return f"{candidate} ({candidate.file})"
