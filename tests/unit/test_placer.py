"""The daemon's measuring in idle time: what starts it, stops it, ends it, and what comes of each end."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.app import App
from gateway.child import python_env
from gateway.clock import Clock
from gateway.config import Config
from gateway.contract import BatchKind, ModelStatus, Severity
from gateway.infer import placer, ranking
from gateway.infer.candidate import Candidate
from gateway.infer.order import Order
from gateway.infer.placer import Load, Placer
from gateway.inference import Models
from gateway.taps import Taps
from tests.unit.test_ranking import GOOD, LITERT, ONNX, measured, placement

CALM, BUSY = Load(0.0, 0.0, 0.0), Load(0.0, 0.9, 0.0)


class Engine:
    """Takes rankings, and tells when."""

    def __init__(self) -> None:
        self.preferred: asyncio.Queue[tuple[Candidate, ...]] = asyncio.Queue()

    def prefer(self, candidates: Sequence[Candidate]) -> None:
        self.preferred.put_nowait(tuple(candidates))

    def status(self) -> ModelStatus:
        return ModelStatus("m", "ready", str(ONNX), "", False, 0, 0, 0, 0.0, 0.0)


class Bench:
    """A placer whose load is dictated, one look at a time, and whose measuring process is a few lines."""

    def __init__(self, folder: Path, code: str, look: placer.Look | None = None) -> None:
        self.folder = folder
        self.looks: asyncio.Queue[Load] = asyncio.Queue()
        self.engine = Engine()
        self.events: asyncio.Queue[tuple[str, str, dict[str, Any]]] = asyncio.Queue()
        order = Order(name="m", bundle="none.octo", cache=str(folder / "m.json"))
        preamble = f"import os, pathlib, signal, sys, time; folder = pathlib.Path({str(folder)!r})\n"
        self.placer = Placer(
            {"m": order},
            {"m": self.engine},
            self.notify,
            command=[sys.executable, "-c", preamble + code],
            look=look or self.looks.get,
        )

    def notify(self, origin: str, name: str, state: str, severity: Severity, message: str, **detail: Any) -> None:
        assert (origin, state) == ("m", "point")
        self.events.put_nowait((name, message, detail))

    def feed(self, load: Load, n: int = 1) -> None:
        for _ in range(n):
            self.looks.put_nowait(load)

    async def started(self) -> int:
        """The pid of the measuring process, which writes it into a file."""
        return int(await until(lambda: _text(self.folder / "pid")))


async def until(seen: Callable[[], Any]) -> Any:
    """What others do to files and processes has no event: looked at often."""
    while not (value := seen()):
        await asyncio.sleep(0.005)
    return value


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def process_state(pid: int) -> str:
    """R, S, T ...; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


SAY_PID = "part = folder / 'part'; part.write_text(str(os.getpid())); part.rename(folder / 'pid')\n"
COUNT = "log = (folder / 'runs').open('a'); log.write('.'); log.close()\n"


@asynccontextmanager
async def running(folder: Path, code: str, look: placer.Look | None = None) -> AsyncIterator[Bench]:
    bench = Bench(folder, code, look)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(bench.placer.run(), name="placer")
        yield bench
        task.cancel()


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(30):
            await scenario()

    asyncio.run(main())


def test_it_starts_after_a_calm_and_the_ranking_is_used_and_told(tmp_path: Path) -> None:
    async def scenario() -> None:
        ranking.save(tmp_path / "m.json", GOOD)
        async with running(tmp_path, SAY_PID) as bench:
            bench.feed(CALM, placer.CALM - 1)
            bench.feed(BUSY)
            bench.feed(CALM, placer.CALM - 1)
            await until(bench.looks.empty)
            assert not (tmp_path / "pid").exists()
            bench.feed(CALM)
            assert await bench.engine.preferred.get() == GOOD.ranking
            name, message, detail = await bench.events.get()
            assert name == "model.placed"
            assert "onnx fp32 x1 (model.onnx) -> litert fp32 x1 (model.tflite), 2 times better by latency" in message
            assert detail["ratio"] == 2.0 and detail["to"] == "litert fp32 x1 (model.tflite)"

    run(scenario)


def test_a_choice_that_stays_is_no_event_and_a_request_measures_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        ranking.save(tmp_path / "m.json", placement(measured(ONNX, 10), measured(LITERT, 50)))
        async with running(tmp_path, COUNT) as bench:
            for _ in range(2):
                bench.feed(CALM, placer.CALM)
                assert (await bench.engine.preferred.get())[0] == ONNX
                bench.placer.request("m")
                bench.placer.request("m")
            assert bench.events.empty() and _text(tmp_path / "runs") == ".."

    run(scenario)


async def always_calm() -> Load:
    await asyncio.sleep(0.001)
    return CALM


@pytest.mark.parametrize(
    ("code", "why", "runs"),
    [
        ("print('noise', file=sys.stderr); sys.exit('no candidate runs here')", "no candidate runs here", 1),
        ("sys.exit(7)", "exit status 7", 1),
        ("os.kill(os.getpid(), signal.SIGKILL)", "ended by SIGKILL", placer.ATTEMPTS),
        ("os.kill(os.getpid(), 40)", "ended by signal 40", placer.ATTEMPTS),
    ],
)
def test_a_measurement_that_fails_is_told_and_nothing_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, why: str, runs: int
) -> None:
    monkeypatch.setattr(placer, "LONGEST", 1_000_000)

    async def scenario() -> None:
        async with running(tmp_path, COUNT + code, always_calm) as bench:
            name, message, _ = await bench.events.get()
            assert name == "model.unplaced" and "goes on as it is" in message and why in message
            assert bench.engine.preferred.empty() and len(_text(tmp_path / "runs")) == runs

    run(scenario)


