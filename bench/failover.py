"""What a fault of a device costs: 200 injected faults, and for each the time until its work was redone elsewhere.

    python bench/failover.py [--json] [--faults N]

A tiny real model on two candidates, a warm standby on the second; jobs arrive without a pause. Faults take turns: SIGKILL, SIGSTOP
(a hang: counted from the deadline, before which nobody can know), a device that raises, one that sleeps, one whose
golden answers go wrong, one that vanishes: it raises, and cannot be loaded again until the fault is over. The last
four are a simulated device (`tests/integration/vpu_worker.py`: OpenVINO's CPU plugin under a second name).
`redo` is from the fault, or its deadline, to the answer of the job that was in hand. Lost and doubled must be 0.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gateway.child import python_module
from gateway.contract import ModelStatus, Severity
from gateway.infer.breaker import Recovery
from gateway.infer.candidate import Candidate
from gateway.infer.engine import Engine
from tests.unit import bundles

DEADLINE_S = 0.5
KINDS = ("SIGKILL", "SIGSTOP", "raise", "sleep", "wrong", "vanish")
VPU = Candidate(backend="openvino", file="model.onnx", precision="fp32", device="VPU_CPU")
CPU = Candidate(backend="onnx", file="model.onnx", precision="fp32")


class Feed:
    """Jobs one after another, each with its own number in it; counts what comes back."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.sent = 0
        self.answers: Counter[int] = Counter()
        self.wrong = 0
        self.slow: list[tuple[float, float]] = []  # of each job: when it was answered, and how long it took

    async def run(self) -> None:
        while True:
            number = self.sent
            self.sent += 1
            started = time.perf_counter()
            answer = await self.engine.run(bundles.window(number, 1), bundles.MEDIA)
            ended = time.perf_counter()
            first = answer.result.values["first"]
            assert first in (number, 2 * number), "the answer of another job"
            self.wrong += first != number  # before the golden samples were looked at
            self.answers[number] += 1
            self.slow.append((ended, ended - started))
            await asyncio.sleep(0.001)

    def redone(self, since: float, known_s: float) -> float:
        """Seconds from when the fault could be known to the answer of the job that it hit."""
        hit = [took for ended, took in self.slow if ended > since]
        return max(0.0, max(hit) - known_s)


async def inject(kind: str, engine: Engine, switch: Path, feed: Feed) -> float:
    """One fault, and its redo time in seconds."""
    await until(engine, lambda s: s.backend.startswith("openvino") and bool(s.standby) and s.state == "ready")
    settled = len(feed.slow)
    while len(feed.slow) < settled + 5:
        await asyncio.sleep(0.002)
    feed.slow.clear()
    restarts, since = engine.status().restarts, time.perf_counter()
    if kind.startswith("SIG"):
        os.kill(engine.status().pid, signal.Signals[kind])
    else:
        switch.write_text(kind)
    await until(engine, lambda s: s.restarts > restarts and s.backend.startswith("onnx"))
    seen = feed.sent
    while feed.answers[seen] == 0:
        await asyncio.sleep(0.002)
    took = feed.redone(since, DEADLINE_S if kind in ("SIGSTOP", "sleep") else 0.0)
    switch.unlink(missing_ok=True)
    return took


async def until(engine: Engine, true: Callable[[ModelStatus], bool]) -> None:
    while not true(engine.status()):
        await asyncio.sleep(0.002)


async def measure(faults: int) -> dict[str, Any]:
    recovery = Recovery(first_s=0.2, most_s=0.2, passes=2, hold_s=0.1, calm_s=0.0)
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory() as folder:
        switch = Path(folder) / "switch"
        os.environ["OCTOGATE_TEST_SWITCH"] = str(switch)
        events: Counter[tuple[str, str]] = Counter()

        def note(name: str, state: str, severity: Severity, message: str, /, **detail: Any) -> None:
            events[name, state] += 1

        engine = Engine(
            "bench", bundles.make(Path(folder) / "tiny.octo"), candidates=(VPU, CPU), allow_unsigned=True,
            deadline_s=DEADLINE_S, standby=True, recovery=recovery, recheck_s=0.0,
            command=python_module("tests.integration.vpu_worker"),
            notify=note,
        )  # fmt: skip
        feed = Feed(engine)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(engine.supervise(), name="engine"), group.create_task(feed.run(), name="feed")]
            for i in range(faults):
                kind = KINDS[i % len(KINDS)]
                times[kind].append(await inject(kind, engine, switch, feed))
            await until(engine, lambda s: bool(s.standby))
            pss = {"serving": pss_mib(engine.status().pid)}
            tasks[1].cancel()
            await asyncio.wait([tasks[1]])
            tasks[0].cancel()
    answered = len(feed.answers)
    return {
        "faults": faults, "jobs": feed.sent, "answered": answered, "pss_mib": pss,
        "lost": feed.sent - 1 - answered if feed.answers[feed.sent - 1] == 0 else feed.sent - answered,
        "wrong": feed.wrong,
        "doubled": sum(n - 1 for n in feed.answers.values()),
        "failover_raised": events["model.failover", "raised"], "failover_cleared": events["model.failover", "cleared"],
        "redo": {name: figures(found) for name, found in [("all", [t for ts in times.values() for t in ts]), *times.items()]},
    }  # fmt: skip


def figures(seconds: list[float]) -> dict[str, float]:
    if not seconds:
        return {"n": 0, "p50_ms": 0.0, "p99_ms": 0.0, "max_ms": 0.0}
    found = sorted(1000 * s for s in seconds)
    return {
        "n": len(found), "p50_ms": found[len(found) // 2], "p99_ms": found[int(len(found) * 0.99)], "max_ms": found[-1]
    }  # fmt: skip


def pss_mib(pid: int) -> float:
    """Proportional set size; see proc_pid_smaps(5)."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--faults", type=int, default=200, help="how many (default 200)")
    options = parser.parse_args()
    found = asyncio.run(measure(options.faults))
    if options.json:
        print(json.dumps({"failover": found}))
        return
    print(f"{found['faults']} faults, {found['jobs']} jobs: {found['lost']} lost, {found['doubled']} doubled, "
          f"{found['wrong']} wrong before the re-check; "
          f"model.failover {found['failover_raised']} raised, {found['failover_cleared']} cleared; "
          f"serving worker {found['pss_mib']['serving']:.0f} MiB PSS")  # fmt: skip
    print(f"{'redo, ms':10}{'n':>6}{'p50':>8}{'p99':>8}{'max':>8}   target p99 < 1000")
    for name, row in found["redo"].items():
        print(f"{name:10}{row['n']:6}{row['p50_ms']:8.0f}{row['p99_ms']:8.0f}{row['max_ms']:8.0f}")


if __name__ == "__main__":
    main()
