"""Failover with a real runtime: a simulated device (OpenVINO's CPU plugin under a second name) that fails in each way."""

import asyncio
import contextlib
import os
from pathlib import Path

import pytest

from gateway.child import python_module
from gateway.errors import ModelError
from gateway.infer.breaker import Recovery
from gateway.infer.candidate import Candidate
from tests.unit import bundles
from tests.unit.engines import running

VPU = Candidate(backend="openvino", file="model.onnx", precision="fp32", device="VPU_CPU")
CPU = Candidate(backend="onnx", file="model.onnx", precision="fp32")
RECOVERY = Recovery(first_s=0.2, most_s=0.5, passes=2, hold_s=0.1, calm_s=0)


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("raise", "OpenVINO failed"),
        ("sleep", "no answer in 0.5 s, killed"),
        ("wrong", "golden sample golden/0 is off by"),
        ("vanish", "OpenVINO failed"),
    ],
)
def test_a_device_that_fails_hands_over_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, why: str
) -> None:
    switch = tmp_path / "switch"
    monkeypatch.setenv("OCTOGATE_TEST_SWITCH", str(switch))

    async def main() -> None:
        options = {"candidates": (VPU, CPU), "recovery": RECOVERY, "deadline_s": 0.5, "standby": True}
        command = python_module("tests.integration.vpu_worker")
        async with running(bundles.make(tmp_path / "a.octo"), command=command, recheck_s=0.0, **options) as (
            engine,
            events,
        ):
            assert (await engine.run(bundles.window(1), bundles.MEDIA)).backend == "openvino fp32 VPU_CPU x1"
            while not engine.status().standby:
                await asyncio.sleep(0.01)
            switch.write_text(fault)
            for i in range(30):
                answer = await engine.run(bundles.window(i + 1), bundles.MEDIA)
                # one answer may be wrong before the golden samples are looked at again
                right = answer.result.values["first"] == i + 1
                assert right or (fault == "wrong" and answer.backend.startswith("openvino"))
            assert answer.backend == "onnx fp32 x1"
            assert why in await events.seen("model.failover", "raised")
            switch.unlink()
            await events.seen("model.failover", "cleared")
            assert (await engine.run(bundles.window(1), bundles.MEDIA)).backend == "openvino fp32 VPU_CPU x1"

    asyncio.run(main())


def test_a_worker_in_service_finds_out_by_itself_that_it_computes_wrongly(tmp_path: Path) -> None:
    """Without a better candidate it is replaced by a fresh one, again and again, and says so."""
    switch = tmp_path / "switch"
    os.environ["OCTOGATE_TEST_SWITCH"] = str(switch)

    async def main() -> None:
        command = python_module("tests.integration.vpu_worker")
        async with running(bundles.make(tmp_path / "a.octo"), command=command, recheck_s=0.0, candidates=(VPU,)) as (
            engine,
            events,
        ):
            await engine.run(bundles.window(1), bundles.MEDIA)
            switch.write_text("wrong")
            with contextlib.suppress(ModelError):  # the look after the first answer may have found it already
                await engine.run(bundles.window(1), bundles.MEDIA)
            assert "golden sample" in await events.seen("model.restarted", "point")
            assert "no variant runs here" in await events.seen("model.failed", "raised")
            switch.unlink()
            await events.seen("model.failed", "cleared")

    try:
        asyncio.run(main())
    finally:
        del os.environ["OCTOGATE_TEST_SWITCH"]
