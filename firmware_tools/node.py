"""`./inv node.deploy`, `node.monitor`, `node.list` and `node.flash`.

Exit status: 0 done, or nothing to do; 1 the new firmware did not start and the old one runs again; 2 nothing was
changed: no port, no board, wrong arguments; 3 the node runs neither firmware, or its monitor heard no HELLO.
"""

from __future__ import annotations

import argparse
import asyncio
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import Progress as Bar

from firmware_tools import boards, flash
from firmware_tools.boards import ANY, Board
from firmware_tools.deploy import FIRMWARE, NodeDead, Outcome, deploy, read_firmware
from firmware_tools.listing import listing, ports, table
from firmware_tools.monitor import monitor
from firmware_tools.wire import Wire
from gateway.acquire.identity import find_port
from gateway.errors import SourceError

OK, TAKEN_BACK, UNCHANGED, DEAD = 0, 1, 2, 3
_err = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit status."""
    args = _parser().parse_args(argv)
    try:
        if args.run is _flash:
            return int(args.run(args))
        return asyncio.run(_awaited(args))
    except SourceError as error:
        _err.print(f"octogate: {error}")
        return DEAD if isinstance(error, NodeDead) else UNCHANGED
    except KeyboardInterrupt:
        return OK if args.run is _monitor else UNCHANGED


async def _awaited(args: argparse.Namespace) -> int:
    return int(await args.run(args))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="node", description=__doc__)
    commands = parser.add_subparsers(required=True)
    put = commands.add_parser("deploy", help="put the node's firmware on its board")
    put.set_defaults(run=_deploy)
    put.add_argument("--port", required=True)
    put.add_argument("--firmware", type=Path, default=FIRMWARE)
    put.add_argument("--config", type=Path)
    put.add_argument("--dry-run", action="store_true")
    watch = commands.add_parser("monitor", help="show what a node says")
    watch.set_defaults(run=_monitor)
    watch.add_argument("--port", required=True)
    watch.add_argument("--seconds", type=float, default=0.0)
    which = commands.add_parser("list", help="which board is on which port")
    which.set_defaults(run=_list)
    which.add_argument("--port", action="append", default=[])
    which.add_argument("--ask-all", action="store_true")
    which.add_argument("--json", action="store_true")
    burn = commands.add_parser("flash", help="put MicroPython itself on a board")
    burn.set_defaults(run=_flash)
    burn.add_argument("file", type=Path)
    burn.add_argument("--port", default="")
    burn.add_argument("--drive", type=Path)
    burn.add_argument("--dry-run", action="store_true")
    burn.add_argument("--yes", action="store_true")
    for command in (put, watch, burn):
        command.add_argument("--board", default="")
    return parser


def _board(args: argparse.Namespace) -> Board:
    """The board that was named, or that the port's USB identity tells."""
    if args.board:
        return boards.named(args.board)
    device = find_port(args.port)
    found = next((f for f in ports() if device in (f.port, f.by_id)), None)
    return boards.boards().get(found.board, ANY) if found else ANY


async def _deploy(args: argparse.Namespace) -> int:
    files = read_firmware(args.firmware, args.config)
    board = _board(args)
    async with Wire(args.port, board) as wire:
        with Bar(console=_err, transient=True, disable=not _err.is_terminal) as bar:
            task = bar.add_task("looking at the board", total=None)
            outcome = await deploy(
                wire, files, board, replace_config=args.config is not None, dry_run=args.dry_run,
                progress=lambda name, done, total: bar.update(task, description=name, completed=done, total=total),
            )  # fmt: skip
    return _told(outcome, args.dry_run)


def _told(outcome: Outcome, dry_run: bool) -> int:
    plan, verb = outcome.plan, "would write" if dry_run else "wrote"
    for name in plan.names:
        print(f"{verb} {name}, {(plan.old | plan.added)[name]} bytes{'' if name in plan.old else ' (new)'}")
    if not plan.names:
        print("nothing differs")
    if dry_run:
        return OK
    if outcome.failed:
        _err.print(f"octogate: {outcome.failed}")
    if outcome.hello is None:
        _err.print("octogate: the firmware from before does not answer either (./inv node.monitor shows what it says)")
        return DEAD
    print(f"node '{outcome.hello.node}' runs firmware {outcome.hello.firmware}")
    if outcome.failed:
        _err.print("octogate: the files from before are in place again")
        return TAKEN_BACK
    return OK


async def _monitor(args: argparse.Namespace) -> int:
    async with Wire(args.port, _board(args)) as wire:
        hello = await monitor(wire, lambda line: print(line, flush=True), args.seconds)
    return OK if hello else DEAD


async def _list(args: argparse.Namespace) -> int:
    listed = await listing(args.port, args.ask_all)
    print(msgspec.json.encode(listed).decode() if args.json else table(listed))
    return OK


def _flash(args: argparse.Namespace) -> int:
    try:
        with open(args.file, "rb") as file:
            data = file.read(flash.MAX_FILE + 1)
    except OSError as error:
        raise SourceError(f"cannot read {args.file}: {error.strerror}") from error
    if args.file.suffix.lower() == ".uf2":
        uf2 = flash.check_uf2(data)
        board = flash.board_of(uf2)
        if args.drive is None:
            raise SourceError("where to?", hint="hold BOOTSEL while plugging the board in; --drive names its drive")
        says = flash.check_drive(args.drive, uf2.family)
        print(f"{args.file.name}: {uf2.blocks} blocks for {boards.named(board).title}; the drive says {says}")
        if args.dry_run or not _agreed(args, f"copy it to {args.drive}"):
            return OK if args.dry_run else UNCHANGED
        print(flash.copy_uf2(data, args.drive))
        return OK
    if not args.port:
        raise SourceError("where to?", hint="--port names the port of the ESP board")
    command = flash.esptool_command(args.file, data, find_port(args.port), _board(args))
    print(shlex.join(["python", *command[1:]]))
    if args.dry_run:
        return OK
    flash.require_esptool()
    if not _agreed(args, f"erase the board on {args.port}"):
        return UNCHANGED
    return UNCHANGED if subprocess.run(command, check=False).returncode else OK


def _agreed(args: argparse.Namespace, what: str) -> bool:
    """Ask a person; without one only --yes counts."""
    if args.yes:
        return True
    if not sys.stdin.isatty():
        raise SourceError(f"this will {what}", hint="say so with --yes")
    return input(f"{what}? [y/N] ").strip().lower() in ("y", "yes")


if __name__ == "__main__":
    sys.exit(main())
