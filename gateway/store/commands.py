"""The subcommands about what is stored; what they need is imported when they run, so that the daemon does without."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

LEDGER = (
    "What was taken, delivered, dropped and is missing, by stream. Reads the spool, also while the gateway runs; what "
    "consumers have confirmed is as it was stored last, seconds to minutes ago. Exit status 1 when a number is missing."
)
EXPORT = "Writes a stream as CSV, JSON lines or Parquet. Reads the spool, also while the gateway runs."


def add_commands(commands: Any, epilog: str) -> None:
    """`octogate ledger` and `octogate export` as subcommands."""
    ledger = commands.add_parser(
        "ledger", help="What was taken, delivered, dropped, missing", description=LEDGER, epilog=epilog
    )
    ledger.add_argument("--check", action="store_true", help="verify the checksum of every batch, too")
    ledger.add_argument("--json", action="store_true", help="as JSON instead of text")
    ledger.set_defaults(command=_ledger)
    export = commands.add_parser(
        "export", help="A stream as CSV, JSON lines or Parquet", description=EXPORT, epilog=epilog
    )
    export.add_argument("-s", "--stream", required=True, help="such as press-4/power, a pipeline's name, or events")
    export.add_argument(
        "--from", dest="since", metavar="TIME", help="ISO 8601, UTC when it names no zone; default: all"
    )
    export.add_argument("--to", dest="until", metavar="TIME", help="up to but without it")
    export.add_argument(
        "-f", "--format", choices=("csv", "jsonl", "parquet"), default="csv", help="default: %(default)s"
    )
    export.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: standard output (not for parquet)")
    export.set_defaults(command=_export)
    for sub in (ledger, export):
        sub.add_argument(
            "-c", "--config", type=Path, default=Path("gateway.toml"), metavar="FILE", help="default: %(default)s"
        )


def _ledger(args: argparse.Namespace) -> int:
    from gateway.store import ledger

    return ledger.command(args)


def _export(args: argparse.Namespace) -> int:
    from gateway.store import export

    return export.command(args)
