"""The panel's process, kept running: no request from outside can delay or crash acquisition."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gateway.child import Child, python_env, python_module
from gateway.config import Config, PanelTable
from gateway.contract import Severity

BACKOFF_S = (0.5, 1.0, 2.0, 5.0, 15.0, 60.0)
STABLE_S = 60.0

Notify = Callable[[str, str, Severity, str], None]


async def supervise(config: Config, table: PanelTable, notify: Notify) -> None:
    """Start the panel, and again when it ends; ends by cancellation, with the process."""
    argv = python_module(
        "gateway.panel",
        *("--control", str(config.control_path), "--spool", str(config.spool_path)),
        *("--host", table.host, "--port", str(table.port)),
    )
    loop = asyncio.get_running_loop()
    tries = 0
    while True:
        started = loop.time()
        child = Child(argv, env=python_env(), capture_stderr=True, nice=5)
        async with child:
            status = await child.wait()
        tries = 0 if loop.time() - started > STABLE_S else tries + 1
        wait = BACKOFF_S[min(tries, len(BACKOFF_S)) - 1]
        last = child.tail().splitlines()[-1:] or [f"status {status}"]
        message = f"http://{table.host}:{table.port}: the panel ended: {last[0]}; again in {wait:g} s"
        notify("panel.stopped", "point", Severity.WARNING, message)
        await asyncio.sleep(wait)
