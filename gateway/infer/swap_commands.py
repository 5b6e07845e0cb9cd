"""`octogate model list | swap | rollback`: which bundle a running gateway's models have, and another one for them."""

from __future__ import annotations

import argparse
import asyncio
import secrets
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from gateway import command
from gateway.command import ModelRollbackArgs, ModelSwap, ModelSwapArgs
from gateway.config import load
from gateway.control import Client
from gateway.errors import ConfigError, ControlError

OK, FAILED, BACK = 0, 1, 3  # exit statuses
LOOK_S = 0.2
AWAY_S = 60.0  # a gateway that starts anew has so long
TAKE_S = 600.0  # for a gigabyte onto a slow card

LIST = """\
Which bundle each model of the running gateway has, and how far a swap is.
"""
SWAP = """\
Give a model another bundle while it works: it is copied, verified, tested in a worker of its own, run beside the present
one for --shadow seconds if you want that, then takes over between two inputs, and is on trial for --trial seconds. On
wrong golden samples, three crashes or too high a latency the one before comes back by itself. The command tells each step
and waits for the end; without it (Ctrl-C) the swap goes on. Exit status: 0 it stays, 1 it was not taken and the one before
never stopped, 3 it was rolled back, 2 misused.
"""
ROLLBACK = """\
Call a swap off that is under way, or go back to the bundle before. Exit status: 0 done, 1 there is none, 2 misused.
"""


def add_commands(commands: Any, epilog: str) -> None:
    """`octogate model` with its subcommands."""
    what = "Swap the bundle of a model while the gateway runs"
    model = commands.add_parser("model", help=what, description=f"{what}.", epilog=epilog)
    actions = model.add_subparsers(required=True, metavar="ACTION")

    def add(name: str, text: str, run: Callable[[argparse.Namespace], int]) -> Any:
        sub = actions.add_parser(name, help=text.partition(":")[0].partition(".")[0].strip(), description=text)
        sub.add_argument(
            "-c", "--config", type=Path, default=Path("gateway.toml"), metavar="FILE", help="default: %(default)s"
        )
        sub.add_argument("--json", action="store_true", help="as JSON instead of text")
        sub.set_defaults(command=run)
        return sub

    add("list", LIST, _list)
    swap, rollback = add("swap", SWAP, _swap), add("rollback", ROLLBACK, _rollback)
    for sub in (swap, rollback):
        sub.add_argument("name", metavar="NAME", help="of the model in the config")
    swap.add_argument("file", type=Path, metavar="FILE", help="a .octo file, which the gateway's user can read")
    for option, default, meaning in (
        ("--shadow", 0.0, "seconds to compute beside the present one, and count where they differ"),
        ("--every", 1, "of so many inputs one goes to the shadow"),
        ("--trial", 600.0, "seconds to be watched"),
        ("--slower", 10.0, "times the present median latency that the 99th percentile may be at most"),
    ):
        swap.add_argument(
            option, type=type(default), default=default, metavar="N", help=f"{meaning}; default %(default)g"
        )


def _list(args: argparse.Namespace) -> int:
    models = asyncio.run(_models(load(args.config).control_path))
    print(_json(models) if args.json else "\n".join(map(line, models)) or "no models")
    return OK


def _swap(args: argparse.Namespace) -> int:
    path = load(args.config).control_path
    wanted = _wanted(args)
    tell = (lambda _: None) if args.json else _say
    status = asyncio.run(_swap_and_watch(path, wanted, tell))
    if args.json:
        print(_json(status))
    return {"settled": OK, "rolled back": BACK}.get(status.outcome, FAILED)


def _wanted(args: argparse.Namespace) -> ModelSwapArgs:
    """Raises `ConfigError`: an option is out of its range."""
    wanted = ModelSwapArgs(args.name, str(args.file.absolute()), args.shadow, args.every, args.trial, args.slower)
    try:
        return msgspec.convert(msgspec.structs.asdict(wanted), ModelSwapArgs)
    except msgspec.ValidationError as error:
        raise ConfigError(f"octogate model swap: {error}", hint="octogate model swap --help") from error


def _rollback(args: argparse.Namespace) -> int:
    status = asyncio.run(_ask(load(args.config).control_path, "model.rollback", ModelRollbackArgs(args.name)))
    print(_json(status) if args.json else line(status))
    return OK


async def _swap_and_watch(path: Path, wanted: ModelSwapArgs, tell: Callable[[str], None]) -> ModelSwap:
    """Ask for it, then follow it to its end, over restarts of the gateway too."""
    status = await _ask(path, "model.swap", wanted)
    number, told = status.number, ""
    seen = time.monotonic()
    while status.number == number and status.step != "settled":
        if (now := progress(status)) != told:
            tell(now)
            told = now
        await asyncio.sleep(LOOK_S)
        try:
            status = next(model for model in await _models(path) if model.model == wanted.model)
            seen = time.monotonic()
        except ControlError:
            if time.monotonic() - seen > AWAY_S:
                raise
    if status.number != number:
        raise ControlError(f"model '{wanted.model}': another swap has begun meanwhile", hint="octogate model list")
    tell(progress(status))
    return status


async def _ask(path: Path, op: str, args: ModelSwapArgs | ModelRollbackArgs) -> ModelSwap:
    """A command, which is audited as every one is."""
    async with Client.connect(path) as client:
        id = secrets.token_hex(8)
        answer = await client.ask(
            "command", command.Answer, id=id, op=op, deadline=TAKE_S, args=msgspec.structs.asdict(args)
        )
    return command.result(answer, ModelSwap)


async def _models(path: Path) -> tuple[ModelSwap, ...]:
    async with Client.connect(path) as client:
        return await client.ask("models", tuple[ModelSwap, ...])


def progress(status: ModelSwap) -> str:
    """How far it is, in words."""
    if status.step == "settled":
        return f"{status.outcome}: {status.reason}" if status.reason else status.outcome
    if status.step == "shadow":
        seen = status.shadow
        return f"shadow: {seen.compared} compared, {seen.disagreed} differ, {seen.otherwise} in more than numbers"
    return status.step


def line(status: ModelSwap) -> str:
    """One model, for people."""
    text = f"{status.model}: {status.bundle or 'nothing serves'}, from the {status.source}"
    if status.previous:
        text += f"; before: {status.previous}"
    if status.candidate:
        text += f"; under way: {status.candidate}, {progress(status)}"
    elif status.outcome:
        text += f"; last swap: {progress(status)}"
    return text


def _say(text: str) -> None:
    print(text, file=sys.stdout, flush=True)


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
