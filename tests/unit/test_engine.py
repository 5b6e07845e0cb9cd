"""The engine against a worker that does what it is told: order, deadlines, restarts, failure and its end, leaks."""

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import DeadlineError, ModelError
from gateway.infer import crew
from gateway.infer.engine import Answer, Engine
from tests.unit import engines
from tests.unit.engines import Events, Killer
from tests.unit.held import descriptors

MEDIA = "records;p:f:W"


def running(mode: str = "ok", **options: Any) -> AbstractAsyncContextManager[tuple[Engine, Events]]:
    command = [sys.executable, "-P", "-m", "tests.unit.fake_worker", mode]
    return engines.running(options.pop("bundle", Path("none.octo")), command=command, **options)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "_START_BACKOFF_S", 0.001)
    monkeypatch.setattr(crew, "_CRASH_BACKOFF_S", 0.001)


def test_answers_come_in_order_with_their_origin() -> None:
    async def main() -> None:
        async with running() as (engine, events):
            assert engine.status().state == "starting"
            answers = await asyncio.gather(*(engine.run(b"=%d" % i, MEDIA) for i in range(50)))
            assert [a.result.label for a in answers] == [str(i) for i in range(50)]
            assert (answers[0].backend, answers[0].bundle) == ("fake fp32 x1", "f" * 12)
            assert answers[0].took_us > 0
            status = engine.status()
            assert (status.state, status.runs, status.restarts) == ("ready", 50, 0)
            assert 0 < status.p50_ms <= status.p99_ms and not status.signed
            assert events.all == []

    asyncio.run(main())


def test_large_inputs_go_through_shared_memory() -> None:
    async def main() -> None:
        async with running(max_input=300_000) as (engine, _):
            for size in (32_000, 33_000, 300_000):
                assert (await engine.run(b"=" * size, MEDIA)).result.label == str(size)
            with pytest.raises(ModelError, match="300001 bytes, at most 300000"):
                await engine.run(b"=" * 300_001, MEDIA)

    asyncio.run(main())


def test_a_bad_input_is_refused_and_the_worker_lives_on() -> None:
    async def main() -> None:
        async with running() as (engine, events):
            pid = (await engine.run(b"=a", MEDIA), engine.status().pid)[1]
            with pytest.raises(ModelError, match=r"bad \(feed better\)"):
                await engine.run(b"bad", MEDIA)
            assert (await engine.run(b"=b", MEDIA)).result.label == "b"
            assert engine.status().pid == pid and events.all == []

    asyncio.run(main())


def test_a_dead_worker_is_replaced_and_its_job_redone(tmp_path: Path) -> None:
    async def main() -> None:
        async with running() as (engine, events):
            jobs = [b"=a", b"once %s" % os.fsencode(tmp_path / "1"), b"=b"]
            answers = await asyncio.gather(*(engine.run(job, MEDIA) for job in jobs))
            assert [a.result.label for a in answers] == ["a", jobs[1][1:].decode(), "b"]
            message = await events.seen("model.restarted", "point")
            assert "exit status 1: it hurts" in message
            assert engine.status().restarts == 1

    asyncio.run(main())


@pytest.mark.parametrize("job", [b"die", b"rude"])
def test_a_job_that_kills_every_worker_is_given_up(job: bytes) -> None:
    async def main() -> None:
        async with running() as (engine, events):
            poison, after = await asyncio.gather(
                engine.run(job, MEDIA), engine.run(b"=next", MEDIA), return_exceptions=True
            )
            assert isinstance(poison, ModelError) and "one input ended 3 workers" in str(poison)
            assert isinstance(after, Answer) and after.result.label == "next"
            assert len(events.all) == 3 and engine.status().state == "ready"

    asyncio.run(main())


def test_a_hanging_job_is_killed_at_its_deadline() -> None:
    async def main() -> None:
        async with running(deadline_s=0.3) as (engine, events):
            with pytest.raises(DeadlineError, match=r"no answer in 0\.3 s, killed"):
                await engine.run(b"hang", MEDIA)
            assert (await engine.run(b"=on", MEDIA)).result.label == "on"
            assert len(events.all) == 3

    asyncio.run(main())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGSTOP])
