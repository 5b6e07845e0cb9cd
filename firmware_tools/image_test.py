"""`./inv image.run` and `./inv image.test`: the image of a board in the emulator, by hand or through its checks."""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import zstandard
from rich.console import Console as Screen

from firmware_tools import emulate
from firmware_tools.emulate import Machine
from firmware_tools.image_checks import report
from firmware_tools.image_checks.bench import laid
from firmware_tools.image_checks.run import CHECKS, LONG_CHECKS, Outcome, Word, named, run, title
from firmware_tools.image_checks.target import Emulated, OverSsh, Target
from gateway.errors import OctogateError

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "build" / "image"
CARD = 2 << 30  # bytes: larger than the image, so that the data partition has room to grow
CUTS, LONG_CUTS = 5, 30
OK, FAILED, MISUSED = 0, 1, 2
_HOLE = bytes(1 << 16)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit status: 0 fine, 1 a check failed, 2 it could not be begun."""
    args = _parser().parse_args(argv)
    try:
        if args.command == "list":
            for check in LONG_CHECKS:
                print(f"{check.__name__.replace('_', '-'):28} {title(check)}")
            return OK
        if args.command == "run":
            return _run(args)
        return asyncio.run(_test(args))
    except OctogateError as error:
        print(f"octogate: {error}", file=sys.stderr)
        return MISUSED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("image_test", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="name the checks")
    for name, what in (("run", "the console in this terminal"), ("test", "the checks, with a report")):
        sub = commands.add_parser(name, help=what)
        sub.add_argument("--board", default="qemu")
        sub.add_argument("--image", type=Path, help="default: what image.build made")
        if name == "run":
            sub.add_argument("--fresh", action="store_true", help="forget what the last run has written")
            continue
        sub.add_argument("--bundle", type=Path, help="the update; default: what image.build made")
        sub.add_argument(
            "--long", action="store_true", help=f"{LONG_CUTS} power cuts instead of {CUTS}, and more clocks"
        )
        sub.add_argument("--cuts", type=int, help="this many power cuts")
        sub.add_argument("--seed", type=int, help="of the random moments; printed in the report")
        sub.add_argument("--checks", default="", help="only these, with commas between them")
        sub.add_argument("--host", default="", help="a real board: [user@]address for SSH")
        sub.add_argument("--report", type=Path, help="folder of the report; default: build/image/BOARD/test")
    return parser


# --- the console in this terminal ---------------------------------------------------------------------------------


def _run(args: argparse.Namespace) -> int:
    _emulated_only(args.board)
    drive = OUTPUT / args.board / "run.img"
    image = _image(args)
    if args.fresh or not drive.exists() or drive.stat().st_mtime < image.stat().st_mtime:
        make_drive(image, drive)
    print(f"octogate: {drive} (what it writes stays; --fresh forgets it). Ctrl-A X ends it.", file=sys.stderr)
    command = emulate.interactive(drive)
    os.execvp(command[0], command)


def _emulated_only(board: str) -> None:
    if board != "qemu":
        raise OctogateError(f"there is no emulator of {board}", hint="--board qemu; a real board: --host ADDRESS")
    missing = [package for name, package in emulate.PACKAGES.items() if not (shutil.which(name) or Path(name).exists())]
    if missing:
        raise OctogateError("the emulator is not installed", hint=f"sudo apt-get install {' '.join(missing)}")


def _image(args: argparse.Namespace) -> Path:
    found: Path = args.image or OUTPUT / args.board / f"octogate-{args.board}.img.zst"
    if not found.is_file():
        raise OctogateError(f"there is no image {found}", hint=f"make it: ./inv image.build --board {args.board}")
    return found


def make_drive(image: Path, drive: Path, size: int = CARD) -> None:
    """Write an image, compressed or not, to a sparse file of at least `size` bytes.

    Raises:
        OctogateError: it is no whole zstd file.
    """
    drive.parent.mkdir(parents=True, exist_ok=True)
    try:
        with image.open("rb") as packed, drive.open("wb") as out:
            source = zstandard.ZstdDecompressor().stream_reader(packed) if image.suffix == ".zst" else packed
            while piece := source.read(len(_HOLE)):
                if piece == _HOLE[: len(piece)]:
                    out.seek(len(piece), os.SEEK_CUR)
                else:
                    out.write(piece)
            out.truncate(max(out.tell(), size))
    except zstandard.ZstdError as error:
        raise OctogateError(f"{image} cannot be unpacked: {error}", hint="build it again") from error


# --- the checks -----------------------------------------------------------------------------------------------------


async def _test(args: argparse.Namespace) -> int:
    folder: Path = args.report or OUTPUT / args.board / "test"
    folder.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240  (nothing else runs yet)
    checks = named([name for name in args.checks.split(",") if name], LONG_CHECKS if args.long else CHECKS)
    seed = random.randrange(1 << 32) if args.seed is None else args.seed
    cuts = args.cuts or (LONG_CUTS if args.long else CUTS)
    screen, outcomes = Screen(), list[Outcome]()
    started = time.monotonic()

    def say(what: str) -> None:  # line by line, so that it is read in a CI's log, too
        screen.print(f"{time.monotonic() - started:6.0f} s  {what}", markup=False, highlight=False, soft_wrap=True)

    say(f"{args.host or 'the image boots'}; {len(checks)} checks, seed {seed}, {folder / 'console.log'}")
    with tempfile.TemporaryDirectory(prefix=".work-", dir=folder) as work:
        async with (
            _target(args, folder, Path(work), seed) as target,
            laid(target, Path(work), _bundle(args), cuts, seed) as bench,
        ):
            async for one in run(bench, checks, lambda name: say(f"        {name} ...")):
                outcomes.append(one)
                say(f"{one.word:8}{one.name}: {one.detail}")
            figures = {**bench.figures, "seed of the random moments": str(seed)}
    screen.print(report.table(outcomes))
    for name, value in figures.items():
        screen.print(f"{name}: {value}", markup=False)
    (folder / "report.html").write_text(report.page(args.board, outcomes, figures))
    (folder / "junit.xml").write_bytes(report.junit(args.board, outcomes))
    screen.print(f"{report.summary(outcomes)}; {folder / 'report.html'}", markup=False)
    return FAILED if any(one.word is Word.FAILED for one in outcomes) else OK


def _bundle(args: argparse.Namespace) -> Path | None:
    found: Path = args.bundle or OUTPUT / args.board / f"octogate-{args.board}.raucb"
    if args.bundle and not found.is_file():
        raise OctogateError(f"there is no bundle {found}")
    return found if found.is_file() else None


@asynccontextmanager
async def _target(args: argparse.Namespace, folder: Path, work: Path, seed: int) -> AsyncIterator[Target]:
    """What is tested, with a shell that answers."""
    if args.host:
        yield OverSsh(args.board, args.host)
    else:
        _emulated_only(args.board)
        (folder / "console.log").unlink(missing_ok=True)
        drive = work / "drive.img"
        make_drive(_image(args), drive)
        async with Machine(folder, drive, chance=random.Random(seed)) as machine:
            emulated = Emulated(machine)
            await emulated.until_up()
            yield emulated


if __name__ == "__main__":
    sys.exit(main())
