"""Gives a running model another bundle, without losing an input:

    received -> verified -> tested -> [shadow] -> trial -> settled
        |          |           |          |          |
        +----------+-----------+----------+          +-- rolled back: the one before serves again
        given up: the one that serves goes on

Each step is on disk (`shelf.py`) before the next is begun; after a power cut the swap goes on where it was, or is given
up when that has happened too often.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from gateway.command import ModelSwap, ShadowCount
from gateway.contract import Severity
from gateway.errors import ControlError, ModelError, OctogateError, StoreError
from gateway.infer import shadow, verify
from gateway.infer.budget import Budget
from gateway.infer.bundle import read_manifest
from gateway.infer.engine import Engine, Notify
from gateway.infer.judge import AT_LEAST, NOISE_MS, Judge
from gateway.infer.manifest import Manifest
from gateway.infer.order import Order, first_candidates
from gateway.infer.shelf import CONFIGURED, MAX_STARTS, Copy, Shelf, State, Step, Wish

log = logging.getLogger("octogate")
READY_S = 120.0  # for the first worker that serves it to be ready: several candidates, on a small board
TELL_S = 5.0  # the spool has so long to take the event of an outcome
GUESS_MIB = 128  # of a worker, while none has been weighed

Fit = Callable[[Manifest, Manifest], None]


class Swapper:
    """Of one model.

    Args:
        order: the model as it runs now.
        engine: nothing of it need run yet.
        fit: raises ModelError when the second manifest may not take the place of the first.
        placed: called with the order of the bundle that is active from now on.
        command: of the self-test's worker, for another than ours.
    """

    def __init__(
        self,
        order: Order,
        shelf: Shelf,
        engine: Engine,
        *,
        budget: Budget,
        fit: Fit,
        placed: Callable[[Order], None],
        notify: Notify,
        state: State | None = None,
        command: Sequence[str] | None = None,
    ) -> None:
        self._order, self._shelf, self._engine, self._budget = order, shelf, engine, budget
        self._fit, self._placed, self._notify, self._command = fit, placed, notify, command
        self._state = state
        self._shadowed: shadow.Shadow | None = None
        self._judge: Judge | None = None
        self._taking = False
        self._turn = asyncio.Lock()  # of who changes the state
        self._wake = asyncio.Event()
        if state is not None and state.candidate is not None:
            self._wake.set()
            if state.step is Step.TRIAL:  # before the first worker starts
                self._watch(state.candidate)
            else:
                self._judge = Judge(str(shelf.path(state.candidate)), "")

    async def run(self) -> None:
        """Carry out what is asked, and what was interrupted, until cancelled."""
        async with self._turn:
            await self._announce()
        while True:
            await self._wake.wait()
            self._wake.clear()
            async with self._turn:
                try:
                    await self._carry_out()
                except OctogateError as error:
                    await self._over("given up", str(error))
                self._judge = self._engine.observer = None

    # --- what can be asked --------------------------------------------------------------------------------------

    def status(self) -> ModelSwap:
        state, serving = self._state, self._engine.status().bundle
        count = self._shadowed.count if self._shadowed else ShadowCount()
        if state is None:
            return ModelSwap(self._order.name, serving, "config", "", "", Step.SETTLED, 0, "", "", count)
        return ModelSwap(
            self._order.name, serving, "swap" if state.active.file else "config", _named(state.previous),
            _named(state.candidate), state.step, state.number, state.outcome, state.reason, count,
        )  # fmt: skip

    async def swap(self, source: Path, wish: Wish) -> ModelSwap:
        """Take a bundle; the rest happens by itself, and events tell.

        Raises:
            ControlError: another swap is under way.
            ModelError: the file is no bundle.
            StoreError: the disk has no room, or refuses.
        """
        if self._taking or (self._state is not None and self._state.candidate is not None):
            raise ControlError(f"model '{self._order.name}': a swap is under way", hint="wait, or roll it back")
        self._taking = True
        try:
            async with self._turn:
                await self._take(source, wish)
        finally:
            self._taking = False
        self._wake.set()
        return self.status()

    async def _take(self, source: Path, wish: Wish) -> None:
        state = self._state or State(1, await asyncio.to_thread(self._shelf.configured_sha256))
        file = await asyncio.to_thread(self._shelf.take, source)
        try:
            manifest = await asyncio.to_thread(read_manifest, self._shelf.path(Copy(file)))
        except ModelError:
            await asyncio.to_thread(self._shelf.sweep, state)
            raise
        await self._keep(
            msgspec.structs.replace(
                state, candidate=Copy(file, version=manifest.version), step=Step.RECEIVED, wish=wish, starts=0,
                number=state.number + 1, outcome="", reason="",
            )
        )  # fmt: skip
        self._shadowed = None
        self._judge = Judge(str(self._shelf.path(Copy(file))), "")

    async def rollback(self) -> ModelSwap:
        """Call off what is under way, or go back to the bundle before.

        Raises:
            ControlError: there is nothing to go back to.
            StoreError: the disk refuses.
        """
        state = self._state
        if state is not None and state.candidate is not None:
            if self._judge is not None:
                self._judge.stop("called off")
        elif state is None or state.previous is None or self._taking:
            raise ControlError(f"model '{self._order.name}' has no bundle to go back to")
        else:
            async with self._turn:
                back = msgspec.structs.replace(
                    state, active=state.previous, previous=state.active, outcome="rolled back", reason="asked for",
                    subject=str(state.active), told=False,
                )  # fmt: skip
                await self._keep(back)
                self._change(back.active)
                await self._announce()
        return self.status()

    # --- the steps ----------------------------------------------------------------------------------------------

    async def _carry_out(self) -> None:
        state = self._state
        assert state is not None and state.candidate is not None
        if state.step is not Step.TRIAL:
            await self._prove(state.candidate)
            await self._activate()
        await self._trial()

    async def _prove(self, taken: Copy) -> None:
        """Verified, self-tested and compared; ModelError when it is not to be taken."""
        assert self._state is not None
        path = self._shelf.path(taken)
        order = self._order_of(taken)
        verified = await verify.ask(
            verify.Question(str(path), taken.file, order.keys, order.allow_unsigned, os.getpid())
        )
        present = self._engine.status().bundle
        if present and verified.digest.startswith(present):
            raise ModelError(f"bundle {present} runs already", hint="nothing is to be done")
        manifest = await asyncio.to_thread(read_manifest, path)
        self._fit(await asyncio.to_thread(read_manifest, Path(self._engine.bundle)), manifest)
        candidate = msgspec.structs.replace(taken, digest=verified.digest)
        await self._step(Step.VERIFIED, candidate=candidate)

        called_off = self._judge.why if self._judge else ""
        self._judge = judge = Judge(str(path), verified.digest)
        if called_off:
            judge.stop(called_off)
        status = self._engine.status()
        size = status.rss_mib // max(status.workers, 1) or GUESS_MIB
        beside = shadow.understudy(order, first_candidates(order), judge, self._command)
        async with shadow.admitted(self._budget, size):
            await _beside(beside.supervise(), f"self-test of {order.name}", self._rehearse(judge, beside, manifest))

    async def _rehearse(self, judge: Judge, beside: Engine, manifest: Manifest) -> None:
        """With the new bundle's worker: self-tested, then compared."""
        assert self._state is not None
        await self._seen(judge, shadow.READY_S)
        assert judge.loaded is not None
        await self._step(Step.TESTED)
        if not (wish := self._state.wish).shadow_s:
            return
        await self._step(Step.SHADOW)
        tolerance = shadow.tolerance_of(manifest, judge.loaded)
        self._shadowed = run = shadow.Shadow(self._engine, beside, tolerance, self._notify)
        over = _first(judge.over, judge.over, wish.shadow_s)
        await _beside(run.run(wish.every), f"shadow of {beside.name}", over)
        if judge.why:
            raise ModelError(f"in the shadow: {judge.why}")
        count = run.count
        message = f"{count.disagreed} of {count.compared} answers differ, {count.otherwise} in more than numbers"
        self._tell("model.shadowed", Severity.INFO, message, **msgspec.structs.asdict(count))

    async def _seen(self, judge: Judge, patience_s: float) -> None:
        """Wait until a worker has it ready; ModelError when it must go, or none has."""
        await _first(judge.over, judge.serving, patience_s)
        if judge.why or not judge.serving.is_set():
            raise ModelError(judge.why or f"no worker had it ready in {patience_s:g} s")

    async def _activate(self) -> None:
        """The one moment that counts: when the state is renamed, the new bundle is what runs."""
        state = self._state
        assert state is not None and state.candidate is not None
        if self._judge is not None and self._judge.why:
            raise ModelError(self._judge.why)
        p50_ms = self._engine.status().p50_ms
        self._watch(state.candidate)
        await self._step(
            Step.TRIAL, active=state.candidate, previous=state.active, older=state.previous, p50_ms=p50_ms, starts=0
        )
        self._change(state.candidate)

    def _watch(self, candidate: Copy) -> None:
        self._judge = Judge(str(self._shelf.path(candidate)), candidate.digest, forgiving=True)
        self._engine.observer = self._judge

    async def _trial(self) -> None:
        state, judge = self._state, self._judge
        assert state is not None and judge is not None
        try:
            await self._seen(judge, READY_S)
        except ModelError as error:
            judge.stop(error.what)
        if judge.loaded is not None:
            limit = max(NOISE_MS, state.wish.slower * state.p50_ms) if state.p50_ms else float("inf")
            judge.limit_ms = min(judge.loaded.limits.deadline_ms, limit)
            await _first(judge.over, judge.over, state.wish.trial_s)
            if why := judge.slow(AT_LEAST):
                judge.stop(why)
        if judge.why:
            self._change(state.previous or CONFIGURED)  # at once: inputs wait
            await self._over("rolled back", judge.why)
        else:
            await self._over("settled")

    async def _over(self, outcome: Literal["settled", "given up", "rolled back"], why: str = "") -> None:
        """Write down how it ended, and tell. What cannot be written is found again at the next start."""
        assert self._state is not None and self._state.candidate is not None
        state = self._state.over(outcome, why)
        try:
            await self._keep(state)
            await asyncio.to_thread(self._shelf.sweep, state)
        except StoreError as error:
            self._state = state
            log.error("%s", error)
        await self._announce()

    async def _announce(self) -> None:
        """Make the outcome known, once it stands; that it was is written down once the event is on disk."""
        state = self._state
        if state is None or state.told or state.candidate is not None:
            return
        name, severity, what = _ENDS[state.outcome]
        why = f": {state.reason}" if state.reason else ""
        row = self._tell(name, severity, f"bundle {state.subject} {what}{why}", state.reason)
        if isinstance(row, asyncio.Future):
            await asyncio.wait([row], timeout=TELL_S)
        try:
            await self._keep(msgspec.structs.replace(state, told=True))
        except StoreError as error:
            log.error("%s", error)  # told again at the next start

    # --- helpers ------------------------------------------------------------------------------------------------

    async def _step(self, step: Step, **changes: object) -> None:
        assert self._state is not None
        await self._keep(msgspec.structs.replace(self._state, step=step, **changes))
        message = f"bundle {_named(self._state.candidate)} is {_WORDS[step]}"
        self._tell("model.swap", Severity.INFO, message, step=str(step))

    async def _keep(self, state: State) -> None:
        await asyncio.to_thread(self._shelf.keep, state)
        self._state = state

    def _order_of(self, copy: Copy) -> Order:
        return msgspec.structs.replace(self._order, bundle=str(self._shelf.path(copy)))

    def _change(self, copy: Copy) -> None:
        order = self._order_of(copy)
        self._engine.change(Path(order.bundle), first_candidates(order))
        self._placed(order)

    def _tell(self, name: str, severity: Severity, message: str, reason: str = "", **detail: object) -> object:
        more = {"reason": reason[:1000]} if reason else {}
        return self._notify(name, "point", severity, f"model '{self._order.name}': {message}"[:2000], **detail, **more)


