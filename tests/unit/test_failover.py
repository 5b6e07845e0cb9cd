"""Failover, recovery, standby, sharing and recycling, against a worker that does what it is told."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from gateway.contract import ModelStatus
from gateway.errors import ModelError
from gateway.infer import crew as crew_module
from gateway.infer.breaker import Recovery
from gateway.infer.budget import Budget
from gateway.infer.candidate import Candidate
from gateway.infer.crew import Crew
from gateway.infer.engine import Engine
from tests.unit import engines
from tests.unit.engines import Events

MEDIA = "records;p:f:W"
CPU = Candidate(backend="fake", file="fake.onnx", precision="fp32")
QUICK = Recovery(first_s=0.05, most_s=0.05, passes=3, hold_s=0.02, calm_s=0)
NEVER = Recovery(first_s=600)
COMMAND = [sys.executable, "-P", "-m", "tests.unit.fake_worker"]


def running(**options: Any) -> AbstractAsyncContextManager[tuple[Engine, Events]]:
    return engines.running(Path("none.octo"), **{"command": [*COMMAND, "ok"], **options})


async def until(engine: Engine, true: Callable[[ModelStatus], object]) -> ModelStatus:
    while not true(status := engine.status()):
        await asyncio.sleep(0.002)
    return status


async def label(engine: Engine, data: bytes = b"=x") -> str:
    return (await engine.run(data, MEDIA)).result.label


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew_module, "_START_BACKOFF_S", 0.001)
    monkeypatch.setattr(crew_module, "_CRASH_BACKOFF_S", 0.001)


@pytest.fixture
def vpu(tmp_path: Path) -> Candidate:
    """A device whose faults are switched on by writing to the file that is its name."""
    return Candidate(backend="fake", file="fake.onnx", precision="int8", device=str(tmp_path / "vpu"))


@pytest.mark.parametrize("standby", [False, True])
@pytest.mark.parametrize("fault", ["raise", "hang", "die", "wrong"])
def test_the_work_goes_on_elsewhere_and_comes_back(vpu: Candidate, fault: str, standby: bool) -> None:
    async def main() -> None:
        async with running(candidates=(vpu, CPU), recovery=QUICK, deadline_s=0.3, standby=standby) as (engine, events):
            assert (await engine.run(b"=a", MEDIA)).backend == str(vpu)
            if standby:
                assert (await until(engine, lambda s: s.standby)).standby == str(CPU)
            Path(vpu.device).write_text(fault)
            answers = await asyncio.gather(*(engine.run(b"=%d" % i, MEDIA) for i in range(20)))
            assert [a.result.label for a in answers] == [str(i) for i in range(20)]
            assert {a.backend for a in answers} == {str(CPU)}
            message = await events.seen("model.failover", "raised")
            assert f"{vpu} failed, {CPU} took over" in message
            status = engine.status()
            assert status.failed_over and status.breakers[0].state == "open"
            failover = events.details[events.names().index(("model.failover", "raised"))]
            assert (failover["from"], failover["to"]) == (str(vpu), str(CPU)) and failover["why"] in message
            Path(vpu.device).unlink()
            await events.seen("model.failover", "cleared")
            assert (await engine.run(b"=b", MEDIA)).backend == str(vpu)
            assert not engine.status().failed_over and engine.status().breakers[0].state == "closed"
            assert events.names().count(("model.failover", "raised")) == 1

    asyncio.run(main())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_signalled_worker_hands_over_to_the_standby(vpu: Candidate, number: signal.Signals) -> None:
    async def main() -> None:
        async with running(candidates=(vpu, CPU), recovery=NEVER, deadline_s=0.3, standby=True) as (engine, _):
            await label(engine)
            await until(engine, lambda s: s.standby)
            os.kill(engine.status().pid, number)
            answers = await asyncio.gather(*(engine.run(b"=%d" % i, MEDIA) for i in range(50)))
            assert [a.result.label for a in answers] == [str(i) for i in range(50)]
            assert answers[-1].backend == str(CPU)
            # the next standby is the same once more: there is nobody else in order
            assert (await until(engine, lambda s: s.standby)).standby == str(CPU)

    asyncio.run(main())


def test_a_device_that_is_not_there_at_the_start_is_taken_when_it_comes(vpu: Candidate) -> None:
    async def main() -> None:
        Path(vpu.device).write_text("dead")
        async with running(candidates=(vpu, CPU), recovery=QUICK) as (engine, events):
            assert (await engine.run(b"=a", MEDIA)).backend == str(CPU)
            assert "no such device" in await events.seen("model.failover", "raised")
            Path(vpu.device).unlink()
            await events.seen("model.failover", "cleared")
            assert (await engine.run(b"=a", MEDIA)).backend == str(vpu)

    asyncio.run(main())


def test_a_driver_that_crashes_while_loading_does_not_stop_the_model(vpu: Candidate) -> None:
    async def main() -> None:
        Path(vpu.device).write_text("crash")
        async with running(candidates=(vpu, CPU), recovery=NEVER) as (engine, events):
            assert (await engine.run(b"=a", MEDIA)).backend == str(CPU)
            assert "a driver crashed" in await events.seen("model.failover", "raised")
            assert ("model.failed", "raised") not in events.names()

    asyncio.run(main())


def test_an_input_that_ends_every_worker_is_blamed_and_not_the_devices(vpu: Candidate) -> None:
    async def main() -> None:
        async with running(candidates=(vpu, CPU), recovery=NEVER) as (engine, _):
            with pytest.raises(ModelError, match="one input ended 3 workers"):
                await engine.run(b"die", MEDIA)
            await until(engine, lambda s: s.backend == str(vpu) and s.state == "ready")
            assert [b.state for b in engine.status().breakers] == ["closed", "closed"]
            assert await label(engine, b"=on") == "on"

    asyncio.run(main())


def test_a_new_ranking_is_served_without_a_pause(vpu: Candidate) -> None:
    async def main() -> None:
        async with running(candidates=(CPU,)) as (engine, events), asyncio.TaskGroup() as group:
            await label(engine)
            backends: list[str] = []

            async def feed() -> None:
                while backends[-3:] != [str(vpu)] * 3:
                    backends.append((await engine.run(b"=x", MEDIA)).backend)

            group.create_task(feed(), name="feed")
            engine.prefer((vpu, CPU))
            await until(engine, lambda s: s.backend == str(vpu))
            assert events.all == [] and engine.status().restarts == 0

    asyncio.run(main())


def test_several_workers_share_the_work() -> None:
    async def main() -> None:
        async with running(workers=3) as (engine, _):
            await until(engine, lambda s: s.workers == 3)
            pids = {await label(engine, b"pid")}
            pids.update(await asyncio.gather(*(label(engine, b"pid") for _ in range(60))))
            assert len(pids) == 3

    asyncio.run(main())


def test_waiting_jobs_of_a_micro_model_travel_together_and_after_a_fault_alone() -> None:
    async def main() -> None:
        async with running() as (engine, _):
            assert await label(engine, b"batch") == "1"
            sizes = await asyncio.gather(*(label(engine, b"batch") for _ in range(70)))
            assert sizes[:2] == ["1", "32"] and set(sizes[1:65]) == {"32"} and sizes[65:] == ["5"] * 5
            jobs = [label(engine, data) for data in (b"=a", b"batch", b"die", b"batch", b"=b")]
            one, two, died, three, four = await asyncio.gather(*jobs, return_exceptions=True)
            assert (one, four) == ("a", "b") and isinstance(died, ModelError)
            assert two in ("1", "4") and three == "1"

    asyncio.run(main())


def test_a_grown_worker_is_replaced_without_losing_a_job() -> None:
    async def main() -> None:
        async with running() as (engine, events):
            before = await label(engine, b"pid")
            jobs = [b"grow", *[b"=%d" % i for i in range(300)]]
            answers = await asyncio.gather(*(engine.run(job, MEDIA) for job in jobs))
            assert [a.result.label for a in answers[1:]] == [str(i) for i in range(300)]
            assert "grew to 5000 MiB, 1000 are allowed" in await events.seen("model.recycled", "point")
            assert await label(engine, b"pid") != before
            assert events.names() == [("model.recycled", "point")] and engine.status().restarts == 0

    asyncio.run(main())


def shared(events: Events, *names: str, crew: Crew, **options: Any) -> list[Engine]:
    options = {"notify": events, "crew": crew, "deadline_s": 5, "allow_unsigned": True, **options}
    return [Engine(name, Path(name), **options) for name in names]


def test_models_share_a_worker_and_one_that_cannot_be_loaded_does_not_stop_the_other() -> None:
    async def main() -> None:
        events = Events()
        good, bad, third = shared(events, "good", "broken", "third", crew=Crew(command=[*COMMAND, "ok"]))
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(engine.supervise(), name=engine.name) for engine in (good, bad, third)]
            pids = await asyncio.gather(*(label(e, b"pid") for e in (good, third) for _ in range(20)))
            assert len(set(pids)) == 1
            with pytest.raises(ModelError, match="not a usable bundle"):
                await bad.run(b"=a", MEDIA)
            assert (good.status().state, bad.status().state) == ("ready", "failed")
            for task in tasks:
                task.cancel()

    asyncio.run(main())


def test_a_device_that_fails_for_one_model_leaves_the_other_in_service(vpu: Candidate) -> None:
    async def main() -> None:
        events = Events()
        crew = Crew(command=[*COMMAND, "ok"], recovery=NEVER)
        (one,) = shared(events, "one", crew=crew, candidates=(vpu, CPU))
        (other,) = shared(events, "other", crew=crew)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(engine.supervise(), name=engine.name) for engine in (one, other)]
            await label(one)
            Path(vpu.device).write_text("raise")
            jobs = [label(engine, b"=%d" % i) for i in range(40) for engine in (one, other)]
            assert await asyncio.gather(*jobs) == [str(i) for i in range(40) for _ in range(2)]
            assert one.status().backend == str(CPU)
            assert ("model.restarted", "point") not in events.names(), "the worker lived until another was ready"
            for task in tasks:
                task.cancel()

    asyncio.run(main())


def test_priority_decides_when_there_is_one_processor() -> None:
    async def main() -> None:
        budget, order = Budget(cpus=1), []
        low, high = (
            Engine(name, Path(name), notify=Events(), deadline_s=5, allow_unsigned=True, budget=budget,
                   priority=priority, command=[*COMMAND, "ok"])
            for name, priority in (("low", 0), ("high", 1))
        )  # fmt: skip

        async def run(engine: Engine) -> None:
            await label(engine)
            order.append(engine.name)

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(engine.supervise(), name=engine.name) for engine in (low, high)]
            await asyncio.gather(label(low), label(high))
            low.micro = high.micro = False  # one job at a time
            await asyncio.gather(*(run(engine) for engine in [low] * 10 + [high] * 10))
            assert order == ["low", *["high"] * 10, *["low"] * 9]
            for task in tasks:
                task.cancel()

    asyncio.run(main())


def test_the_bundles_deadline_holds_when_the_config_names_none() -> None:
    async def main() -> None:
        async with running(deadline_s=0) as (engine, _):
            with pytest.raises(ModelError, match=r"no answer in 0\.3 s"):
                await engine.run(b"hang", MEDIA)

    asyncio.run(main())
