"""Tells the service manager how we are: systemd's sd_notify protocol, `man 3 sd_notify`.

Datagrams of NAME=value to the socket that NOTIFY_SOCKET names. Without it, or without WATCHDOG_USEC, nothing is sent
and no timer runs.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Mapping

log = logging.getLogger("octogate")


class ServiceManager:
    """Whoever started us, if it wants to be told.

    Args:
        address: of its socket, a path or "@" and an abstract name; empty: nobody wants to know.
        watchdog_s: it ends us when it hears nothing for so long; 0: it does not watch.
    """

    def __init__(self, address: str = "", watchdog_s: float = 0.0) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog_s = watchdog_s if address else 0.0

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> ServiceManager:
        """As the environment says; a watchdog that is meant for another process is not ours."""
        meant = environment.get("WATCHDOG_PID", "") in ("", str(os.getpid()))
        usec = environment.get("WATCHDOG_USEC", "")
        watchdog_s = int(usec) / 1e6 if meant and usec.isdecimal() and len(usec) < 20 else 0.0
        return cls(environment.get("NOTIFY_SOCKET", ""), watchdog_s)

    def tell(self, *words: str) -> None:
        """Send, for example, "READY=1". A manager that is gone is no reason to stop."""
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            try:
                channel.setblocking(False)
                channel.sendto("\n".join(words).encode(), self._address)
            except OSError as error:
                log.warning("the service manager cannot be told %s: %s", words[0], error)

    async def watch(self, healthy: Callable[[], bool]) -> None:
        """Say that we are alive, twice in each period of the watchdog, as long as `healthy`. Ends only without one."""
        while self.watchdog_s:
            if healthy():
                self.tell("WATCHDOG=1")
            else:
                log.error("not healthy: the watchdog is not told, and will restart us")
            await asyncio.sleep(self.watchdog_s / 2)
