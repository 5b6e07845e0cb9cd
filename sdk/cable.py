"""A serial line without hardware that can be unplugged."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tty
from pathlib import Path


class Cable:
    """Two pseudo terminals joined back to back; the gateway's end is named by a link that comes and goes with it."""

    def __init__(self, port: Path) -> None:
        self.port = port
        self._far = os.openpty()
        self.far_end = os.ttyname(self._far[1])
        self._near: tuple[int, int] | None = None
        self._loop = asyncio.get_running_loop()
        for fd in self._far:
            tty.setraw(fd)
        os.set_blocking(self._far[0], False)
        self._loop.add_reader(self._far[0], self._to_near)
        self.plug()

    @property
    def plugged(self) -> bool:
        return self._near is not None

    def plug(self) -> None:
        self._near = near = os.openpty()
        for fd in near:
            tty.setraw(fd)
        os.set_blocking(near[0], False)
        self.port.unlink(missing_ok=True)
        self.port.symlink_to(os.ttyname(near[1]))
        self._loop.add_reader(near[0], self._to_far)

    def unplug(self) -> None:
        assert self._near
        self._loop.remove_reader(self._near[0])
        for fd in self._near:
            os.close(fd)
        self._near = None
        self.port.unlink()

    def say(self, noise: bytes) -> None:
        """Puts bytes on the line that no device sent."""
        assert self._near
        os.write(self._near[0], noise)

    def close(self) -> None:
        if self._near:
            self.unplug()
        self._loop.remove_reader(self._far[0])
        for fd in self._far:
            os.close(fd)

    def _to_near(self) -> None:
        data = os.read(self._far[0], 4096)
        if self._near:
            os.write(self._near[0], data)

    def _to_far(self) -> None:
        assert self._near
        with contextlib.suppress(BlockingIOError):
            os.write(self._far[0], os.read(self._near[0], 4096))
