"""The subcommands about models; what they need is imported when they run, so that the daemon does without."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, get_args

from gateway.infer.ranking import Objective

BENCH = """\
Measure which runtime, variant, device and number of threads is best for a model on this machine, and still right on its
golden samples. MODEL is a model of the config, or a bundle file; all models of the config when it is left out. The
choice is remembered for the gateway, which uses it at once when it runs; not with a bundle file, --dry-run or
another --objective. --explain measures nothing: it loads every candidate and prints what its runtime did with it.
Exit status: 0 measured, 3 measured and the choice changed, 1 a model runs on no candidate, 2 misused.
"""


def add_commands(commands: Any, epilog: str) -> None:
    """`octogate bench` as a subcommand."""
    bench = commands.add_parser("bench", help="Measure what runs a model best here", description=BENCH, epilog=epilog)
    bench.add_argument("what", nargs="?", default="", metavar="MODEL|BUNDLE.octo", help="default: all models")
    bench.add_argument("--model", default="", metavar="NAME", help="the same, for a model of the config only")
    bench.add_argument(
        "--seconds", type=float, default=3.0, metavar="S", help="per good candidate; default %(default)g"
    )
    bench.add_argument("--objective", choices=get_args(Objective), help="instead of the config's inference.objective")
    bench.add_argument("--dry-run", action="store_true", help="remember nothing")
    bench.add_argument("--explain", action="store_true", help="what each backend does with the model, not how fast")
    bench.add_argument("--json", action="store_true", help="as JSON instead of text")
    bench.add_argument(
        "-c", "--config", type=Path, default=Path("gateway.toml"), metavar="FILE", help="default: %(default)s"
    )
    bench.set_defaults(command=_bench)


def _bench(args: argparse.Namespace) -> int:
    from gateway.infer import place_command

    return place_command.command(args)
