"""The command line: `octogate run | check | plan | bench | status | ledger | export | bundle | model | form | cameras`.
The only place that exits.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gateway import __version__
from gateway.config import Config, PipelineTable, load
from gateway.errors import ConfigError, OctogateError

OK, FAILED, MISUSED = 0, 1, 2  # exit statuses; 2 also for a config that cannot be used
CHANGES, DOUBTFUL = 3, 4  # of plan

DESCRIPTION = """\
The Octogate gateway: reads sensors and cameras, runs models, loses nothing.

  octogate check  --config gateway.toml    is this config usable? says what to mend
  octogate plan   NEW.toml --config gateway.toml    what would change if NEW.toml ran instead?
  octogate run    --config gateway.toml    run the gateway until SIGTERM or Ctrl-C
  octogate bench  --config gateway.toml    which runtime, device and threads are best for each model here?
  octogate status --config gateway.toml    what a running gateway is doing
  octogate ledger --config gateway.toml    what was taken, delivered, dropped, missing
  octogate export --config gateway.toml    a stream as CSV, JSON lines or Parquet
  octogate model swap state NEW.octo --config gateway.toml    another bundle for a model, while the gateway runs
  octogate bundle verify MODEL.octo --key KEY.pem    may this model bundle be believed?
  octogate form read FORM.toml PICTURE.jpg --model MODEL.octo    what a filled-in paper form says; also new, print
  octogate cameras                         which cameras are there, and a test picture
  octogate record --config gateway.toml    what the sources send, to a file; `replay` plays it back, `diff` compares
"""
PLAN = """\
Say what would change if another config ran: tables, devices, memory, disk, wear, backlog. Changes nothing. Relative
paths in NEW.toml count from its own folder: put it beside the present one. Its exit status is 0 when nothing would change, 3 when something would, 4 when something would and deserves a
second thought (the lines with WARNING); 1 and 2 as ever, 2 also when NEW.toml cannot be used.
"""
STATUS = """\
Ask a running gateway what it is doing, over its control socket. With --wear: what was written to the disk, by day and by
stream, from the spool's books; the gateway need not run.
"""
EPILOG = "A commented example of every setting is gateway/example.toml. Exit status: 0 fine, 1 failed, 2 misused."


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    args = _parser(alone=arguments[:1] == ["run"]).parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)-7s %(message)s", stream=sys.stderr)
    try:
        status: int = args.command(args)
    except ConfigError as error:
        print(f"octogate: {error}", file=sys.stderr)
        return MISUSED
    except OctogateError as error:
        print(f"octogate: {error}", file=sys.stderr)
        return FAILED
    return status


def _parser(*, alone: bool) -> argparse.ArgumentParser:
    """Of all commands, or `alone` of those here: a gateway that starts waits for no module of the others."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("octogate", description=DESCRIPTION, epilog=EPILOG, formatter_class=raw)
    parser.add_argument("--version", action="version", version=f"octogate {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, command, what in (
        ("run", _run, "Run the gateway. SIGTERM or Ctrl-C ends it within two seconds with everything stored."),
        ("check", _check, "Check a config: names the file, the key, what is wrong and what to do. Changes nothing."),
        ("plan", _plan, PLAN),
        ("status", _status, STATUS),
    ):
        sub = commands.add_parser(name, help=what.partition(".")[0], description=what, epilog=EPILOG)
        sub.add_argument(
            "-c", "--config", type=Path, default=Path("gateway.toml"), metavar="FILE", help="default: %(default)s"
        )
        sub.set_defaults(command=command)
        if name == "plan":
            sub.add_argument("new", type=Path, metavar="NEW.toml", help="the config that might come")
        if name != "run":
            sub.add_argument("--json", action="store_true", help="as JSON instead of text")
        if name == "status":
            sub.add_argument("--wear", action="store_true", help="what the disk had to take, by day and stream")
    if not alone:
        _add_others(commands)
    return parser


