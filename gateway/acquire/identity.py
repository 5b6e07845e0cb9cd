"""Which serial port is meant: a path, or the USB identity of the adapter, which outlives replugging.

`usb:VID:PID` or `usb:VID:PID:SERIAL` (hexadecimal, as `lsusb` prints them) is looked up in sysfs each time the port is
opened: a device that comes back under another name is found again. Layout: Documentation/ABI/stable/sysfs-bus-usb.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from gateway.errors import SourceError

_TTYS = Path("/sys/class/tty")
_USB = re.compile(r"usb:([0-9a-fA-F]{4}):([0-9a-fA-F]{4})(?::(.{1,126}))?")
_UP = 6  # folders between a tty and its USB device: interface, port and the like
_HINT = "plug it in; `lsusb` shows VID:PID, `ls -l /dev/serial/by-id /dev/serial/by-path` the ports"


def is_usb(port: str) -> bool:
    """Whether it names an adapter by its USB identity, right or wrong, and not a path."""
    return port.startswith("usb:")


def check_usb(port: str) -> None:
    """Raises SourceError unless it is `usb:VID:PID` or `usb:VID:PID:SERIAL`."""
    if not _USB.fullmatch(port):
        raise SourceError(f"'{port}' is no USB identity", hint="usb:VID:PID or usb:VID:PID:SERIAL, as in usb:0403:6001")


def find_port(port: str, ttys: Path = _TTYS) -> str:
    """The path of the port; anything that is no USB identity is one already.

    Raises:
        SourceError: nothing of that identity is plugged in, or more than one.
    """
    if not is_usb(port):
        return port
    check_usb(port)
    wanted = port.lower()
    found = sorted(name for name, identity in _plugged(ttys) if _matches(wanted, identity))
    if not found:
        raise SourceError(f"nothing with the identity {port} is plugged in", hint=_HINT)
    if len(found) > 1:
        raise SourceError(
            f"{', '.join(f'/dev/{name}' for name in found)} all have the identity {port}",
            hint="add the serial number, or name a port of /dev/serial/by-path",
        )
    return f"/dev/{found[0]}"


def _matches(wanted: str, identity: str) -> bool:
    return identity == wanted if wanted.count(":") > 2 else identity.startswith(wanted + ":")


def _plugged(ttys: Path) -> Iterator[tuple[str, str]]:
    """Name and identity (lower case, serial number included) of each tty that is on USB."""
    try:
        names = list(ttys.iterdir())
    except OSError:
        return
    for tty in names:
        device = tty / "device"
        if not device.exists():  # a console, a pseudo terminal
            continue
        folder = device.resolve()
        for parent in (folder, *list(folder.parents)[:_UP]):
            if vid := _text(parent / "idVendor"):
                yield tty.name, f"usb:{vid}:{_text(parent / 'idProduct')}:{_text(parent / 'serial')}".lower()
                break


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace")[:256].strip()
    except OSError:
        return ""
