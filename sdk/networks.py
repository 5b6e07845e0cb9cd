"""The gateway's network, as files for systemd-networkd and wpa_supplicant, and its time zone."""

from __future__ import annotations

import hashlib
import ipaddress
import re
import zoneinfo
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from gateway.errors import ConfigError
from gateway.tables import Table

Files = dict[str, tuple[bytes, bool]]  # path -> content, and whether it is secret
_ROUNDS = 4096  # IEEE 802.11-2020, J.4: the pairwise master key of WPA2


class EthernetTable(Table, frozen=True):
    """A fixed address; left out, the gateway asks by DHCP."""

    address: Annotated[str, Meta(max_length=64)]  # with its prefix: 192.168.1.20/24
    gateway: Annotated[str, Meta(max_length=64)] = ""
    dns: tuple[str, ...] = ()
    ntp: tuple[str, ...] = ()


class WifiTable(Table, frozen=True):
    """A WPA2 network. The first in the list is preferred."""

    ssid: Annotated[str, Meta(min_length=1, max_length=32)]
    country: Annotated[str, Meta(pattern=r"^[A-Z]{2}$")]  # ISO 3166: which channels are allowed
    password_file: str = ""  # empty: an open network
    hidden: bool = False


def network_files(ethernet: EthernetTable | None, wifi: Sequence[WifiTable], path: Callable[[str], Path]) -> Files:
    """The files below /data/network; ConfigError when an address or a password cannot be one."""
    found: Files = {}
    if ethernet is not None:
        found["/network/20-wired.network"] = (_wired(ethernet).encode(), False)
    if wifi:
        found["/network/25-wireless.network"] = (b"[Match]\nType=wlan\n\n[Network]\nDHCP=yes\n", False)
        found["/network/wpa_supplicant-wlan0.conf"] = (_wireless(wifi, path).encode(), True)
    return found


def check_zone(name: str) -> None:
    """ConfigError when there is no such time zone."""
    known = zoneinfo.available_timezones()
    if name not in known if known else not re.fullmatch(r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+){0,2}", name):
        raise ConfigError(f"timezone: there is no {name[:50]!r}", hint="as in Europe/Berlin")


def _wired(table: EthernetTable) -> str:
    try:
        address = ipaddress.ip_interface(table.address)
        others = [str(ipaddress.ip_address(text)) for text in (*table.dns, *([table.gateway] if table.gateway else []))]
    except ValueError as error:
        raise ConfigError(f"ethernet: {error}", hint="192.168.1.20/24, and plain addresses") from error
    if "/" not in table.address:
        raise ConfigError(f"ethernet.address: {table.address} has no prefix length", hint=f"{table.address}/24?")
    for name in table.ntp:
        if not re.fullmatch(r"[A-Za-z0-9_.:-]{1,253}", name):
            raise ConfigError(f"ethernet.ntp: {name[:50]!r} is no host")
    lines = ["[Match]", "Type=ether", "", "[Network]", f"Address={address.with_prefixlen}"]
    lines += [f"Gateway={others[-1]}"] if table.gateway else []
    lines += [f"DNS={text}" for text in others[: len(table.dns)]] + [f"NTP={name}" for name in table.ntp]
    return "\n".join(lines) + "\n"


def _wireless(tables: Sequence[WifiTable], path: Callable[[str], Path]) -> str:
    text = f"country={tables[0].country}\n"
    for number, table in enumerate(tables):
        ssid = table.ssid.encode()
        if len(ssid) > 32:
            raise ConfigError(f"wifi: {table.ssid!r} is longer than 32 bytes", hint="is it the network's name?")
        # hex, so that no name can end the line; the key and not the password, which may be used elsewhere, too
        text += f"\nnetwork={{\n    ssid={ssid.hex()}\n    priority={len(tables) - number}\n"
        text += "    scan_ssid=1\n" if table.hidden else ""
        key = f"psk={_master_key(ssid, path(table.password_file))}" if table.password_file else "key_mgmt=NONE"
        text += f"    {key}\n}}\n"
    return text


def _master_key(ssid: bytes, path: Path) -> str:
    try:
        with path.open("rb") as file:
            password = file.read(200).rstrip(b"\r\n")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", hint="write the password there, with mode 600") from error
    if not 8 <= len(password) <= 63 or not all(32 <= byte < 127 for byte in password):
        raise ConfigError(f"{path}: no password of a Wi-Fi network", hint="8 to 63 ASCII characters")
    return hashlib.pbkdf2_hmac("sha1", password, ssid, _ROUNDS, 32).hex()
