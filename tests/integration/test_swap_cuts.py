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
from gateway.infer.shelf import parse, sha256_of
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


class Cuts:
    """One way through the steps of a swap, with the power cut before each of them.

    Args:
        new: the bundle to swap in; before a rollback it was swapped in already.
        end: how it ends when nobody cuts.
    """

    def __init__(self, folder: Path, new: Path, end: str) -> None:
        self.folder, self.new, self.end = folder, new, end
        self.base = make(folder / "a.octo", "1.0").read_bytes()

    async def begin(self, gateway: Parts) -> None:
        if self.end == "undone":
            answer = await gateway.ask("model.rollback", model="tiny")
        else:
            answer = await gateway.ask("model.swap", model="tiny", bundle=str(self.new), trial_s=0.1, shadow_s=0.05)
        assert answer.ok

    async def made(self, name: str, step: int) -> Parts:
        """A gateway that will be cut at this step, and serves what it serves before."""
        folder = self.folder / name
        folder.mkdir()
        (folder / "a.octo").write_bytes(self.base)
        if self.end == "undone":
            plain = Parts(folder, "daemon")
            await plain.start()
            try:
                await plain.serving()
                assert (await plain.ask("model.swap", model="tiny", bundle=str(self.new), trial_s=0.1)).ok
                await told(folder)
                await plain.end()
            finally:
                await plain.close()
        return Parts(folder, "cut", str(step), str(folder / "counter"))

    async def uncut(self) -> tuple[range, str, str]:
        """The steps that it takes once it serves; what serves before and after."""
        gateway = await self.made("uncut", 0)
        counter = gateway.folder / "counter"
        await gateway.start()
        try:
            before = await gateway.serving()
            first = counter.stat().st_size + 1 if counter.exists() else 1
            await self.begin(gateway)
            await until_logged(
                gateway, "model.rolled_back point" if self.end == "undone" else f"{ENDS[self.end]} point"
            )
            await told(gateway.folder)
            await gateway.end()
            steps = range(first, counter.stat().st_size + 1)
            await gateway.start()
            return steps, before, await gateway.serving()
        finally:
            await gateway.close()

    async def cut(self, step: int, before: str, after: str) -> str:
        """Killed before this step, started again: how it ended."""
        gateway = await self.made(str(step), step)
        await gateway.start()
        try:
            assert await gateway.serving() == before
            with contextlib.suppress(ControlError):  # it ends while it is asked
                await self.begin(gateway)
            async with asyncio.timeout(60):
                assert gateway.process is not None and await gateway.process.wait() == -signal.SIGKILL, step
            gateway.arguments = ("daemon",)
            await gateway.start()
            assert await gateway.serving() in (before, after), step
            model = await gateway.settled()
            begun = model.number and (self.end != "undone" or model.outcome == "rolled back")
            serves = after if begun and model.outcome == self.end.replace("undone", "rolled back") else before
            await gateway.until(lambda s: s.models[0].bundle == serves and s.models[0].state == "ready", f"step {step}")
            if begun:
                await until_logged(gateway, f"{ENDS[model.outcome]} point")
            for file in (gateway.folder / "data" / "models" / "tiny").glob("*.octo"):
                assert sha256_of(file) == file.stem
            await gateway.end()
            return model.outcome if begun else "not begun"
        finally:
            await gateway.close()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("end", ["settled", "rolled back", "undone"])
def test_the_power_is_cut_before_every_step(tmp_path: Path, end: str) -> None:
    """Whatever was done by then: after a start the old or the new bundle serves, whole, and the swap comes to an end."""
    new = make(tmp_path / "d.octo", "2.0-dies") if end == "rolled back" else doubled(tmp_path / "b.octo")

    async def main() -> list[str]:
        cuts = Cuts(tmp_path, new, end)
        steps, before, after = await cuts.uncut()
        assert (before == after) == (end == "rolled back")
        return [await cuts.cut(step, before, after) for step in steps]

    ends = asyncio.run(main())
    print(f"\n{end}: cut before each of {len(ends)} steps: {ends}")
    assert len(ends) >= (5 if end == "undone" else 25)
    assert set(ends) == {"not begun", end.replace("undone", "rolled back")}, "what was begun is finished"
    assert ends == sorted(ends, key=lambda how: how != "not begun"), "once begun, it is never forgotten"


async def told(folder: Path) -> None:
    """Until the outcome stands and was made known."""
    file = folder / "data" / "models" / "tiny" / "state.json"
    async with asyncio.timeout(60):
        while not file.exists() or (state := parse(file.read_bytes())).candidate is not None or not state.told:
            await asyncio.sleep(0.02)


async def until_logged(gateway: Parts, text: str) -> None:
    async with asyncio.timeout(20):
        while text not in gateway.log.read_text():
            await asyncio.sleep(0.02)
