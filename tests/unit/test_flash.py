"""Images of MicroPython are checked before anything is written."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware_tools import node
from firmware_tools.flash import BLOCK, board_of, check_drive, check_uf2, copy_uf2
from gateway.errors import SourceError

RP2040, RP2350, ABSOLUTE = 0xE48BFF56, 0xE48BFF59, 0xE48BFF57


def block(number: int, total: int, family: int = RP2040, size: int = 256) -> bytes:
    head = struct.pack("<8I", 0x0A324655, 0x9E5D5157, 0x2000, 0x10000000 + number * 256, size, number, total, family)
    return (head + (bytes([number % 251]) * size)[: BLOCK - 36]).ljust(BLOCK - 4, b"\0") + struct.pack("<I", 0x0AB16F30)


def uf2(total: int, family: int = RP2040) -> bytes:
    return b"".join(block(n, total, family) for n in range(total))


@given(st.integers(1, 60), st.sampled_from([RP2040, RP2350]))
def test_a_whole_file_is_taken(total: int, family: int) -> None:
    found = check_uf2(uf2(total, family))
    assert (found.blocks, found.family, found.start) == (total, family, 0x10000000)
    assert board_of(found) == "rp2"


def test_the_block_that_an_rp2350_wants_first_is_no_part_of_the_count() -> None:
    assert check_uf2(block(0, 2, ABSOLUTE) + uf2(5, RP2350)).blocks == 5


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "whole blocks"),
        (uf2(3)[:-1], "whole blocks"),
        (uf2(3)[:-BLOCK], "2 of 3"),
        (uf2(3)[BLOCK:], "expected 0"),
        (block(0, 2) + block(0, 2), "expected 1"),
        (block(0, 2) + block(1, 3), "expected 1 of 2"),
        (block(0, 2) + block(1, 2, RP2350), "chip family"),
        (block(0, 1, size=477), "477 bytes"),
        (block(0, 1, size=0), "0 bytes"),
        (bytes(BLOCK), "magic"),
        (block(0, 1)[:-4] + bytes(4), "magic"),
        (block(0, 1)[:8] + bytes(4) + block(0, 1)[12:], "which chip"),
        (block(0, 2, ABSOLUTE), "0 of 0"),
    ],
)
def test_a_broken_file_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(SourceError, match=says):
        check_uf2(data)


@given(st.binary(max_size=2 * BLOCK) | st.builds(lambda n, at, b: splice(uf2(n), at, b), st.integers(1, 4), st.integers(0, 2047), st.binary(min_size=1, max_size=9)))  # fmt: skip
def test_no_bytes_do_more_than_be_refused(data: bytes) -> None:
    try:
        found = check_uf2(data)
    except SourceError:
        return
    assert 0 < found.blocks <= len(data) // BLOCK


def splice(data: bytes, at: int, new: bytes) -> bytes:
    at %= len(data)
    return (data[:at] + new + data[at + len(new) :])[: len(data)]


def drive(folder: Path) -> Path:
    (folder / "INFO_UF2.TXT").write_text("UF2 Bootloader v3.0\r\nModel: Raspberry Pi RP2\r\nBoard-ID: RPI-RP2\r\n")
    return folder


def test_a_copy_is_read_back(tmp_path: Path) -> None:
    assert check_drive(drive(tmp_path), RP2040) == "RPI-RP2"
    with pytest.raises(SourceError, match="of RPI-RP2, the file for another chip"):
        check_drive(tmp_path, RP2350)
    assert copy_uf2(uf2(3), tmp_path) == "copied and read back"
    assert (tmp_path / "firmware.uf2").read_bytes() == uf2(3)


def test_a_full_drive_is_an_error_and_one_that_went_away_is_a_yes(tmp_path: Path) -> None:
    (tmp_path / "firmware.uf2").symlink_to("/dev/full")
    assert "taken it" in copy_uf2(uf2(3), tmp_path)
    with pytest.raises(SourceError, match="No space left"):
        copy_uf2(uf2(3), drive(tmp_path))


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad, image = tmp_path / "a.uf2", tmp_path / "b.uf2", tmp_path / "c.bin"
    good.write_bytes(uf2(4))
    bad.write_bytes(uf2(4)[:-BLOCK])
    image.write_bytes(b"\xe9" + bytes(100))
    to = drive(tmp_path)
    assert node.main(["flash", str(good), "--drive", str(to), "--dry-run"]) == 0
    assert "4 blocks for Raspberry Pi Pico" in capsys.readouterr().out and not (to / "firmware.uf2").exists()
    assert node.main(["flash", str(good), "--drive", str(to), "--yes"]) == 0
    assert (to / "firmware.uf2").exists()
    assert node.main(["flash", str(good), "--drive", str(tmp_path / "none")]) == 2
    assert node.main(["flash", str(bad), "--drive", str(to), "--yes"]) == 2
    capsys.readouterr()
    assert node.main(["flash", str(image), "--port", "/dev/ttyX", "--board", "esp32", "--dry-run"]) == 0
    assert "--chip esp32 --port /dev/ttyX write-flash --erase-all 0x1000" in capsys.readouterr().out
    assert node.main(["flash", str(image), "--port", "/dev/ttyX", "--board", "rp2", "--dry-run"]) == 2
    assert node.main(["flash", str(good), "--port", "/dev/ttyX"]) == 2
