"""Placement with real runtimes: right ones are ranked, wrong, hanging and crashing ones have their reason; any step of
it may be the last.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.child import python_env, python_module
from gateway.infer import place, ranking
from gateway.infer.candidate import Candidate
from gateway.infer.manifest import Variant
from gateway.infer.order import Order
from gateway.infer.placer import Load, Placer
from gateway.infer.ranking import Measured, Placement
from sdk.bundle import pack
from tests.integration.harness import MODELS, ROOT, Daemon, until
from tests.unit import bundles
from tests.unit.test_placer import Engine, always_calm

PARTS = tuple(python_module("tests.integration.place_parts"))
HANG = struct.pack("<f", bundles.HANG)


def hanging(turns: float) -> bytes:
    """The tiny model, counting to `turns` at every input."""
    return bundles.onnx_model().replace(HANG, struct.pack("<f", -turns))


def variant(file: str) -> Variant:
    return Variant(file=file, format="tflite" if file.endswith("tflite") else "onnx", precision="fp32")


def make(path: Path, **models: bytes) -> Path:
    """A bundle with these models, the first preferred by its author."""
    members = {name.replace("_", "."): data for name, data in models.items()}
    files = bundles.files(**members)
    if "model.onnx" not in members:
        del files["model.onnx"]
    pack(path, bundles.manifest(variants=tuple(map(variant, members))), files)
    return path


def order(folder: Path, bundle: Path, **more: Any) -> Order:
    base = Order(
        name="tiny", bundle=str(bundle), allow_unsigned=True, cache=str(folder / "placement" / "tiny.json"),
        cpus=1, deadline_s=5.0, seconds=0.2, patience_s=20.0, parent=os.getpid(),
    )  # fmt: skip
    return msgspec.structs.replace(base, **more)


def by_file(placement: Placement, backend: str = "onnx") -> dict[str, Measured]:
    return {m.candidate.file: m for m in placement.measured if m.candidate.backend == backend}


def measure(what: Order, *, again: bool = False) -> tuple[Placement, bool]:
    return asyncio.run(place.place(what, lambda done, total, what: None, again=again))


@pytest.mark.timeout(180)
def test_wrong_hanging_and_crashing_candidates_have_their_reason(tmp_path: Path) -> None:
    wrong = bundles.onnx_model().replace(bundles.weights(8).tobytes(), (2 * bundles.weights(8)).tobytes())
    bundle = make(
        tmp_path / "a.octo",
        crash_onnx=bundles.onnx_model(),
        wrong_onnx=wrong,
        hang_onnx=hanging(1e15),
        garbage_onnx=b"\x08garbage",
        model_tflite=bundles.tflite_model(),
        model_onnx=bundles.onnx_model(),
    )
    what = order(tmp_path, bundle, backend="onnx", patience_s=6.0, worker=(*PARTS, "worker"))
    placement, fresh = measure(what)
    lines = by_file(placement)
    assert fresh and set(lines) == {"crash.onnx", "wrong.onnx", "hang.onnx", "garbage.onnx", "model.onnx"}
    assert "SIGSEGV" in lines["crash.onnx"].rejected
    assert lines["wrong.onnx"].rejected.startswith("golden sample golden/0 is off by 6, fp32 may be off by 0.0001")
    assert "timed out after 6 s" in lines["hang.onnx"].rejected or "no answer in 6 s" in lines["hang.onnx"].rejected
    assert "does not take it" in lines["garbage.onnx"].rejected
    good = lines["model.onnx"]
    assert good.final and good.figures and not good.rejected
    assert 0 < good.figures.p50_us <= good.figures.p99_us and good.figures.runs >= place.ROUNDS * 2
    assert good.figures.cpu_us > 0 and good.figures.pss > 10e6 and good.figures.per_s > 1
    assert placement.ranking == (good.candidate,) == (placement.before,)

    assert measure(what) == (placement, False)
    assert measure(msgspec.structs.replace(what, objective="energy", patience_s=6.0))[1]


@pytest.mark.timeout(120)
def test_a_damaged_memory_and_another_machine_are_measured_again(tmp_path: Path) -> None:
    what = order(tmp_path, make(tmp_path / "a.octo", model_onnx=bundles.onnx_model()), backend="onnx")
    first, _ = measure(what)
    cache = Path(what.cache)
    cache.write_bytes(cache.read_bytes()[:-9])
    assert measure(what)[1]
    other = msgspec.structs.replace(first, key=msgspec.structs.replace(first.key, versions=("onnxruntime 0.1",)))
    ranking.save(cache, other)
    assert measure(what)[1]
    assert not measure(what)[1]
    make(tmp_path / "a.octo", model_onnx=bundles.onnx_model() + b"\x32\x00")  # an empty doc_string: another digest
    assert measure(what)[1]


def test_slower_than_its_deadline_is_rejected(tmp_path: Path) -> None:
    bundle = make(tmp_path / "a.octo", model_onnx=hanging(20_000))
    placement, _ = measure(order(tmp_path, bundle, backend="onnx", deadline_s=0.001))
    assert placement.ranking == ()
    assert re.fullmatch(r"takes \d+ ms, the model's deadline is 1 ms", placement.measured[0].rejected)
    assert not Path(tmp_path / "placement").exists()


STOPPED_S = 4.0  # longer than any deadline of the measurement


@pytest.mark.timeout(240)
def test_what_was_timed_while_it_was_stopped_does_not_count(tmp_path: Path) -> None:
    """Stopped for longer than the model's deadline, with a job in hand and while a worker loads."""
    bundle = make(tmp_path / "a.octo", model_onnx=hanging(20_000))
    what = order(tmp_path, bundle, backend="onnx", deadline_s=1.0, seconds=2.0)

    async def main() -> None:
        steps = tmp_path / "steps"
        process = await asyncio.create_subprocess_exec(
            *PARTS, "tell", str(steps), msgspec.json.encode(what).decode(), env=python_env(), cwd=ROOT
        )
        try:
            for step in ("try onnx", "round 3"):
                await until(lambda: steps.exists() and step in steps.read_text(), step, 90)  # noqa: B023
                process.send_signal(signal.SIGSTOP)
                await asyncio.sleep(STOPPED_S)  # what is tested: that this much is not in the figures
                process.send_signal(signal.SIGCONT)
            assert await process.wait() == place.MEASURED
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    asyncio.run(main())
    placement = ranking.load(Path(what.cache))
    assert placement is not None and placement.measured[0].rejected == ""
    figures = placement.measured[0].figures
    assert figures is not None and figures.p99_us < STOPPED_S * 1e6


