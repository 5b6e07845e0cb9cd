"""Ports by USB identity, in a folder that is laid out as sysfs is."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.acquire.identity import check_usb, find_port
from gateway.errors import SourceError


@pytest.fixture
def ttys(tmp_path: Path) -> Path:
    """ttyUSB0 and ttyUSB1 are FTDI adapters, ttyACM0 is a board without a serial number, ttyS0 is on no bus."""
    classes = tmp_path / "class" / "tty"
    for name, vid, pid, serial, deep in (
        ("ttyUSB0", "0403", "6001", "A50285BI", "1-1.2:1.0/ttyUSB0"),
        ("ttyUSB1", "0403", "6001", "FT9Z", "1-1.3:1.0/ttyUSB1"),
        ("ttyACM0", "2E8A", "0005", "", "1-1.4:1.0"),
    ):
        usb = tmp_path / "devices" / "pci" / "usb1" / name
        (usb / deep).mkdir(parents=True)
        (usb / "idVendor").write_text(vid + "\n")
        (usb / "idProduct").write_text(pid + "\n")
        if serial:
            (usb / "serial").write_text(serial + "\n")
        (classes / name).mkdir(parents=True)
        (classes / name / "device").symlink_to(usb / deep)
    (classes / "ttyS0").mkdir()
    (tmp_path / "devices" / "platform").mkdir()
    (classes / "ttyS0" / "device").symlink_to(tmp_path / "devices" / "platform")
    (classes / "ptmx").mkdir()
    return classes


@pytest.mark.parametrize(
    ("port", "path"),
    [
        ("usb:0403:6001:A50285BI", "/dev/ttyUSB0"),
        ("usb:0403:6001:a50285bi", "/dev/ttyUSB0"),
        ("usb:0403:6001:FT9Z", "/dev/ttyUSB1"),
        ("usb:2e8a:0005", "/dev/ttyACM0"),
        ("/dev/serial/by-id/x", "/dev/serial/by-id/x"),
        ("loop://", "loop://"),
    ],
)
def test_a_port_is_found(ttys: Path, port: str, path: str) -> None:
    assert find_port(port, ttys) == path


def test_replugged_under_another_name_it_is_found_again(ttys: Path) -> None:
    (ttys / "ttyUSB0").rename(ttys / "ttyUSB7")
    assert find_port("usb:0403:6001:A50285BI", ttys) == "/dev/ttyUSB7"


def test_none_and_two_are_errors(ttys: Path) -> None:
    with pytest.raises(SourceError, match=r"nothing with the identity usb:0403:6001:A5 is plugged in"):
        find_port("usb:0403:6001:A5", ttys)
    with pytest.raises(SourceError, match=r"/dev/ttyUSB0, /dev/ttyUSB1 all have .* \(add the serial number"):
        find_port("usb:0403:6001", ttys)
    with pytest.raises(SourceError, match="nothing with the identity"):
        find_port("usb:0403:6001", ttys / "none")


@pytest.mark.parametrize("port", ["usb:", "usb:403:6001", "usb:0403", "usb:0403:6001:", "usb:zzzz:0001"])
def test_half_an_identity_is_refused(port: str) -> None:
    with pytest.raises(SourceError, match="is no USB identity"):
        check_usb(port)
