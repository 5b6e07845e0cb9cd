"""`octogate cameras` as a subcommand. What it runs is imported then, so that a daemon without cameras does not carry it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

WHAT = """\
List the cameras that the kernel knows (V4L2): their lasting names for `device = ...`, formats, sizes, rates and controls.
With --picture one of them takes a picture; a gateway that uses that camera must be stopped meanwhile.
"""


def add_commands(commands: Any, epilog: str) -> None:
    """Declare `cameras` among the subcommands of `octogate`."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "cameras", help="List the cameras, take a test picture", description=WHAT, epilog=epilog
    )
    parser.add_argument("--json", action="store_true", help="as JSON instead of text")
    parser.add_argument("--device", default="", metavar="PATH", help="only this one")
    parser.add_argument("--picture", type=Path, metavar="FILE.jpg", help="take one and write it there")
    parser.add_argument("--size", default="640x480", metavar="WxH", help="of the picture; default: %(default)s")
    parser.set_defaults(command=_cameras)


def _cameras(args: argparse.Namespace) -> int:
    from gateway import cameras

    return cameras.run(args)
