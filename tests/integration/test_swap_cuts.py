"""Swaps in the daemon: by the command line, over restarts, and with the power cut before every step."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from gateway.child import python_env
from gateway.command import Answer, ModelSwap
from gateway.control import Client
from gateway.errors import ControlError
from gateway.infer.shelf import sha256_of
from tests.integration.harness import ROOT, Daemon
from tests.integration.test_swap import doubled, make

CONFIG = """
[gateway]
id = "test"
data_dir = "data"
[trust]
allow_unsigned = true
[inference]
standby_mib = 2048
[[model]]
name = "tiny"
bundle = "a.octo"
backend = "onnx"
threads = 1
deadline_ms = 5000
"""
ENDS = {"settled": "model.swapped", "given up": "model.swap_failed", "rolled back": "model.rolled_back"}


class Parts(Daemon):
    """octogate by way of `swap_parts`, with its arguments."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        super().__init__(folder, CONFIG)
        self.arguments = arguments

    async def start(self) -> None:
        module = "tests.integration.swap_parts" if self.arguments else "gateway"
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", module, *self.arguments, "run", "--config", str(self.config)),
                stderr=log, cwd=ROOT, env=python_env(),
            )  # fmt: skip

    async def close(self) -> None:
        if self.process is not None and self.process.returncode is None:
            await self.kill()

    async def serving(self) -> str:
        status = await self.until(lambda s: s.models[0].state == "ready", "the model is ready")
        return status.models[0].bundle

    async def model(self) -> ModelSwap:
        async with Client.connect(self.folder / "data" / "control.sock") as client:
            (model,) = await client.ask("models", tuple[ModelSwap, ...])
            return model

    async def ask(self, op: str, **args: Any) -> Answer:
        async with Client.connect(self.folder / "data" / "control.sock") as client:
            return await client.ask("command", Answer, id=f"t{op.replace('.', '')}", op=op, deadline=30, args=args)

    async def settled(self) -> ModelSwap:
        async with asyncio.timeout(60):
            while (model := await self.model()).step != "settled":
                await asyncio.sleep(0.02)
            return model


async def octogate(folder: Path, *arguments: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "gateway", "model", *arguments, "--config", str(folder / "gateway.toml")),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, cwd=ROOT, env=python_env(),
    )  # fmt: skip
    out, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode()


@pytest.mark.timeout(200)
def test_the_command_swaps_and_goes_back_and_both_stay_over_restarts(tmp_path: Path) -> None:
    make(tmp_path / "a.octo", "1.0")
    new, dies = str(doubled(tmp_path / "b.octo")), str(make(tmp_path / "d.octo", "3.0-dies"))
    wrong = str(make(tmp_path / "w.octo", "2.0", **{"golden/0.json": json.dumps({"score": 0.5}).encode()}))

    async def main() -> None:
        gateway = Parts(tmp_path, "daemon")
        await gateway.start()
        try:
            old = await gateway.serving()
            assert await octogate(tmp_path, "list") == (0, f"tiny: {old}, from the config\n")
            status, text = await octogate(tmp_path, "swap", "tiny", new, "--trial", "0.5", "--shadow", "0.3")
            assert status == 0, text
            steps = text.splitlines()
            assert steps[-1] == "settled" and "trial" in steps, text
            served = await gateway.serving()
            assert served != old

            status, text = await octogate(tmp_path, "swap", "tiny", wrong, "--json")
            assert status == 1 and json.loads(text)["outcome"] == "given up", text
            status, text = await octogate(tmp_path, "swap", "tiny", dies)
            assert status == 3 and "rolled back: 3 workers ended" in text, text
            for arguments, code, why in (
                (("swap", "other", new), 1, "no model 'other'"),
                (("swap", "tiny", str(tmp_path / "none.octo")), 1, "No such file"),
                (("swap", "tiny", new, "--every", "0"), 2, "every"),
            ):
                status, text = await octogate(tmp_path, *arguments)
                assert status == code and why in text, text

            assert await gateway.end() == 0
            await gateway.start()
            assert await gateway.serving() == served
            status, text = await octogate(tmp_path, "rollback", "tiny")
            assert status == 0 and "from the config" in text, text
            await gateway.until(lambda s: s.models[0].bundle == old, "back")
            await gateway.kill()
            await gateway.start()
            assert await gateway.serving() == old
            status, text = await octogate(tmp_path, "list", "--json")
            assert status == 0 and json.loads(text)[0]["previous"] == served, text
        finally:
            await gateway.close()

    asyncio.run(main())


