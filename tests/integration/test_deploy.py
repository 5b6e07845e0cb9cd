"""The host's tools against the real MicroPython with its REPL behind a pseudo terminal (a simulated board)."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
from pathlib import Path

import pytest

import firmware_tools.deploy
from firmware_tools.deploy import FIRMWARE, NodeDead, deploy, greet, read_firmware
from firmware_tools.node import main
from firmware_tools.rawrepl import BoardError, raw_repl
from firmware_tools.wire import Wire
from gateway.errors import SourceError
from sdk.board import MicroPythonBoard

pytest.importorskip("micropython_unix", reason="no MicroPython wheel for this platform")
MAIN_BAD = b"import machine_of_tomorrow\n"


def test_code_runs_and_fails_and_is_bounded(tmp_path: Path) -> None:
    async def story() -> None:
        async with MicroPythonBoard(tmp_path) as board, Wire(board.port) as wire, raw_repl(wire) as repl:
            assert (await repl.exec("print(6 * 7)")).split() == [b"42"]
            assert repl.has_paste
            with pytest.raises(BoardError, match="ZeroDivisionError"):
                await repl.exec("1 / 0")
            with pytest.raises(BoardError, match="SyntaxError"):
                await repl.exec("this is not\nPython")
            long = "\n".join(f"x{n} = {n}" for n in range(800)) + "\nprint(x799)"  # many windows
            assert (await repl.exec(long)).split() == [b"799"]
            with pytest.raises(SourceError, match="more than"):
                await repl.exec("while True: print('flood' * 100)")

    asyncio.run(story())


def test_plain_raw_mode_does_as_well(tmp_path: Path) -> None:
    async def story() -> None:
        async with MicroPythonBoard(tmp_path) as board, Wire(board.port) as wire, raw_repl(wire) as repl:
            repl.has_paste = False
            assert (await repl.exec("for i in range(3):\n  print(i)")).split() == [b"0", b"1", b"2"]
            with pytest.raises(BoardError, match="NameError"):
                await repl.exec("nothing")

    asyncio.run(story())


def test_a_bare_board_becomes_a_node_and_then_only_what_differs_is_sent(tmp_path: Path) -> None:
    async def story() -> None:
        files = read_firmware(FIRMWARE)
        told: list[tuple[str, int, int]] = []
        async with MicroPythonBoard(tmp_path) as board, Wire(board.port) as wire:
            planned = await deploy(wire, files, dry_run=True)
            assert sorted(planned.plan.added) == sorted(files) and not list(tmp_path.iterdir())
            first = await deploy(wire, files, progress=lambda *step: told.append(step))
            assert first.hello and first.hello.node == "node-1" and not first.failed
            assert told[-1][1:] == (sum(map(len, files.values())),) * 2
            assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files
            (tmp_path / "config.json").write_text((tmp_path / "config.json").read_text().replace("node-1", "press-4"))
            changed = files | {"sensors.py": files["sensors.py"] + b"# newer\n"}
            second = await deploy(wire, changed)
            assert list(second.plan.old) == ["sensors.py"] and not second.plan.added
            assert second.hello and second.hello.node == "press-4"  # its own config was kept
            assert (tmp_path / "sensors.py.old").read_bytes() == files["sensors.py"]
            assert not list(tmp_path.glob("*.new"))
            third = await deploy(wire, changed)
            assert third.plan.names == [] and third.hello

    asyncio.run(story())


def test_a_firmware_that_says_nothing_is_taken_back(tmp_path: Path) -> None:
    async def story() -> None:
        files = read_firmware(FIRMWARE)
        async with MicroPythonBoard(tmp_path) as board, Wire(board.port) as wire:
            assert (await deploy(wire, files)).hello
            outcome = await deploy(wire, files | {"main.py": MAIN_BAD, "more.py": b""}, hello_s=2.0)
            assert outcome.hello and outcome.hello.node == "node-1"
            assert "machine_of_tomorrow" in outcome.failed
            assert (tmp_path / "main.py").read_bytes() == files["main.py"] and not (tmp_path / "more.py").exists()
            assert (await greet(wire, 5.0))[0]

    asyncio.run(story())


def test_what_fails_before_anything_is_in_place_changes_nothing(tmp_path: Path) -> None:
    async def story() -> None:
        files = read_firmware(FIRMWARE)
        async with MicroPythonBoard(tmp_path) as board, Wire(board.port) as wire:
            assert (await deploy(wire, files)).hello
            (tmp_path / "sensors.py.old").mkdir()  # the copy of the old file fails, as on a full board
            with pytest.raises(BoardError, match="OSError") as failed:
                await deploy(wire, files | {"sensors.py": b"# nothing\n"})
            assert not isinstance(failed.value, NodeDead)
            assert (tmp_path / "sensors.py").read_bytes() == files["sensors.py"]
            assert (await greet(wire, 5.0))[0]  # and its program runs again

    asyncio.run(story())


def test_the_exit_statuses(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(firmware_tools.deploy, "HELLO_S", 3.0)

    async def story() -> None:
        bad = tmp_path / "bad"
        bad.mkdir()
        (bad / "main.py").write_bytes(MAIN_BAD)
        async with MicroPythonBoard(tmp_path / "board") as board:
            command = ["deploy", "--port", board.port, "--firmware", str(bad)]
            assert await asyncio.to_thread(main, command) == 3
            assert "machine_of_tomorrow" in capsys.readouterr().err.replace("\n", "")
            good = ["deploy", "--port", board.port]
            assert await asyncio.to_thread(main, good) == 0
            assert "node 'node-1' runs firmware" in capsys.readouterr().out
            assert await asyncio.to_thread(main, ["monitor", "--port", board.port, "--seconds", "1"]) == 0
            assert "data    power" in capsys.readouterr().out
            assert await asyncio.to_thread(main, command) == 1  # taken back
            assert await asyncio.to_thread(main, ["list", "--json", "--port", board.port]) == 0
            [found] = json.loads(capsys.readouterr().out.splitlines()[-1])[-1:]
            assert found["node"] == "node-1" and found["port"] == board.port

    asyncio.run(story())


def test_mpremote_reads_what_was_written(tmp_path: Path) -> None:
    pytest.importorskip("mpremote", reason="the peer is in the extra dev")

    async def story() -> None:
        files = read_firmware(FIRMWARE)
        async with MicroPythonBoard(tmp_path) as board:
            async with Wire(board.port) as wire:
                assert (await deploy(wire, files)).hello
            for name in ("main.py", "octolink.py"):
                peer = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "mpremote", "connect", board.port, "fs", "sha256sum", name,
                    stdout=asyncio.subprocess.PIPE, env={**os.environ, "NO_COLOR": "1"},
                )  # fmt: skip
                try:
                    async with asyncio.timeout(20):
                        said, _ = await peer.communicate()
                except TimeoutError:
                    peer.kill()
                    await peer.communicate()
                    raise
                assert hashlib.sha256(files[name]).hexdigest() in said.decode()

    asyncio.run(story())
