"""`./inv image.build`: the image of a gateway, from Debian's packages, wheels and this repository.

Writes into build/image/<board>/, see docs/image.md: octogate-<board>.img (sparse) and .img.zst, .img.bmap,
.img.manifest.json, sbom.spdx.json, and the update octogate-<board>.raucb.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from firmware_tools import board as boards
from firmware_tools.imaging import debian, host, signing
from firmware_tools.imaging.host import BuildError
from firmware_tools.imaging.recipe import Choice, Recipe
from firmware_tools.imaging.stages import Runner, cache_folder
from firmware_tools.imaging.tree import REPOSITORY
from gateway.errors import OctogateError

# What a build runs -> the Debian package that has it.
PROGRAMS = {
    "arch-test": "arch-test",  # mmdebstrap asks it whether arm64 programs run
    "bmaptool": "bmap-tools",
    "depmod": "kmod",
    "dpkg-deb": "dpkg",
    "git": "git",
    "mcopy": "mtools",
    "debugfs": "e2fsprogs",
    "mkfs.ext4": "e2fsprogs",
    "mkfs.vfat": "dosfstools",
    "mkimage": "u-boot-tools",
    "mksquashfs": "squashfs-tools",
    "mmdebstrap": "mmdebstrap",
    "qemu-aarch64-static": "qemu-user-static",
    "rauc": "rauc",
    "sfdisk": "fdisk",
    "systemd-sysusers": "systemd",
    "zstd": "zstd",
    str(debian.KEYRING): "debian-archive-keyring",
}


def build(
    name: str,
    suite: str = "trixie",
    *,
    output: Path | None = None,
    refresh: bool = False,
    console: Console | None = None,
) -> Path:
    """Build the image of a board and give the folder of the results.

    Args:
        name: of the board.
        suite: of Debian; trixie or bookworm.
        output: the folder; build/image/<board> without it.
        refresh: take Debian's newest packages even if those of an earlier build are there.

    Raises:
        BuildError: a program is missing or failed, or this user is not root.
        ConfigError: there is no such board.
    """
    boards.load(name)  # a name that is wrong is said before anything is made
    require_host()
    signing.update_keys()
    recipe = plan(name, suite, output)
    console = console or Console(stderr=True, highlight=False)
    started = time.monotonic()
    runner = Runner(cache_folder(), console, frozenset({"debian", "kernel", "compiler"} if refresh else ()))
    console.print(f"[bold]{recipe.choice.image}[/bold] {recipe.version}, Debian {suite}")
    for stage in recipe.stages():
        runner.run(stage)
    console.print(f"{recipe.choice.output}: built in {time.monotonic() - started:.0f} s")
    return recipe.choice.output


def plan(name: str, suite: str, output: Path | None) -> Recipe:
    """What would be built; nothing is written for it."""
    board = boards.load(name)
    folder = output or REPOSITORY / "build/image" / name
    return Recipe(Choice(board, suite, source_date_epoch(), folder, signing.places()), cache_folder())


def source_date_epoch() -> int:
    """SOURCE_DATE_EPOCH, or the time of the commit, or that of Debian's part."""
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        if not given.isdecimal() or len(given) > 10:
            raise BuildError(f"SOURCE_DATE_EPOCH={given[:40]!r} is no time", hint="seconds since 1970, or unset it")
        return int(given)
    said = host.run("git", "log", "-1", "--format=%ct", cwd=REPOSITORY, accept=(0, 128)).decode().strip()
    return int(said) if said.isdecimal() else debian.EPOCH


def require_host() -> None:
    """Raises BuildError: what a build needs is not here; the hint has the command that helps."""
    if missing := host.missing(PROGRAMS):
        raise BuildError(
            f"programs are missing that are in {', '.join(missing)}", hint=f"sudo apt-get install {' '.join(missing)}"
        )
    if os.geteuid() != 0:
        raise BuildError("an image has files of several users, which only root can make", hint="sudo ./inv image.build")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 built, 1 failed, 2 misused."""
    parser = argparse.ArgumentParser(prog="image", description="Build the image of a gateway.")
    parser.add_argument("--board", required=True, help=f"one of {', '.join(boards.names())}")
    parser.add_argument("--suite", default="trixie", choices=sorted(debian.SUITES), help="of Debian")
    parser.add_argument("--output", type=Path, help="folder of the results; build/image/BOARD without it")
    parser.add_argument("--refresh", action="store_true", help="take Debian's newest packages")
    parser.add_argument("--dry-run", action="store_true", help="only list the stages")
    args = parser.parse_args(arguments)
    try:
        if args.dry_run:
            return list_stages(plan(args.board, args.suite, args.output))
        build(args.board, args.suite, output=args.output, refresh=args.refresh)
    except OctogateError as error:
        print(f"octogate: {error}", file=sys.stderr)
        return 1
    return 0


def list_stages(recipe: Recipe) -> int:
    """Name the stages, and which of them would have to be run."""
    console = Console(highlight=False)
    runner = Runner(cache_folder(), console)
    for stage in recipe.stages():
        state = "as before" if runner.fresh(stage) else "to do"
        console.print(f"{stage.name:<10} {state:<10} {stage.title}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
