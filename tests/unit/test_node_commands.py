"""Commands to a node: said again until they are answered, obeyed once, answered always."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.acquire import nodecommands
from gateway.acquire.nodecommands import LINE_MAX, NodeCommands
from gateway.errors import SourceError
from gateway.link.messages import Command, Nak, Reply, parse_line
from tests.unit.fake_node import FakeNode, FakeSink, running


def test_a_command_is_answered(tmp_path: Path) -> None:
    async def story() -> None:
        with FakeNode(tmp_path / "tty") as fake:
            async with running(fake.port, FakeSink()) as source, asyncio.TaskGroup() as tasks:
                await fake.hears(Nak(0))
                write = tasks.create_task(source.write("valve/open", True), name="write")
                asked = await fake.asked()
                assert json.loads(asked.json) == {"set": "valve/open", "value": True}
                fake.say(Reply(asked.id + 1, b'{"error": "of somebody else"}'))
                fake.say(Reply(asked.id, b"{}"))
                await write

    asyncio.run(story())


@pytest.mark.parametrize(
    ("answer", "says"),
    [(b'{"error": "too hot"}', "too hot"), (b"null", "firmware"), (b"\xff\xfe", "firmware")],
)
def test_a_refusal_says_why(tmp_path: Path, answer: bytes, says: str) -> None:
    async def story() -> None:
        with FakeNode(tmp_path / "tty") as fake:
            async with running(fake.port, FakeSink()) as source:
                await fake.hears(Nak(0))
                with pytest.raises(SourceError, match=says):
                    async with asyncio.TaskGroup() as tasks:
                        tasks.create_task(answering(fake, answer), name="node")
                        try:
                            await source.write("heater/on", 1)
                        except SourceError as error:
                            refusal = error
                    raise refusal

    asyncio.run(story())


async def answering(fake: FakeNode, answer: bytes) -> None:
    fake.say(Reply((await fake.asked()).id, answer))


def test_a_lost_line_is_said_again_with_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodecommands, "AGAIN_S", 0.02)

    async def story() -> None:
        with FakeNode(tmp_path / "tty") as fake:
            async with running(fake.port, FakeSink()) as source, asyncio.TaskGroup() as tasks:
                await fake.hears(Nak(0))
                write = tasks.create_task(source.write("a/b", 1.5), name="write")
                asked = await fake.asked(times=3)
                assert len({line for line in fake.heard if isinstance(line, Command)}) == 1
                fake.say(Reply(asked.id, b"{}"))
                await write

    asyncio.run(story())


def test_an_unplug_ends_the_wait(tmp_path: Path) -> None:
    async def story() -> None:
        sink = FakeSink()
        with FakeNode(tmp_path / "tty") as fake:
            async with running(fake.port, sink) as source:
                await fake.hears(Nak(0))
                async with asyncio.TaskGroup() as tasks:
                    write = tasks.create_task(outcome(source.write("a/b", 1)), name="write")
                    await fake.asked()
                    fake.unplug()
                assert "nobody knows" in write.result()
                assert "is not there" in await outcome(source.write("a/b", 1))

    asyncio.run(story())


async def outcome(write: object) -> str:
    try:
        await write  # type: ignore[misc]
    except SourceError as error:
        return str(error)
    return ""


def test_no_answer_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodecommands, "ANSWER_S", 0.05)
    with pytest.raises(SourceError, match="no answer within"):
        asyncio.run(NodeCommands().ask("a/b", 1, lambda _: None))


@given(st.text(max_size=60), st.booleans() | st.integers(-(2**63), 2**64) | st.floats() | st.text(max_size=600))
def test_every_line_is_short_ascii_without_control_characters(metric: str, value: bool | int | float | str) -> None:
    async def ask() -> None:
        commands = NodeCommands()

        def send(line: Command) -> None:
            wire = line.to_line()
            assert len(wire) <= LINE_MAX and wire.endswith(b"\n") and all(32 <= byte < 127 for byte in wire[:-1])
            back = parse_line(wire)
            assert isinstance(back, Command) and json.loads(back.json) == {"set": metric, "value": value}
            commands.reply(Reply(line.id, b"{}"))

        await commands.ask(metric, value, send)

    try:
        asyncio.run(ask())
    except SourceError as error:
        assert "cannot be sent" in str(error) or "bytes" in str(error)
