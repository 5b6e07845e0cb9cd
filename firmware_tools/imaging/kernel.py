"""Kernel modules that a board needs, and the initrd that loads the first of them."""

from __future__ import annotations

import lzma
import shutil
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from firmware_tools.imaging import cpio, host
from firmware_tools.imaging.host import BuildError

HERE = Path(__file__).parent
MAX_MODULES = 10_000


def parse_dependencies(text: str) -> dict[str, tuple[str, ...]]:
    """depmod's modules.dep: module -> what must be loaded before it, the nearest first.

    Raises ValueError: a line that is none, or more than MAX_MODULES.
    """
    found: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        name, colon, needs = line.partition(":")
        if not colon or not name or number > MAX_MODULES:
            raise ValueError(f"modules.dep:{number}: not a line of it: {line[:80]!r}")
        found[name] = tuple(needs.split())
    return found


def parse_patterns(text: str) -> tuple[str, ...]:
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return tuple(line for line in lines if line)


def select(dependencies: Mapping[str, tuple[str, ...]], patterns: Iterable[str]) -> tuple[str, ...]:
    """The modules whose path below kernel/ (without .ko*) or bare name fits a pattern, and what they need; sorted."""
    wanted = tuple(patterns)
    chosen: set[str] = set()
    for name, needs in dependencies.items():
        path = name.removeprefix("kernel/").partition(".ko")[0]
        bare = path.rpartition("/")[2]
        if any(fnmatchcase(path if "/" in pattern else bare, pattern) for pattern in wanted):
            chosen |= {name, *needs}
    return tuple(sorted(chosen))


def load_order(dependencies: Mapping[str, tuple[str, ...]], names: Iterable[str]) -> tuple[str, ...]:
    """What to load, and in which order, so that the modules called `names` are in. One that is built in is skipped."""
    order: list[str] = []
    by_name = {bare_name(path): path for path in dependencies}
    for path in filter(None, (by_name.get(name.replace("-", "_")) for name in names)):
        order += [item for item in (*reversed(dependencies[path]), path) if item not in order]
    return tuple(order)


def bare_name(path: str) -> str:
    return path.rpartition("/")[2].partition(".ko")[0].replace("-", "_")


def install_modules(unpacked: Path, version: str, root: Path, patterns: Iterable[str]) -> int:
    """Copy the modules that fit into `root` and index them; how many. `unpacked` is the kernel's package."""
    source, target = unpacked / "usr/lib/modules" / version, root / "usr/lib/modules" / version
    chosen = select(dependencies_of(unpacked, version), patterns)
    for name in chosen:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)
    for name in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
        shutil.copyfile(source / name, target / name)
    host.run("depmod", "-b", root, version)
    return len(chosen)


def dependencies_of(unpacked: Path, version: str) -> dict[str, tuple[str, ...]]:
    """Of all modules in the kernel's package; depmod is asked once."""
    folder = unpacked / "usr/lib/modules" / version
    if not (unpacked / "lib").exists():
        (unpacked / "lib").symlink_to("usr/lib")  # depmod looks there
    if not (folder / "modules.dep").exists():
        host.run("depmod", "-b", unpacked, version)
    return parse_dependencies((folder / "modules.dep").read_text())


def initrd(unpacked: Path, version: str, busybox: bytes, names: Iterable[str]) -> bytes:
    """The initrd: busybox, init.sh, the modules `names` and what they need. Not compressed: it is 3 MB."""
    folder = unpacked / "usr/lib/modules" / version
    order = load_order(dependencies_of(unpacked, version), names)
    modules = [cpio.file(f"modules/{bare_name(name)}.ko", module(folder / name)) for name in order]
    listing = "".join(f"{bare_name(name)}.ko\n" for name in order).encode()
    return cpio.archive(
        [
            *(cpio.folder(name) for name in ("bin", "modules")),
            cpio.file("bin/busybox", busybox, executable=True),
            cpio.link("bin/sh", "busybox"),
            cpio.file("init", (HERE / "init.sh").read_bytes(), executable=True),
            cpio.file("modules/order", listing),
            *modules,
        ]
    )


def module(path: Path) -> bytes:
    """A module, uncompressed. Raises BuildError: it is packed in a way we do not know."""
    content = path.read_bytes()
    if path.name.endswith(".ko.xz"):
        return lzma.decompress(content)
    if not path.name.endswith(".ko"):
        raise BuildError(f"{path.name}: an unknown kind of kernel module", hint="a kernel with .ko or .ko.xz is needed")
    return content
