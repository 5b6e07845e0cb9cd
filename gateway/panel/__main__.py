"""`python -m gateway.panel`: started and watched by the gateway; ends with SIGTERM or with its parent."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from pathlib import Path

from gateway.child import die_with_parent
from gateway.errors import OctogateError


def main() -> int:
    die_with_parent(os.getppid())
    parser = argparse.ArgumentParser(prog="python -m gateway.panel", description=__doc__)
    parser.add_argument("--control", type=Path, required=True, help="the daemon's control socket")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8080, help="0 takes a free one (default: %(default)s)")
    parser.add_argument("--spool", type=Path, required=True, help="the spool's file")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        asyncio.run(_run(args))
    except OctogateError as error:
        print(f"octogate panel: {error}", file=sys.stderr)
        return 1
    return 0


async def _run(args: argparse.Namespace) -> None:
    from gateway.panel import server  # after the parent is watched: aiohttp is most of the start

    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    app = server.make_app(args.control, args.spool, args.host)
    async with server.serve(app, args.host, args.port) as address:
        logging.getLogger("gateway.panel").info("listening on %s", address)
        await ended.wait()


if __name__ == "__main__":
    sys.exit(main())
