"""Debian: where its packages come from, the root file system, and packages that are only unpacked."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path

from firmware_tools.imaging import host
from firmware_tools.imaging.host import BuildError

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
EPOCH = 1763856000  # of the root's own files; the image's time is taken from the commit
SUITES = {"trixie": "3.13", "bookworm": "3.11"}  # suite -> its Python
BASE = (
    *("systemd-sysv", "udev", "dbus", "kmod", "iproute2", "procps", "login", "mount", "less", "zstd", "tzdata"),
    *(
        "e2fsprogs",
        "fdisk",
        "rauc",
        "rauc-service",
        "libubootenv-tool",
        "systemd-timesyncd",
        "systemd-resolved",
        "systemd-zram-generator",
    ),
    *("openssh-server", "openssl", "ca-certificates", "nftables", "python3", "libstdc++6", "libgomp1"),
)
# A Python for this machine, unpacked and run where it is.
COMPILER = (
    *("python{python}-minimal", "libpython{python}-minimal", "libpython{python}-stdlib"),
    *("libc6", "zlib1g", "libexpat1"),
)
EXCLUDED = ("/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/doc/*", "/usr/share/lintian/*")
MAX_CONTROL = 64 << 20
_BINFMT = Path("/proc/sys/fs/binfmt_misc")


def mirrors() -> tuple[str, str]:
    """The addresses of Debian's main and security archive, as this machine's own apt has them.

    OCTOGATE_DEBIAN names the main archive on machines that are not Debian; security then comes from beside it.

    Raises BuildError: neither says where.
    """
    if given := os.environ.get("OCTOGATE_DEBIAN"):
        return given.rstrip("/"), given.rstrip("/") + "-security"
    listing = host.run("apt-get", "indextargets", "--format", "$(LABEL)\t$(REPO_URI)", "Created-By: Packages")
    found = dict(line.split("\t", 1) for line in reversed(listing.decode().splitlines()) if "\t" in line)
    if "Debian" not in found:
        hint = "run apt-get update, or set OCTOGATE_DEBIAN to the address of a Debian archive"
        raise BuildError("apt on this machine knows no Debian archive", hint=hint)
    main = found["Debian"].rstrip("/")
    return main, found.get("Debian-Security", main + "-security").rstrip("/")


def sources(suite: str, *, non_free_firmware: bool, backports: bool = False) -> str:
    """A sources.list for the suite."""
    main, security = mirrors()
    sections = "main non-free-firmware" if non_free_firmware else "main"
    lines = [
        f"{main} {suite} {sections}",
        f"{main} {suite}-updates {sections}",
        f"{security} {suite}-security {sections}",
    ]
    if backports:
        lines.append(f"{main} {suite}-backports {sections}")
    return "".join(f"deb [arch=arm64 signed-by={KEYRING}] {line}\n" for line in lines)


def make_root(target: Path, suite: str, packages: Sequence[str], *, non_free_firmware: bool) -> None:
    """The root file system as a tar, its packages configured; needs root."""
    enable_emulation()
    excluded = [f"--dpkgopt=path-exclude={path}" for path in EXCLUDED]
    host.run(
        *("mmdebstrap", "--mode=root", "--architectures=arm64", "--variant=essential", "--format=tar", "--quiet"),
        *(f"--include={','.join(packages)}", f"--keyring={KEYRING}", '--aptopt=APT::Install-Recommends "false"'),
        *("--dpkgopt=force-unsafe-io", *excluded, "--dpkgopt=path-include=/usr/share/doc/*/copyright"),
        *(suite, target, "-"),
        stdin=sources(suite, non_free_firmware=non_free_firmware),
        env={"SOURCE_DATE_EPOCH": str(EPOCH), "DEBIAN_FRONTEND": "noninteractive"},
    )


def enable_emulation() -> None:
    """Let the kernel start arm64 programs by qemu-user, as systemd-binfmt does where it runs."""
    if platform.machine() == "aarch64" or (_BINFMT / "qemu-aarch64").exists():
        return
    if not (_BINFMT / "register").exists():
        host.run("mount", "-t", "binfmt_misc", "binfmt_misc", _BINFMT)
    if not (_BINFMT / "qemu-aarch64").exists():
        (_BINFMT / "register").write_bytes(Path("/usr/lib/binfmt.d/qemu-aarch64.conf").read_bytes().rstrip(b"\n"))


class Archive:
    """Packages that are fetched, not installed; apt's lists are in a folder of our own."""

    def __init__(self, folder: Path, suite: str, *, backports: bool = False, architecture: str = "arm64") -> None:
        self._folder = folder
        for name in ("lists/partial", "archives/partial"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        listing = sources(suite, non_free_firmware=True, backports=backports).replace(
            "arch=arm64", f"arch={architecture}"
        )
        (folder / "sources.list").write_text(listing)
        self._release = ["--target-release", f"{suite}-backports"] if backports else []
        settings = {
            "Dir::Etc::SourceList": folder / "sources.list",
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::State::Lists": folder / "lists",
            "Dir::State::Status": "/dev/null",
            "Dir::Cache": folder,
            "APT::Architecture": architecture,
            "APT::Architectures": architecture,
            "APT::Sandbox::User": "root",
        }
        self._options = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]
        host.run("apt-get", "--quiet", *self._options, "update")

    def kernel(self) -> str:
        """The package that linux-image-arm64 stands for today."""
        shown = host.run("apt-cache", *self._options, *self._release, "show", "--no-all-versions", "linux-image-arm64")
        found = re.search(r"^Depends: .*?(linux-image-[a-z0-9.+~-]+-arm64)\b", shown.decode(), re.MULTILINE)
        if not found:
            raise BuildError("linux-image-arm64 names no kernel", hint="is the suite a released one?")
        return found[1]

    def fetch(self, names: Sequence[str], target: Path) -> None:
        """Put the packages' files into `target`."""
        target.mkdir(parents=True, exist_ok=True)
        host.run("apt-get", "--quiet", *self._options, *self._release, "download", *names, cwd=target)


def unpack(package: Path, target: Path) -> None:
    """A package's files, without its scripts. `dpkg-deb -x` would replace the link /lib by a folder."""
    target.mkdir(parents=True, exist_ok=True)
    tar = host.run("dpkg-deb", "--fsys-tarfile", package)
    host.run("tar", "-x", "--keep-directory-symlink", "--no-same-owner", "-C", target, stdin=tar)


def parse_status(text: str) -> tuple[dict[str, str], ...]:
    """The stanzas of dpkg's status file or of `dpkg-deb --field`: field -> value, continued lines left out.

    Raises ValueError: a line that is neither field nor continuation, or more than MAX_CONTROL characters.
    """
    if len(text) > MAX_CONTROL:
        raise ValueError("dpkg's status is longer than any")
    found = []
    for stanza in re.split(r"\n[ \t]*\n", text.strip("\n")):
        fields: dict[str, str] = {}
        for line in stanza.splitlines():
            name, colon, value = line.partition(":")
            if line.startswith((" ", "\t", "#")):
                continue
            if not colon or not name or " " in name:
                raise ValueError(f"not a field of dpkg's status: {line[:80]!r}")
            fields[name] = value.strip()
        if fields:
            found.append(fields)
    return tuple(found)
