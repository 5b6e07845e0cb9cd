"""Which board is on which port."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
from serial.tools import list_ports

from firmware_tools.boards import ANY, boards, by_usb
from firmware_tools.deploy import greet
from firmware_tools.wire import Wire
from gateway.errors import SourceError

_BY_ID = Path("/dev/serial/by-id")
ASK_S = 1.5


class Found(msgspec.Struct, frozen=True):
    """One port.

    Attributes:
        identity: what the gateway's config takes as port, `usb:VID:PID:SERIAL`; empty for what is not on USB.
        by_id: its path below /dev/serial/by-id, or empty.
        node, firmware, streams: what it said in HELLO; empty when it was not asked or does not speak the link.
        detail: why it could not be asked.
    """

    port: str
    identity: str = ""
    by_id: str = ""
    board: str = ""
    title: str = ""
    node: str = ""
    firmware: str = ""
    streams: tuple[str, ...] = ()
    detail: str = ""


def ports() -> list[Found]:
    """All serial ports that are on USB."""
    links = {path.resolve(): path for path in _BY_ID.iterdir()} if _BY_ID.is_dir() else {}
    found = []
    for port in sorted(list_ports.comports()):
        if port.vid is None or port.pid is None:
            continue
        ids = f"{port.vid:04x}:{port.pid:04x}"
        identity = f"usb:{ids}:{port.serial_number}" if port.serial_number else f"usb:{ids}"
        board = by_usb(ids)
        by_id = str(links.get(Path(port.device).resolve(), ""))
        title = boards()[board].title if board else port.product or ""
        found.append(Found(port.device, identity, by_id, board, title))
    return found


async def ask(found: Found) -> Found:
    """With what the node on it says of itself; its program is not disturbed."""
    try:
        async with Wire(found.port, boards().get(found.board, ANY)) as wire:
            hello, said = await greet(wire, ASK_S)
    except SourceError as error:
        return msgspec.structs.replace(found, detail=str(error))
    if hello is None:
        return msgspec.structs.replace(found, detail=f"no HELLO{': ' + said if said else ''}")
    streams = tuple(f"{s.name}: {', '.join(name for name, _, _ in s.channels)}" for s in hello.streams)
    return msgspec.structs.replace(found, node=hello.node, firmware=hello.firmware, streams=streams)


async def listing(more: list[str], ask_all: bool) -> list[Found]:
    """The ports on USB and those in `more`; asked are those in `more`, known boards, or all.

    What is no known board may be a scale or a controller, to which a line of ours may mean something: hence the choice.
    """
    known = ports()
    named = {found.port for found in known} | {found.by_id for found in known}
    known += [Found(port) for port in more if port not in named]
    wanted = [ask_all or bool(found.board) or found.port in more or found.by_id in more for found in known]
    async with asyncio.TaskGroup() as tasks:
        asked = [
            tasks.create_task(ask(found), name=f"ask {found.port}") if want else None
            for found, want in zip(known, wanted, strict=True)
        ]
    return [task.result() if task else found for task, found in zip(asked, known, strict=True)]


def table(listed: list[Found]) -> str:
    """For people."""
    lines = []
    for found in listed:
        lines.append(f"{found.port}  {found.identity}  {found.title}".rstrip())
        if found.by_id:
            lines.append(f"    {found.by_id}")
        if found.node:
            lines.append(f"    node '{found.node}', firmware {found.firmware}; {'; '.join(found.streams)}")
        elif found.detail:
            lines.append(f"    {found.detail}")
    return "\n".join(lines) or "no serial port on USB; is the board plugged in with a cable that carries data?"
