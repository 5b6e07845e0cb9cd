"""`octogate record`, `replay` and `diff`; what they need is imported when they run."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
from pathlib import Path
from typing import Any

from gateway.config import Config, load
from gateway.errors import ControlError

RECORD = (
    "Write what the sources send, with its timing, to one file. The running gateway does it beside its work; when none "
    "runs, the sources are run here: what nodes then hand over is in the recording and in no spool. Ctrl-C ends it."
)
REPLAY = (
    "Play a recording into a new spool, through the sources, pipelines, rules and models of a config. The same recording, "
    "config and bundles give the same spool, byte for byte. Nothing is sent."
)
DIFF = (
    "Compare the inferences and events of two spools, best of two replays of one recording. "
    "Exit status 1 when they differ."
)
LOOK_S = 2.0  # how often the gateway is asked how the recording goes


def add_commands(commands: Any, epilog: str) -> None:
    """As subcommands of `octogate`."""
    record = commands.add_parser("record", help="Record the sources to a file", description=RECORD, epilog=epilog)
    record.add_argument(
        "-o", "--out", type=Path, required=True, metavar="FILE", help="a new file, such as shift.octorec"
    )
    record.add_argument("--source", action="append", default=[], metavar="NAME", help="only this; may be repeated")
    record.add_argument("--seconds", type=float, default=0.0, metavar="N", help="end by itself; default: on Ctrl-C")
    record.set_defaults(command=_record)
    replay = commands.add_parser("replay", help="Play a recording into a new spool", description=REPLAY, epilog=epilog)
    replay.add_argument("recording", type=Path, metavar="FILE", help="made by octogate record")
    replay.add_argument(
        "-d", "--data", type=Path, required=True, metavar="DIR", help="for the spool; without one so far"
    )
    replay.add_argument("--speed", type=_speed, default=100.0, metavar="X", help="1 to 100; default: %(default)g")
    replay.add_argument("--json", action="store_true", help="as JSON instead of text")
    replay.set_defaults(command=_replay)
    for sub in (record, replay):
        sub.add_argument(
            "-c", "--config", type=Path, default=Path("gateway.toml"), metavar="FILE", help="default: %(default)s"
        )
    diff = commands.add_parser("diff", help="Compare two spools", description=DIFF, epilog=epilog)
    diff.add_argument("a", type=Path, metavar="A", help="a data folder or its spool.db")
    diff.add_argument("b", type=Path, metavar="B", help="the other")
    diff.add_argument(
        "--tolerance", type=float, default=0.0, metavar="X", help="scores and values may differ by so much; default: 0"
    )
    diff.add_argument("--json", action="store_true", help="as JSON instead of text")
    diff.set_defaults(command=_diff)


def _speed(text: str) -> float:
    speed = float(text)
    if not 1 <= speed <= 100:
        raise argparse.ArgumentTypeError("from 1 to 100")
    return speed


def _record(args: argparse.Namespace) -> int:
    return asyncio.run(_recorded(load(args.config), args.out.absolute(), args.source, args.seconds))


async def _recorded(config: Config, path: Path, sources: list[str], seconds: float) -> int:
    from gateway.alone import record_alone
    from gateway.control import Client
    from gateway.taps import RecordStatus

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if seconds > 0:
        loop.call_later(seconds, stop.set)
    async with contextlib.AsyncExitStack() as stack:
        try:
            client = await stack.enter_async_context(Client.connect(config.control_path))
        except ControlError:
            _say("no gateway runs with this config: the sources are run here, and nothing of it goes to its spool")
            status = await record_alone(config, path, sources, stop)
        else:
            status = await client.ask("record", RecordStatus, do="start", path=str(path), sources=sources)
            while status.running and not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), LOOK_S)
                status = await client.ask("record", RecordStatus, do="status")
            status = await client.ask("record", RecordStatus, do="stop")
    _say(f"{status.path}: {status.records} records, {status.bytes} bytes, {status.lost} without room")
    if status.error:
        _say(status.error)
    return 1 if status.error or status.lost else 0


def _replay(args: argparse.Namespace) -> int:
    import msgspec

    from gateway.replay import replay

    done = replay(args.recording, load(args.config), args.data, args.speed)
    if args.json:
        print(msgspec.json.encode(done).decode())
        return 0
    print(f"{args.recording}: {done.seconds:g} s, {done.records} records")
    if done.lost:
        print(f"  {done.lost} more ({done.lost_bytes} bytes) had found no room when it was recorded")
    if not done.whole:
        print(f"  it was cut off: {done.unread} bytes at its end cannot be used")
    for stream, n in sorted(done.streams.items()):
        print(f"  {n:>9}  {stream}")
    print(f"{done.spool}\n  batches  {done.digest}\n  file     {done.file}")
    return 0


def _diff(args: argparse.Namespace) -> int:
    import msgspec

    from gateway.compare import compare, diff_text

    found = compare(args.a, args.b, args.tolerance)
    print(msgspec.json.encode(found).decode() if args.json else diff_text(found))
    return 1 if found.different else 0


def _say(text: str) -> None:
    sys.stderr.write(f"octogate record: {text}\n")
