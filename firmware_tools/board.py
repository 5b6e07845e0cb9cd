"""What differs from gateway board to gateway board, as data: firmware_tools/boards/gateway/<name>.toml."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from gateway.errors import ConfigError

FOLDER = Path(__file__).with_name("boards") / "gateway"
MAX_BYTES = 64 << 10

Mib = Annotated[int, Meta(ge=1, le=65536)]
PackageName = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9+.-]+\Z", max_length=100)]
Pattern = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_*?./-]+\Z", max_length=200)]


class Board(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One kind of gateway.

    Attributes:
        name: of its file.
        overlays: folders of firmware_tools/rootfs, laid over the root one after the other.
        cmdline: of the kernel; the boot script adds the slot.
        boot_mib, slot_mib, data_mib: sizes of the partitions, in MiB; data grows at first boot.
        packages: Debian packages beside those that every image has.
        non_free_firmware: takes packages from Debian's section of that name too.
        backports: the kernel is the suite's newer one (Debian's backports).
        initrd: modules for the disk and the watchdog, by name, in order.
        modules: more modules of the root, as in firmware_tools/imaging/modules.txt.
        boot_packages: Debian packages that are unpacked for `boot_files`, and not installed.
        boot_files: file on the boot partition -> where it is in those packages or in the kernel's (`dtb/...`); a
            pattern of several files has a name that ends in `/`.
        boot_texts: text files on the boot partition, name -> content.
        hybrid_mbr: the boot partition is in the MBR, too, for firmware that cannot read GPT.
    """

    title: str
    cmdline: Annotated[str, Meta(pattern=r'^[^"$;\n]*\Z', max_length=500)]
    name: str = ""
    overlays: tuple[Annotated[str, Meta(pattern=r"^[a-z0-9]+\Z")], ...] = ("all",)
    boot_mib: Mib = 64
    slot_mib: Mib = 768
    data_mib: Mib = 64
    packages: tuple[PackageName, ...] = ()
    non_free_firmware: bool = False
    backports: bool = False
    initrd: tuple[Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]+\Z")], ...] = ()
    modules: tuple[Pattern, ...] = ()
    boot_packages: tuple[PackageName, ...] = ()
    boot_files: dict[str, Pattern] = {}
    boot_texts: dict[str, Annotated[str, Meta(max_length=8192)]] = {}
    hybrid_mbr: bool = False

    def sizes_mib(self) -> dict[str, int]:
        """Partition -> its size in MiB, in their order on the disk."""
        slot = self.slot_mib
        return {"boot": self.boot_mib, "ubootenv": 1, "rootA": slot, "rootB": slot, "data": self.data_mib}


def names() -> tuple[str, ...]:
    """The boards there are."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


def load(name: str) -> Board:
    """The board of that name. Raises ConfigError: there is none, or its file is wrong."""
    if name not in names():
        raise ConfigError(f"there is no gateway board '{name}'", hint=f"there are: {', '.join(names())}")
    path = FOLDER / f"{name}.toml"
    with path.open("rb") as file:
        return parse(file.read(MAX_BYTES + 1), name)


def parse(content: bytes, name: str) -> Board:
    """A board from its file's content. Raises ConfigError: it is no TOML, or a key is wrong."""
    if len(content) > MAX_BYTES:
        raise ConfigError(f"board '{name}': larger than {MAX_BYTES} bytes", hint="it is a few settings")
    try:
        board = msgspec.convert(tomllib.loads(content.decode()), Board)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError, msgspec.ValidationError) as error:
        raise ConfigError(f"board '{name}': {error}", hint="firmware_tools/board.py says what each key is") from error
    return msgspec.structs.replace(board, name=name)
