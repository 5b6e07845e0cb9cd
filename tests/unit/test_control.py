"""The control socket: answers, refusals, and who may speak."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from gateway import control
from gateway.errors import ControlError


def double(args: Mapping[str, Any]) -> int:
    return 2 * int(args["x"])


async def refuse(args: Mapping[str, Any]) -> None:
    raise ControlError("no such thing", hint="try another")


HANDLERS: dict[str, control.Handler] = {"double": double, "refuse": refuse}


def test_a_question_and_its_answer(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "c.sock"
        async with control.serve(path, HANDLERS), control.Client.connect(path) as client:
            assert path.stat().st_mode & 0o777 == 0o600
            assert await client.ask("double", int, x=21) == 42
            assert await asyncio.gather(*(client.ask("double", int, x=i) for i in range(5))) == [0, 2, 4, 6, 8]
            with pytest.raises(ControlError, match=r"no such thing \(try another\)"):
                await client.ask("refuse", int)
            with pytest.raises(ControlError, match=r"unknown op 'dance' \(known: double, refuse\)"):
                await client.ask("dance", int)
            assert await client.ask("double", int, x=1) == 2  # still served
        assert not path.exists()

    asyncio.run(scenario())


@pytest.mark.parametrize("line", [b"\n", b"no json\n", b"[1]\n", b'{"op": 5}\n', b'{"op":"double","args":[]}\n'])
def test_what_is_no_request_is_answered_as_that(tmp_path: Path, line: bytes) -> None:
    async def scenario() -> None:
        path = tmp_path / "c.sock"
        async with control.serve(path, HANDLERS):
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(line)
            answer = json.loads(await reader.readline())
            assert not answer["ok"] and "not a request" in answer["error"]
            writer.close()

    asyncio.run(scenario())


def test_an_endless_line_ends_that_connection_only(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "c.sock"
        async with control.serve(path, HANDLERS):
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(b"x" * (control.MAX_LINE * 3))
            assert await reader.read() == b""
            writer.close()
            async with control.Client.connect(path) as client:
                assert await client.ask("double", int, x=4) == 8

    asyncio.run(scenario())


def test_a_stale_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "c.sock"
        server = await asyncio.start_unix_server(lambda r, w: None, path)
        server.close()  # leaves the file, as SIGKILL does
        path.touch()
        async with control.serve(path, HANDLERS):
            with pytest.raises(ControlError, match="another gateway is running"):
                async with control.serve(path, HANDLERS):
                    pass
            async with control.Client.connect(path) as client:
                assert await client.ask("double", int, x=4) == 8

    asyncio.run(scenario())


def test_no_daemon_is_said_so(tmp_path: Path) -> None:
    async def scenario() -> None:
        with pytest.raises(ControlError, match=r"no gateway answers.*is `octogate run` running"):
            async with control.Client.connect(tmp_path / "none.sock"):
                pass

    asyncio.run(scenario())