def test_a_signalled_worker_is_replaced(number: signal.Signals) -> None:
    async def main() -> None:
        async with running(deadline_s=0.3) as (engine, events):
            await engine.run(b"=a", MEDIA)
            os.kill(engine.status().pid, number)
            assert (await engine.run(b"=b", MEDIA)).result.label == "b"
            message = await events.seen("model.restarted", "point")
            assert ("no answer" if number is signal.SIGSTOP else number.name) in message

    asyncio.run(main())


def test_an_unusable_bundle_fails_with_its_reason_and_comes_back(tmp_path: Path) -> None:
    async def main() -> None:
        bundle = tmp_path / "late.octo"
        async with running("file", bundle=bundle) as (engine, events):
            with pytest.raises(ModelError, match="not a usable bundle"):
                await engine.run(b"=a", MEDIA)
            message = await events.seen("model.failed", "raised")
            assert message == "model 'tiny': not a usable bundle (pack it again)"
            with pytest.raises(ModelError, match="does not run: not a usable bundle"):
                await engine.run(b"=a", MEDIA)
            bundle.touch()
            await events.seen("model.failed", "cleared")
            assert (await engine.run(b"=a", MEDIA)).result.label == "a"
            assert events.names() == [("model.failed", "raised"), ("model.failed", "cleared")]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("mode", "limit", "why"),
    [("crash", 30.0, "exit status 1: the library said no"), ("mute", 0.2, "no answer in 0.2 s")],
)
def test_a_worker_that_never_becomes_ready_fails_the_model_once(mode: str, limit: float, why: str) -> None:
    async def main() -> None:
        async with running(mode, start_deadline_s=limit) as (engine, events):
            with pytest.raises(ModelError, match=why):
                await engine.run(b"=a", MEDIA)
            assert len(events.all) == 1 and engine.status().state == "failed"
            assert why in engine.status().detail

    asyncio.run(main())


def test_a_program_that_cannot_start_fails_the_model() -> None:
    async def main() -> None:
        async with engines.running(Path("x"), command=["/nonexistent/worker"]) as (engine, _):
            with pytest.raises(ModelError, match="cannot start the worker"):
                await engine.run(b"=a", MEDIA)

    asyncio.run(main())


def test_a_cancelled_caller_takes_nobody_along() -> None:
    async def main() -> None:
        async with running() as (engine, _), asyncio.TaskGroup() as group:
            waiting = [group.create_task(engine.run(b"=%d" % i, MEDIA)) for i in range(4)]
            await asyncio.sleep(0)
            waiting[0].cancel()
            waiting[2].cancel()
            assert [(await waiting[i]).result.label for i in (1, 3)] == ["1", "3"]

    asyncio.run(main())


def test_stopping_fails_who_waits_and_leaves_nothing_behind() -> None:
    async def main() -> None:
        async with running() as (engine, _):
            await engine.run(b"=a", MEDIA)
        before = descriptors()
        async with running() as (engine, _):
            await engine.run(b"=a", MEDIA)
            kill = Killer(engine)
            for _ in range(50):
                await kill()
                await engine.run(b"=a", MEDIA)
            pid = engine.status().pid
            waiting = asyncio.gather(engine.run(b"hang", MEDIA), return_exceptions=True)
            await asyncio.sleep(0)
        (outcome,) = await waiting
        assert isinstance(outcome, ModelError) and "stopping" in str(outcome)
        assert descriptors() == before
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

    asyncio.run(main())


def test_the_engine_stays_light() -> None:
    code = "import sys, gateway.infer.engine; print(' '.join(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    heavy = {"numpy", "onnxruntime", "ai_edge_litert", "cv2", "cryptography", "multiprocessing", "_hashlib", "zipfile"}
    assert not loaded & heavy