_ENDS = {
    "settled": ("model.swapped", Severity.INFO, "stays"),
    "rolled back": ("model.rolled_back", Severity.ALARM, "was rolled back"),
    "given up": ("model.swap_failed", Severity.WARNING, "was not taken"),
}
_WORDS = {
    Step.VERIFIED: "verified",
    Step.TESTED: "self-tested",
    Step.SHADOW: "computed in the shadow",
    Step.TRIAL: "active, on trial",
}


def opened(shelf: Shelf, notify: Notify, name: str) -> State | None:
    """What holds at a start, before anything runs; a swap that had too many starts is ended here. Calls block.

    A state that cannot be used leaves the config's bundle, and an event tells.
    """
    state, why = shelf.read()
    try:
        if state is None:
            if why:
                message = f"model '{name}': the config's bundle runs: {why}"
                notify("model.swap_dropped", "point", Severity.WARNING, message, reason=why)
                shelf.forget()
            return None
        if state.candidate is not None:
            if state.starts < MAX_STARTS:
                state = msgspec.structs.replace(state, starts=state.starts + 1)
            else:
                reason = f"the gateway was started {state.starts} times meanwhile"
                state = state.over("rolled back" if state.step is Step.TRIAL else "given up", reason)
            shelf.keep(state)
        shelf.sweep(state)
    except StoreError as error:  # a full disk must not keep the gateway from starting
        log.error("%s", error)
    return state


async def _first(one: asyncio.Event, other: asyncio.Event, patience_s: float) -> None:
    """Return when one of them is set, or after this time."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(event.wait(), name="waiting") for event in {one, other}]
        await asyncio.wait(tasks, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()


async def _beside(work: Coroutine[Any, Any, None], name: str, body: Awaitable[None]) -> None:
    """Await `body` while `work` runs; an error of the first is raised as it is, not in a group."""
    failure: OctogateError | None = None
    async with asyncio.TaskGroup() as group:
        task = group.create_task(work, name=name)
        try:
            await body
        except OctogateError as error:
            failure = error
        finally:
            task.cancel()
    if failure is not None:
        raise failure


def _named(copy: Copy | None) -> str:
    """For people."""
    return "" if copy is None else (copy.digest or copy.file)[:12] or "config"