def test_what_is_remembered_and_still_holds_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placer, "LONGEST", 1_000_000)

    async def scenario() -> None:
        ranking.save(tmp_path / "m.json", GOOD)
        async with running(tmp_path, COUNT + "sys.exit(3)", always_calm) as bench:
            await until(lambda: _text(tmp_path / "runs"))
            bench.placer.request("m")
            await until(lambda: len(_text(tmp_path / "runs")) == 2)  # the first is over
            assert bench.engine.preferred.empty() and bench.events.empty()

    run(scenario)


WAITS = SAY_PID + COUNT + "while not (folder / 'go').exists(): time.sleep(0.01)\n"


def test_it_is_stopped_while_something_is_going_on_and_continued_after(tmp_path: Path) -> None:
    async def scenario() -> None:
        ranking.save(tmp_path / "m.json", GOOD)
        async with running(tmp_path, WAITS) as bench:
            bench.feed(CALM, placer.CALM)
            pid = await bench.started()
            assert os.getpriority(os.PRIO_PROCESS, pid) == 19
            for _ in range(2):
                bench.feed(BUSY)
                await until(lambda: process_state(pid) == "T")
                bench.feed(CALM, placer.RESUME - 1)
                await until(bench.looks.empty)
                assert process_state(pid) == "T"
                bench.feed(CALM)
                await until(lambda: process_state(pid) in "RS")
            (tmp_path / "go").touch()
            assert await bench.engine.preferred.get() == GOOD.ranking

    run(scenario)


def test_it_is_given_up_when_it_stays_busy_and_waits_longer_then(tmp_path: Path) -> None:
    async def scenario() -> None:
        ranking.save(tmp_path / "m.json", GOOD)
        async with running(tmp_path, WAITS) as bench:
            bench.feed(CALM, placer.CALM)
            pid = await bench.started()
            bench.feed(BUSY, 1 + placer.GIVE_UP)
            await until(lambda: not process_state(pid))
            (tmp_path / "pid").unlink()
            (tmp_path / "go").touch()
            bench.feed(CALM, 2 * placer.CALM - 1)
            await until(bench.looks.empty)
            assert not (tmp_path / "pid").exists() and bench.engine.preferred.empty()
            bench.feed(CALM)
            assert await bench.engine.preferred.get() == GOOD.ranking

    run(scenario)


def test_the_end_of_the_daemon_ends_a_measurement_even_a_stopped_one(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, WAITS) as bench:
            bench.feed(CALM, placer.CALM)
            pid = await bench.started()
            bench.feed(BUSY)
            await until(lambda: process_state(pid) == "T")
        assert process_state(pid) == ""

    run(scenario)


def test_the_load_of_this_process_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        monkeypatch.setattr(placer, "LOOK_S", 0.05)
        load = await placer.Watch({"m": Engine()}).look()
        assert load.lag_s >= 0 and 0 <= load.others <= 1 and load.models == 0
        assert Load(placer.LAG_S, placer.SHARE, placer.SHARE).calm
        assert not any(load.calm for load in (Load(0.06, 0, 0), Load(0, 0.6, 0), Load(0, 0, 0.6)))

    run(scenario)


class Busy(Engine):
    def __init__(self) -> None:
        super().__init__()
        self.runs = 0

    def status(self) -> ModelStatus:
        self.runs += 1000
        return ModelStatus("m", "ready", str(ONNX), "", False, 0, self.runs, 0, 5.0, 5.0)


def test_a_model_at_work_is_no_calm(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        monkeypatch.setattr(placer, "LOOK_S", 0.01)
        load = await placer.Watch({"m": Busy()}).look()
        assert load.models > placer.SHARE and not load.calm

    run(scenario)


def test_the_lowest_priority_is_what_nobody_else_wants() -> None:
    code = (
        "import os; from gateway.infer import timing; timing.lowest_priority(); "
        "print(os.sched_getscheduler(0) == os.SCHED_IDLE, os.getpriority(os.PRIO_PROCESS, 0))"
    )
    done = subprocess.run([sys.executable, "-c", code], env=python_env(), capture_output=True, check=True, text=True)
    assert done.stdout.split() == ["True", "19"]


class Rows:
    """Takes what would be stored."""

    def append_row(self, stream: str, kind: BatchKind, row: bytes) -> asyncio.Future[None]:
        return asyncio.get_running_loop().create_future()


def test_a_failover_has_its_model_looked_at_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        config = msgspec.convert({"gateway": {"id": "test", "data_dir": "data"}, "base": str(tmp_path)}, Config)
        app = App(config, Clock(), Taps(config))
        app.spool = Rows()  # type: ignore[assignment]
        orders = {"m": Order(name="m", bundle="none.octo")}
        models = Models(config, app.announce)
        models._placer = Placer(orders, {"m": Engine()}, app.notify)
        models._placer._due.clear()
        models._engine_says("m", "model.restarted", "point", Severity.WARNING, "its worker ended")
        assert list(models._placer._due) == []
        models._engine_says("m", "model.failover", "raised", Severity.WARNING, "its device is gone")
        assert list(models._placer._due) == ["m"]

    run(scenario)
