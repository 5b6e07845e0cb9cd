"""Puts what the data partition says into effect: host name, network, time zone, firewall, SSH. Standard library only.

/data/network/*.network, *.netdev, *.link     systemd-networkd's, before those of the image
/data/network/wpa_supplicant-<port>.conf      Wi-Fi on that port
/data/etc/timezone                            "Europe/Berlin"
/data/ssh/authorized_keys                     turns SSH on, for these keys
/data/etc/octogate.toml                       a panel that listens on more than loopback opens its port

Runs at every boot, before the network. A file that cannot be used is named, and the rest is still done.
"""

import shutil
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

DATA, RUN = Path("/data"), Path("/run")
LOOPBACK = ("127.", "localhost", "::1")
MAX_FILE = 1 << 20


def main() -> int:
    """0 when everything there could be used."""
    faults = [fault for step in (host_name, network, names, time_zone, firewall, ssh) if (fault := tried(step))]
    for fault in faults:
        print(f"octogate: {fault}", file=sys.stderr)
    return 1 if faults else 0


def tried(step: Callable[[], None]) -> str:
    try:
        step()
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        return f"{step.__name__.replace('_', ' ')}: {error}"
    return ""


def text(path: Path) -> str:
    if path.stat().st_size > MAX_FILE:
        raise ValueError(f"{path}: larger than {MAX_FILE} bytes")
    return path.read_text()


def host_name() -> None:
    socket.sethostname(text(DATA / "identity/id").strip()[:63])


def network() -> None:
    target = RUN / "systemd/network"
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(DATA.glob("network/*")):
        if path.suffix in (".network", ".netdev", ".link") and path.is_file():
            shutil.copyfile(path, target / path.name)
            (target / path.name).chmod(0o644)
    for path in sorted(DATA.glob("network/wpa_supplicant-*.conf")):
        port = path.stem.removeprefix("wpa_supplicant-")
        wifi = RUN / "wpa_supplicant"
        wifi.mkdir(mode=0o700, exist_ok=True)
        shutil.copyfile(path, wifi / path.name)
        systemctl("start", "--no-block", f"octogate-wifi@{port}.service")


def names() -> None:
    """DNS. As Debian enables it, everything else waits for it at boot: tens of seconds on a slow processor."""
    systemctl("start", "--no-block", "systemd-resolved.service")


def time_zone() -> None:
    """/etc/localtime points to /run/octogate-localtime, as the root is read-only."""
    wanted = DATA / "etc/timezone"
    name = text(wanted).strip() if wanted.exists() else "UTC"
    zone = Path("/usr/share/zoneinfo", name)
    if ".." in zone.parts or not zone.is_file():
        raise ValueError(f"{wanted}: there is no time zone {name!r}; it is UTC")
    shutil.copyfile(zone, RUN / "octogate-localtime")


def firewall() -> None:
    ports = open_ports(tomllib.loads(text(DATA / "etc/octogate.toml")), (DATA / "ssh/authorized_keys").exists())
    rules = f"add element inet octogate open_tcp {{ {', '.join(map(str, ports))} }}\n" if ports else ""
    (RUN / "octogate-open-ports.nft").write_text(rules)


def open_ports(config: dict[str, object], ssh: bool) -> list[int]:
    """What is to be reached from outside: SSH if it is on, the panel if it listens there."""
    ports = [22] if ssh else []
    panel = config.get("panel")
    if isinstance(panel, dict) and not str(panel.get("host", "127.0.0.1")).startswith(LOOPBACK):
        port = panel.get("port", 8080)
        if not isinstance(port, int) or not 0 < port < 65536:
            raise ValueError(f"panel.port: {port!r} is no port; it stays closed")
        ports.append(port)
    return ports


def ssh() -> None:
    if (DATA / "ssh/authorized_keys").exists():
        systemctl("start", "--no-block", "ssh.service")


def systemctl(*words: str) -> None:
    subprocess.run(["systemctl", *words], check=True)


if __name__ == "__main__":
    sys.exit(main())
