"""MicroPython itself onto a board: UF2 files are checked and copied, images for ESP chips are given to esptool.

UF2: https://github.com/microsoft/uf2, blocks of 512 bytes. esptool is GPL and runs as a process of its own.
"""

from __future__ import annotations

import importlib.util
import os
import struct
import sys
from pathlib import Path

import msgspec

from firmware_tools.boards import Board, boards
from gateway.errors import SourceError

BLOCK = 512
MAX_FILE = 64 << 20
MAX_IMAGE = 16 << 20
_HEAD = struct.Struct("<8I")
_MAGIC = 0x0A324655, 0x9E5D5157
_MAGIC_END = 0x0AB16F30
_NOT_MAIN, _HAS_FAMILY = 0x0001, 0x2000
_ABSOLUTE = 0xE48BFF57  # RP2350-E10: the chip's fault wants one block of this family first, numbered 0 of 2
_PAYLOAD_MAX = 476
_ESP_MAGIC = 0xE9
_HINT = "download the file again, for this board"


class Uf2(msgspec.Struct, frozen=True):
    """What a valid file holds."""

    family: int
    blocks: int
    start: int  # the lowest address


def check_uf2(data: bytes) -> Uf2:
    """Check every block of a UF2 file.

    Raises:
        SourceError: it is damaged, cut short, or for no one kind of chip.
    """
    if not data or len(data) % BLOCK or len(data) > MAX_FILE:
        raise SourceError(f"no UF2 file: {len(data)} bytes are not whole blocks of {BLOCK}", hint=_HINT)
    family, total, seen, start = None, 0, 0, 1 << 32
    for at in range(0, len(data), BLOCK):
        where = f"UF2 block {at // BLOCK}"
        magic0, magic1, flags, address, size, number, count, own = _HEAD.unpack_from(data, at)
        if (magic0, magic1) != _MAGIC or data[at + BLOCK - 4 : at + BLOCK] != _MAGIC_END.to_bytes(4, "little"):
            raise SourceError(f"{where}: its magic numbers are wrong", hint=_HINT)
        if not flags & _HAS_FAMILY:
            raise SourceError(f"{where}: it does not say for which chip it is", hint=_HINT)
        if flags & _NOT_MAIN or (own == _ABSOLUTE and at == 0):
            continue
        family, total = (own, count) if family is None else (family, total)
        if own != family:
            raise SourceError(f"{where}: for chip family {own:#010x}, others for {family:#010x}", hint=_HINT)
        if not 0 < size <= _PAYLOAD_MAX or count != total or number != seen:
            raise SourceError(
                f"{where}: number {number} of {count}, {size} bytes; expected {seen} of {total}", hint=_HINT
            )
        seen, start = seen + 1, min(start, address)
    if family is None or seen != total:
        raise SourceError(f"the UF2 file holds {seen} of {total} blocks", hint=_HINT)
    return Uf2(family, total, start)


def board_of(uf2: Uf2) -> str:
    """The name of the board it is for; SourceError for a chip that no board has."""
    for name, board in boards().items():
        if any(uf2.family in families for families in board.uf2.values()):
            return name
    raise SourceError(f"chip family {uf2.family:#010x} is of no board we know", hint="see firmware_tools/boards")


def check_drive(drive: Path, family: int) -> str:
    """What a boot loader's drive says it is.

    Raises:
        SourceError: it is none, or of a chip that ignores files of this family.
    """
    try:
        lines = (drive / "INFO_UF2.TXT").read_bytes()[:4096].decode(errors="replace").splitlines()
    except OSError as error:
        raise SourceError(
            f"{drive} is no drive of a UF2 boot loader: {error.strerror}",
            hint="hold BOOTSEL while plugging the board in",
        ) from error
    says = next((line.partition(":")[2].strip() for line in lines if line.startswith("Board-ID:")), "unknown")
    for board in boards().values():
        if says in board.uf2 and family not in board.uf2[says]:
            raise SourceError(f"the drive is of {says}, the file for another chip ({family:#010x})", hint=_HINT)
    return says


def copy_uf2(data: bytes, drive: Path) -> str:
    """Copy a checked file and read it back; says how it went.

    A board that has the last block restarts at once: then its drive is gone, which is how it says yes.

    Raises:
        SourceError: the drive is full or refuses, or what is read back differs.
    """
    target = drive / "firmware.uf2"
    try:
        with open(target, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        back = target.read_bytes()
    except OSError as error:
        if not (drive / "INFO_UF2.TXT").exists():
            return "the board has taken it and restarted"
        raise SourceError(f"cannot copy to {drive}: {error.strerror}", hint="unplug the board and try again") from error
    if back != data:
        raise SourceError(f"{target}: what is read back differs", hint="unplug the board and try again")
    return "copied and read back"


def esptool_command(file: Path, data: bytes, port: str, board: Board) -> list[str]:
    """What flashes an image to an ESP chip.

    Raises:
        SourceError: no image, or not a board for it.
    """
    if board.flash != "esptool":
        raise SourceError(f"which chip is {file.name} for?", hint="--board esp32, esp32s3 or esp32c3")
    if not data or data[0] != _ESP_MAGIC or len(data) > MAX_IMAGE:
        raise SourceError(f"{file} is no image for an ESP chip", hint=_HINT)
    return [
        *(sys.executable, "-m", "esptool", "--chip", board.chip, "--port", port),
        *("write-flash", "--erase-all", f"{board.offset:#x}", str(file)),
    ]


def require_esptool() -> None:
    """Raises SourceError with what to install."""
    if importlib.util.find_spec("esptool") is None:
        raise SourceError("esptool is not installed", hint="pip install 'octogate[flash]'")