def _add_others(commands: Any) -> None:
    from gateway import camera_commands, form_commands, shift_commands
    from gateway.infer import bench_commands, bundle_commands, swap_commands
    from gateway.store import commands as store_commands

    for module in (
        store_commands, bench_commands, bundle_commands, camera_commands, form_commands, swap_commands, shift_commands,
    ):  # fmt: skip
        module.add_commands(commands, EPILOG)


def _run(args: argparse.Namespace) -> int:
    gc.disable()  # what is loaded stays: until `_settle` there is nothing to find
    from gateway.sync.desired import Desired

    desired = Desired(args.config)
    config = desired.load()
    from gateway.app import run  # the other commands need none of it

    told_to_end = False

    async def until_signalled() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()

        def end() -> None:
            nonlocal told_to_end
            told_to_end = True  # also while it is stopping in order to start again
            stop.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, end)
        await run(config, stop, ready=lambda: _settle(desired.running), desired=desired)

    try:
        with desired.guard():
            asyncio.run(until_signalled())
    finally:
        gc.enable()
        if desired.again and not told_to_end:  # the same process with the same command line, from the start
            logging.info("starting again")
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    return OK


def _settle(path: Path) -> None:
    """Everything runs: what was made so far stays, so the collector need not look at it again and again."""
    gc.collect()
    gc.freeze()
    gc.enable()
    logging.info("running: %s", path)


def _check(args: argparse.Namespace) -> int:
    try:
        config = load(args.config)
    except ConfigError as error:
        if not args.json:
            raise
        print(_json({"ok": False, "error": error.what, "hint": error.hint}))
        return MISUSED
    if args.json:
        print(_json({"ok": True, "gateway": config.gateway.id}))
    else:
        print(_summary(args.config, config))
    return OK


def _summary(path: Path, config: Config) -> str:
    lines = [f"{path}: fine"]
    lines += [f"  source    {s.name}: {getattr(s, 'of', s.__struct_config__.tag)}" for s in config.source]
    lines += [f"  model     {m.name}: {m.bundle}" for m in config.model]
    lines += [
        f"  pipeline  {p.name}: {p.source}{'/' + p.stream if p.stream else ''}{_closer(p)} -> {p.model}"
        for p in config.pipeline
    ]
    lines += [f"  rule      {r.name}: {r.__struct_config__.tag}" for r in config.rule]
    lines += [f"  uplink    {u.name}: {u.host}:{u.port}" for u in config.uplink] or ["  uplink    none"]
    lines.append(f"  panel     {f'http://{config.panel.host}:{config.panel.port}' if config.panel else 'none'}")
    if config.trust.allow_unsigned:
        lines.append("  WARNING   trust.allow_unsigned: unsigned models are run; for development only")
    return "\n".join(lines)


def _closer(pipeline: PipelineTable) -> str:
    if not pipeline.after:
        return f" (up to {pipeline.max_fps:g} pictures a second)" if pipeline.max_fps else ""
    what = "/".join(pipeline.labels) or "everything"
    return f" -> {what} of {pipeline.after} from {pipeline.min_score:g}, up to {pipeline.max_regions} regions"


def _plan(args: argparse.Namespace) -> int:
    from gateway.plan import plan, plan_text

    planned = plan(load(args.config), load(args.new))
    print(_json(planned) if args.json else plan_text(planned))
    if planned.warnings:
        return DOUBTFUL
    return CHANGES if planned.changes else OK


def _status(args: argparse.Namespace) -> int:
    config = load(args.config)
    if args.wear:
        from gateway.store.worn import read_worn, worn_text

        worn = read_worn(config.spool_path, config.store.card_tbw, config.store.wear_gb_day)
        print(_json(worn) if args.json else worn_text(worn))
        return OK
    from gateway.contract import GatewayStatus
    from gateway.control import Client
    from gateway.report import status_text

    async def ask() -> GatewayStatus:
        async with Client.connect(config.control_path) as client:
            return await client.ask("status", GatewayStatus)

    status = asyncio.run(ask())
    print(_json(status) if args.json else status_text(status))
    return OK


def _json(value: object) -> str:
    import msgspec

    return msgspec.json.encode(value).decode()


if __name__ == "__main__":
    sys.exit(main())
