"""What the host's tools make of a node that speaks: deploy's checks, monitor, listing, exit statuses."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware_tools import node
from firmware_tools.deploy import FIRMWARE, greet, read_firmware
from firmware_tools.listing import Found, listing, table
from firmware_tools.monitor import Monitor, monitor
from firmware_tools.wire import Wire
from gateway.errors import SourceError
from gateway.link.messages import Ack, Log, Nak
from tests.unit.fake_node import Changes, FakeNode


def test_a_firmware_needs_a_program_and_fitting_names(tmp_path: Path) -> None:
    assert set(read_firmware(FIRMWARE)) == {"main.py", "octolink.py", "sensors.py", "config.json"}
    with pytest.raises(SourceError, match="no folder"):
        read_firmware(tmp_path / "none")
    with pytest.raises(SourceError, match=r"no main\.py"):
        read_firmware(tmp_path)
    (tmp_path / "main.py").write_text("")
    (tmp_path / "own.json").write_text("{}")
    assert read_firmware(tmp_path, tmp_path / "own.json")["config.json"] == b"{}"
    (tmp_path / "bad name.py").write_text("")
    with pytest.raises(SourceError, match="bad name"):
        read_firmware(tmp_path)


def test_a_node_is_watched_and_forgets_nothing(tmp_path: Path) -> None:
    async def story() -> None:
        seen: list[str] = []
        changes = Changes()

        def show(line: str) -> None:
            seen.append(line)
            changes.tell()

        with FakeNode(tmp_path / "tty") as fake:
            fake.count_to(3)
            async with Wire(str(fake.port)) as wire, asyncio.timeout(20), asyncio.TaskGroup() as tasks:
                watch = tasks.create_task(monitor(wire, show), name="monitor")
                await fake.hears(Nak(0))
                fake.say(Log(30, b"low battery"))
                fake.write(b"hello\r\nTraceback:\r\n")
                fake.count_to(4)
                fake.write(b"the end\r\n>>> ")
                await changes.until(lambda: "text    the end" in seen)
                fake.say(Log(20, b"up again"))  # cuts the tail off
                await changes.until(lambda: "log 20  up again" in seen)
                watch.cancel()
            assert not [line for line in fake.heard if isinstance(line, Ack)]
        assert seen[0].startswith("hello   node 'fake', firmware 0.0") and "count: n" in seen[0]
        for line in ("log 30  low battery", "text    hello", "text    Traceback:"):
            assert line in seen
        assert [line for line in seen if line.startswith("data") and line.endswith(": n 3")]
        assert seen.count("text    the end") == 1

    asyncio.run(story())


@given(st.lists(st.binary(max_size=200), max_size=10))
def test_noise_is_shown_or_not_and_never_fatal(chunks: list[bytes]) -> None:
    watch = Monitor(lambda line: None)
    for chunk in chunks:
        watch.take(chunk)
        assert watch.asks()


def test_the_list_names_the_node_behind_a_port(tmp_path: Path) -> None:
    async def story() -> list[Found]:
        with FakeNode(tmp_path / "tty") as fake:
            return await listing([str(fake.port), str(tmp_path / "none")], ask_all=False)

    listed = {found.port: found for found in asyncio.run(story())}
    found = listed[str(tmp_path / "tty")]
    assert (found.node, found.firmware, found.streams) == ("fake", "0.0", ("count: n",))
    assert "cannot open" in listed[str(tmp_path / "none")].detail
    assert "node 'fake', firmware 0.0; count: n" in table([found])
    assert "plugged in" in table([])


def test_no_hello_gives_the_first_failure(tmp_path: Path) -> None:
    async def story() -> None:
        with FakeNode(tmp_path / "tty") as fake:
            fake.mute = True
            async with Wire(str(fake.port)) as wire:
                fake.write(b"MemoryError: \r\n>>> HELLO 1\r\nSyntaxError: invalid syntax\r\n>>> ")
                assert await greet(wire, 0.2) == (None, "MemoryError:")

    asyncio.run(story())


@pytest.mark.parametrize("command", ["deploy", "monitor"])
def test_no_port_is_status_2(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert node.main([command, "--port", str(tmp_path / "none")]) == 2
    assert f"cannot open {tmp_path / 'none'}: No such file or directory (is it plugged in" in capsys.readouterr().err
