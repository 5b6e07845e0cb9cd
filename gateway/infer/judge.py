"""Decides about a new bundle from what its workers do: at its self-test, beside the one that serves, and on trial."""

from __future__ import annotations

import asyncio
from collections import deque

from gateway.contract import Result
from gateway.infer.seat import Job
from gateway.infer.wire import Loaded

CRASHES = 3  # workers that end, and it is the bundle
REFUSALS = 3  # inputs in a row that it does not take, and it is not the inputs
MIN_RUNS = 200  # before a 99th percentile is one
AT_LEAST = 20  # for the median, and at the end of a trial, where there is nothing better
NOISE_MS = 50.0  # a shared machine may do that to anybody: nothing below is too slow
_RECENT = 1000


class Judge:
    """An `engine.Observer` that looks at one bundle.

    Args:
        bundle: its path, as workers are told it.
        digest: of its members.

    Attributes:
        serving: set when a worker has it ready.
        over: set when it must go; `why` says why.
        limit_ms: of the 99th percentile, once it serves.
    """

    def __init__(self, bundle: str, digest: str, *, forgiving: bool = False) -> None:
        self.forgiving = forgiving
        self.serving = asyncio.Event()
        self.over = asyncio.Event()
        self.why = ""
        self.loaded: Loaded | None = None
        self.limit_ms = float("inf")
        self._bundle, self._digest = bundle, digest
        self._crashes = self._refusals = 0
        self._took: deque[int] = deque(maxlen=_RECENT)
        self._runs = 0

    def stop(self, why: str) -> None:
        """It must go."""
        if not self.why:
            self.why = why or "unknown"
            self.over.set()

    def slow(self, at_least: int) -> str:
        """Whether it is too slow, in words: by the 99th percentile of so many runs, by the median of fewer."""
        if len(self._took) < AT_LEAST:
            return ""
        what, share = ("p99", 0.99) if len(self._took) >= at_least else ("median", 0.5)
        took_ms = sorted(self._took)[int(len(self._took) * share)] / 1e6
        if took_ms <= self.limit_ms:
            return ""
        return f"too slow: {what} {took_ms:.3g} ms over {len(self._took)} runs, the limit is {self.limit_ms:.3g} ms"

    # --- what the engine tells ----------------------------------------------------------------------------------

    def serves(self, loaded: Loaded) -> None:
        if loaded.digest == self._digest:
            self.loaded = loaded
            self.serving.set()

    def answered(self, job: Job, result: Result, loaded: Loaded, took_ns: int) -> None:
        if loaded.digest != self._digest:
            return
        self._refusals = 0
        self._took.append(took_ns)
        self._runs += 1
        if self._runs % AT_LEAST == 0 and (why := self.slow(MIN_RUNS)):
            self.stop(why)

    def refused(self, why: str, loaded: Loaded) -> None:
        if loaded.digest == self._digest:
            self._refusals += 1
            if self._refusals >= REFUSALS:
                self.stop(f"{REFUSALS} inputs in a row were refused: {why}")

    def faulted(self, bundle: str, why: str, *, crash: bool) -> None:
        if bundle != self._bundle:
            return
        self._crashes += crash
        if not crash:
            self.stop(why)
        elif self._crashes >= CRASHES:
            self.stop(f"{CRASHES} workers ended: {why}")
