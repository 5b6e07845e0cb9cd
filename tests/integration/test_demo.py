"""The demo as a user starts it, and its end by Ctrl-C."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.integration.harness import ROOT, free_port


async def demo(folder: Path, *args: str) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sdk.demo", "--folder", str(folder / "demo"), "--port", str(free_port()), *args),
        stdout=pipe,
        stderr=pipe,
        cwd=ROOT,
    )


def children(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def assert_whole(result: dict[str, Any]) -> None:
    assert result["sent"] == result["stored"] == result["delivered"]
    assert (result["lost"], result["duplicated"], result["reordered"]) == (0, 0, 0)
    assert result["events_delivered"] == result["events"] > 0  # the last word, too
    assert result["ok"]


@pytest.mark.timeout(120)
def test_twenty_seconds_with_an_outage_lose_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        process = await demo(tmp_path, "--seconds", "20", "--plain")
        out, err = await process.communicate()
        said = err.decode()
        assert process.returncode == 0, said
        result = json.loads(out.decode().splitlines()[-1])
        assert_whole(result)
        assert result["sent"] >= 200 * 20 * 0.9
        assert 4.5 <= result["outage_s"] <= 12
        assert result["inferences"] >= 40
        assert result["inferences_delivered"] >= result["inferences"] - 3
        assert result["events"] >= 5
        assert result["gateway_status"] == 0
        assert set(result["models_ms"]) == {"machine-state", "detect"}
        assert "the broker is away" in said
        assert "the meter 'oven' is dead" in said and "the node is unplugged" in said
        log = (tmp_path / "demo" / "gateway.log").read_text()
        for name in ("device.silent", "source.lost"):
            assert f"{name} raised: " in log and f"{name} cleared: " in log
        assert said.count(" sent ") >= 18  # a line a second

    asyncio.run(scenario())


@pytest.mark.timeout(120)
def test_ctrl_c_in_the_outage_still_delivers_everything_and_leaves_no_process(tmp_path: Path) -> None:
    async def scenario() -> None:
        process = await demo(tmp_path, "--seconds", "30", "--plain")
        assert process.stderr is not None
        assert process.stdout is not None
        async for line in process.stderr:
            if b"the broker is away" in line:
                break
        started = children(process.pid)
        assert len(started) >= 5  # node, broker, gateway, its panel and two workers
        process.send_signal(signal.SIGINT)
        out, err = await asyncio.gather(process.stdout.read(), process.stderr.read())
        assert await process.wait() == 0, err.decode()
        assert_whole(json.loads(out.decode().splitlines()[-1]))
        _, alive = await asyncio.to_thread(psutil.wait_procs, started, 3)
        assert [child.cmdline() for child in alive] == []

    asyncio.run(scenario())


@pytest.mark.timeout(60)
def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    async def scenario() -> None:
        (tmp_path / "demo").mkdir()
        (tmp_path / "demo" / "thesis.txt").write_text("mine")
        process = await demo(tmp_path, "--seconds", "5", "--plain")
        _, err = await process.communicate()
        assert process.returncode == 1
        assert "holds something else than a demo" in err.decode()
        assert (tmp_path / "demo" / "thesis.txt").read_text() == "mine"

    asyncio.run(scenario())
