"""What differs from board to board, as data: firmware_tools/boards/<name>.toml."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from gateway.errors import SourceError

_FOLDER = Path(__file__).with_name("boards")


class Board(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One kind of board.

    Attributes:
        usb: VID:PID that it shows while MicroPython runs; the first board that has an id gets it.
        dtr, rts: the state of the lines while the port is open.
        chunk, pause_ms: without raw-paste there is no flow control: so many bytes, then a pause.
        flash: how MicroPython itself gets on it.
        uf2: what its boot loader's drive calls itself (Board-ID) -> family ids of UF2 files that fit.
        chip, offset: for esptool.
    """

    title: str
    usb: tuple[Annotated[str, Meta(pattern=r"^[0-9a-f]{4}:[0-9a-f]{4}$")], ...] = ()
    dtr: bool = True
    rts: bool = True
    baud: Annotated[int, Meta(gt=0)] = 115200
    chunk: Annotated[int, Meta(gt=0, le=4096)] = 256
    pause_ms: Annotated[int, Meta(ge=0, le=1000)] = 10
    flash: Literal["", "uf2", "esptool"] = ""
    uf2: dict[str, tuple[int, ...]] = {}
    chip: str = ""
    offset: Annotated[int, Meta(ge=0)] = 0


ANY = Board("any board")


@cache
def boards() -> dict[str, Board]:
    """All boards by name."""
    return {
        path.stem: msgspec.convert(tomllib.loads(path.read_text()), Board) for path in sorted(_FOLDER.glob("*.toml"))
    }


def named(name: str) -> Board:
    """Raises SourceError: there is no board of that name."""
    if name not in boards():
        raise SourceError(f"there is no board '{name}'", hint=f"there are: {', '.join(boards())}")
    return boards()[name]


def by_usb(vid_pid: str) -> str:
    """The name of the board with this VID:PID (lower-case hexadecimal), or empty."""
    return next((name for name, board in boards().items() if vid_pid in board.usb), "")