@pytest.mark.timeout(120)
def test_a_config_that_names_another_bundle_wins(tmp_path: Path) -> None:
    make(tmp_path / "a.octo", "1.0")
    new = doubled(tmp_path / "b.octo")

    async def main() -> None:
        gateway = Parts(tmp_path)
        await gateway.start()
        try:
            await gateway.serving()
            assert (await gateway.ask("model.swap", model="tiny", bundle=str(new), trial_s=0.1)).ok
            assert (await gateway.settled()).source == "swap"
            swapped = await gateway.serving()
            await gateway.end()
            make(tmp_path / "c.octo", "4.0")
            gateway.config.write_text(CONFIG.replace("a.octo", "c.octo"))
            await gateway.start()
            assert await gateway.serving() != swapped
            assert (await gateway.model()).source == "config"
            assert "the config names another bundle" in gateway.log.read_text()
            assert not [*(tmp_path / "data" / "models" / "tiny").iterdir()]
        finally:
            await gateway.close()

    asyncio.run(main())


@pytest.mark.timeout(900)
def test_the_power_is_cut_before_every_step(tmp_path: Path) -> None:
    """Whatever was done by then: after a start the old or the new bundle serves, whole, and the swap has come to an end."""
    make(tmp_path / "a.octo", "1.0")
    new = doubled(tmp_path / "b.octo")
    base = (tmp_path / "a.octo").read_bytes()

    async def swap(gateway: Parts) -> None:
        answer = await gateway.ask("model.swap", model="tiny", bundle=str(new), trial_s=0.1, shadow_s=0.05)
        assert answer.ok

    async def uncut() -> tuple[int, str, str]:
        folder = tmp_path / "uncut"
        folder.mkdir()
        (folder / "a.octo").write_bytes(base)
        gateway = Parts(folder, "cut", "0", str(folder / "counter"))
        await gateway.start()
        try:
            before = await gateway.serving()
            await swap(gateway)
            assert (await gateway.settled()).outcome == "settled"
            await gateway.end()
            return (folder / "counter").stat().st_size, before, await restarted(gateway)
        finally:
            await gateway.close()

    async def restarted(gateway: Parts) -> str:
        gateway.arguments = ()
        await gateway.start()
        return await gateway.serving()

    async def cut(step: int, old: str, now: str) -> str:
        """Killed before this step, started again: how it ended."""
        folder = tmp_path / str(step)
        folder.mkdir()
        (folder / "a.octo").write_bytes(base)
        gateway = Parts(folder, "cut", str(step), str(folder / "counter"))
        await gateway.start()
        try:
            assert await gateway.serving() == old
            with contextlib.suppress(ControlError):  # it ends while it is asked
                await swap(gateway)
            async with asyncio.timeout(60):
                assert gateway.process is not None and await gateway.process.wait() == -signal.SIGKILL, step
            assert await restarted(gateway) in (old, now), step
            model = await gateway.settled()
            assert model.source == ("swap" if model.outcome == "settled" else "config"), step
            serves = now if model.outcome == "settled" else old
            await gateway.until(lambda s: s.models[0].bundle == serves and s.models[0].state == "ready", f"step {step}")
            if model.number:
                text = ENDS[model.outcome]
                await until_logged(gateway, f"{text} point")
            shelf = folder / "data" / "models" / "tiny"
            for file in shelf.glob("*.octo"):
                assert sha256_of(file) == file.stem
            await gateway.end()
            return model.outcome or "not begun"
        finally:
            await gateway.close()

    async def main() -> dict[str, int]:
        steps, old, now = await uncut()
        assert steps > 20 and old != now
        ends: dict[str, int] = {}
        for step in range(1, steps + 1):
            how = await cut(step, old, now)
            ends[how] = ends.get(how, 0) + 1
        return ends

    ends = asyncio.run(main())
    print(f"\ncut before each of {sum(ends.values())} steps: {ends}")
    assert set(ends) == {"not begun", "settled"}, "what was begun is finished"


async def until_logged(gateway: Parts, text: str) -> None:
    async with asyncio.timeout(20):
        while text not in gateway.log.read_text():
            await asyncio.sleep(0.02)