@pytest.mark.timeout(400)
def test_a_kill_at_any_step_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    """Every step of a measurement of two candidates: from asking for devices to the result's rename."""
    bundle = make(tmp_path / "a.octo", model_onnx=bundles.onnx_model(), model_tflite=bundles.tflite_model())
    what = order(tmp_path, bundle, seconds=0.05)
    steps = tmp_path / "steps"
    argument = msgspec.json.encode(what).decode()
    subprocess.run([*PARTS, "tell", str(steps), argument], env=python_env(), check=True, cwd=ROOT)
    old = ranking.load(Path(what.cache))
    assert old is not None
    other = msgspec.structs.replace(old, key=msgspec.structs.replace(old.key, cpu="another"))
    count = len(steps.read_text().splitlines())
    # asking for devices, trying the second candidate, in the rounds, and both sides of the rename
    for step in (1, 3, count // 2, -2, -1):
        ranking.save(Path(what.cache), other)
        command = [*PARTS, "cut", str(tmp_path / f"counter{step}"), str(step), argument]
        ended = subprocess.run(command, env=python_env(), check=False, cwd=ROOT)
        assert ended.returncode == -signal.SIGKILL, step
        kept = ranking.load(Path(what.cache))
        assert kept is not None and (kept == other) == (step != -1), step
    ranking.save(Path(what.cache), other)
    assert measure(what)[1]


@pytest.mark.timeout(200)
def test_the_placer_survives_kills_and_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process is killed at the first step, then at the second; the third attempt is killed at none that it has."""
    bundle = make(tmp_path / "a.octo", slow_onnx=hanging(20_000), model_onnx=bundles.onnx_model())
    what = order(tmp_path, bundle, backend="onnx")
    engine, events = Engine(), []
    monkeypatch.setattr("gateway.infer.placer.CALM", 1)
    monkeypatch.setattr("gateway.infer.placer.LONGEST", 1_000_000)

    async def look() -> Load:
        return await always_calm()

    async def main() -> tuple[Candidate, ...]:
        # the counter makes the steps 1, 2 and 3; only with ten candidates more would there be so many
        command = [*PARTS, "cut", str(tmp_path / "counter"), "1"]
        placer = Placer(
            {"tiny": what}, {"tiny": engine}, lambda *a, **d: events.append((a, d)), command=command, look=look
        )
        async with asyncio.TaskGroup() as group:
            task = group.create_task(placer.run(), name="placer")
            await until(lambda: bool(events), "given up after three kills")
            (tmp_path / "counter").write_bytes(b"." * 1000)
            placer.request("tiny")
            async with asyncio.timeout(90):
                found = await engine.preferred.get()
            task.cancel()
        return found

    found = asyncio.run(main())
    assert [c.file for c in found] == ["model.onnx", "slow.onnx"]
    (unplaced, _), (placed, detail) = events
    assert unplaced[1] == "model.unplaced" and "ended by SIGKILL" in unplaced[4]
    assert placed[1] == "model.placed" and detail["from"] == "onnx fp32 x1 (slow.onnx)" and detail["ratio"] > 2


CONFIG = """
[gateway]
id = "test"
data_dir = "data"
[trust]
allow_unsigned = true
[[model]]
name = "tiny"
bundle = "a.octo"
backend = "onnx"
threads = 1
deadline_ms = 5000
"""


class AnyTimeDaemon(Daemon):
    """Takes any load for calm: on the machines that run tests there is none."""

    async def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *PARTS, "daemon", "run", "--config", str(self.config), stderr=log, cwd=ROOT, env=python_env()
            )


@pytest.mark.timeout(200)
def test_the_daemon_places_its_model_in_idle_time_and_after_a_kill(tmp_path: Path) -> None:
    make(tmp_path / "a.octo", slow_onnx=hanging(20_000), model_onnx=bundles.onnx_model())
    cache = tmp_path / "data" / "placement" / "tiny.json"

    async def main() -> None:
        gateway = AnyTimeDaemon(tmp_path, CONFIG)
        await gateway.start()
        try:
            await gateway.until(lambda s: s.models[0].state == "ready", "runs at once, unmeasured")
            # killed in the middle of it
            assert gateway.process is not None
            pid = gateway.process.pid
            await until(lambda: bool(_measuring(pid)), "a measurement runs")
            measuring = _measuring(pid)
            await gateway.kill()
            await until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in measuring), "no orphan is left")
            assert not cache.exists()

            await gateway.start()
            first = await gateway.until(lambda s: s.models[0].pid > 0, "it runs unmeasured again")
            status = await gateway.until(lambda s: any(e.name == "model.placed" for e in s.events), "it is placed")
            event = next(e for e in status.events if e.name == "model.placed")
            assert event.detail["from"] == "onnx fp32 x1 (slow.onnx)"
            assert event.detail["to"] == "onnx fp32 x1 (model.onnx)" and event.detail["ratio"] > 2
            assert ranking.load(cache) is not None
            slow = first.models[0].pid
            chosen = await gateway.until(lambda s: s.models[0].pid not in (0, slow), "the chosen one serves")
            assert chosen.models[0].state == "ready"
            assert await gateway.end() == 0
        finally:
            if gateway.process is not None and gateway.process.returncode is None:
                await gateway.kill()

    asyncio.run(main())


def _measuring(daemon: int) -> list[int]:
    """The measuring processes of a daemon."""
    children = Path(f"/proc/{daemon}/task/{daemon}/children").read_text().split()
    return [int(pid) for pid in children if b"place_parts\0quick\0" in _command_line(int(pid))]


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def octogate(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gateway", *arguments],
        env=python_env(), cwd=ROOT, check=False, capture_output=True, text=True,
    )  # fmt: skip


@pytest.mark.timeout(200)
def test_the_command(tmp_path: Path) -> None:
    make(tmp_path / "a.octo", slow_onnx=hanging(20_000), model_onnx=bundles.onnx_model())
    bundle = str(make(tmp_path / "b.octo", model_onnx=bundles.onnx_model()))
    (tmp_path / "gateway.toml").write_text(CONFIG)
    config = ("--config", str(tmp_path / "gateway.toml"))
    cache = tmp_path / "data" / "placement" / "tiny.json"

    dry = octogate("bench", *config, "--seconds", "0.1", "--dry-run")
    assert dry.returncode == 3, dry.stderr
    assert "instead of onnx fp32 x1" in dry.stdout and not cache.exists()
    changed = octogate("bench", *config, "--seconds", "0.1", "--model", "tiny")
    assert (
        changed.returncode == 3 and f"remembered in {cache}; the gateway will use it when it starts" in changed.stdout
    )
    stays = octogate("bench", *config, "--seconds", "0.1", "tiny")
    assert stays.returncode == 0 and "tiny: stays onnx fp32 x1" in stays.stdout, stays.stdout + stays.stderr

    as_json = octogate("bench", bundle, "--seconds", "0.1", "--json", "--objective", "throughput")
    placement = msgspec.json.decode(as_json.stdout, type=dict[str, Placement])["tiny"]
    assert placement.key.objective == "throughput" and {m.candidate.backend for m in placement.measured} > {"onnx"}

    explained = json.loads(octogate("bench", "--explain", bundle, "--json").stdout)["tiny"]
    assert {line["candidate"]["backend"] for line in explained} == {"onnx", "openvino"}
    assert all(line["report"]["device"] == "CPU" for line in explained if line["candidate"]["backend"] == "onnx")
    text = octogate("bench", "--explain", bundle).stdout
    assert "what each runtime does with it" in text and "CPUExecutionProvider" in text


@pytest.mark.timeout(100)
def test_the_command_misused_or_without_a_candidate(tmp_path: Path) -> None:
    bundle = str(make(tmp_path / "a.octo", model_onnx=b"\x08garbage"))
    (tmp_path / "gateway.toml").write_text(CONFIG)
    config = ("--config", str(tmp_path / "gateway.toml"))
    nothing = octogate("bench", bundle, "--seconds", "0.1")
    assert nothing.returncode == 1 and "no candidate runs here" in nothing.stdout
    assert "does not take it" in nothing.stdout
    assert octogate("bench", bundle, "--explain").returncode == 1
    unknown = octogate("bench", "press", *config)
    assert unknown.returncode == 2 and "there is no model 'press' (there are: tiny; or a .octo file)" in unknown.stderr
    assert octogate("bench", bundle, "--seconds", "0").returncode == 2
    assert octogate("bench", str(tmp_path / "none.octo")).returncode == 1
    signed = octogate("bench", str(MODELS / "machine_state" / "machine_state.octo"), "--explain")
    assert signed.returncode == 0, signed.stderr
