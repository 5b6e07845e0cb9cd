"""Thumbnails of kept pictures, for uplinks that send no more than that: made by a short-lived child, one process a batch.

A thumbnail lies in a folder of its own, named after its picture, and goes when the picture goes. Which are missing is
told by the two folders alone, so nothing is forgotten over a restart, and an interrupted batch is made again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import Callable
from pathlib import Path

from gateway.child import Child, python_env, python_module
from gateway.contract import Severity

LONGEST = 320  # pixels of the longer side
MAX_PICTURE = 8 << 20  # bytes that are read of one
NO_DECODER, NO_ROOM = 3, 4  # exit statuses of the child: OpenCV is missing, the disk refuses
BATCH = 16  # pictures a child
BATCH_S = 60.0
_NAME = re.compile(r"([a-z0-9][a-z0-9_-]{0,120})\.(jpg|png)")

Notify = Callable[[str, str, Severity, str], None]


def thumbnail_name(picture: str) -> str:
    """The thumbnail's file name; "dock-1.png" has "dock-1-thumb.jpg"."""
    return f"{picture.rpartition('.')[0]}-thumb.jpg"


class Thumbnails:
    """Keeps a folder of thumbnails beside a folder of pictures.

    Args:
        pictures: what is kept; somebody else bounds it.
        folder: where the thumbnails are.
        on_made: called when there are new ones.
    """

    def __init__(self, pictures: Path, folder: Path, on_made: Callable[[], None], notify: Notify) -> None:
        self._pictures = pictures
        self._folder = folder
        self._on_made = on_made
        self._notify = notify
        self._wake = asyncio.Event()
        self._wake.set()  # there may be some from before
        self._failed: set[str] = set()
        self._told = ""

    def kept(self) -> None:
        """There is another picture."""
        self._wake.set()

    async def run(self) -> None:
        """Make what is missing, whenever something may be; ends by cancellation."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                while names := await asyncio.to_thread(self._missing):
                    if not await self._make(names[:BATCH]):
                        break
            except OSError as error:
                self._trouble(f"{self._folder}: {error.strerror}; check the disk")

    def _missing(self) -> list[str]:
        """Pictures without a thumbnail, oldest first; thumbnails without a picture are deleted. Blocks."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        pictures = set()
        with contextlib.suppress(FileNotFoundError):
            pictures = {name for name in os.listdir(self._pictures) if _NAME.fullmatch(name)}
        self._failed &= pictures
        wanted = {thumbnail_name(name) for name in pictures}
        there = set(os.listdir(self._folder))
        for name in there - wanted:
            (self._folder / name).unlink(missing_ok=True)
        return sorted(name for name in pictures - self._failed if thumbnail_name(name) not in there)

    async def _make(self, names: list[str]) -> bool:
        """One batch; False when no picture can be made into anything for now. What breaks the child is found alone."""
        status, said = await self._child(names)
        if status in (NO_DECODER, NO_ROOM):
            advice = "install the extra 'camera' (OpenCV)" if status == NO_DECODER else "check the disk"
            self._trouble(f"{said}; {advice}")
            return False
        left = await asyncio.to_thread(self._left, names)
        if len(left) < len(names):
            self._told = ""
            self._on_made()
        if status == 0 or len(names) == 1:
            for name in left:
                self._failed.add(name)
                reason = said or "it cannot be decoded"
                self._notify("pictures.no_thumbnail", "point", Severity.WARNING, f"{name}: no thumbnail: {reason}")
            return True
        return all([await self._make([name]) for name in left])

    def _left(self, names: list[str]) -> list[str]:
        """Of these, the pictures that are there and have no thumbnail."""
        return [
            name
            for name in names
            if (self._pictures / name).exists() and not (self._folder / thumbnail_name(name)).exists()
        ]

    async def _child(self, names: list[str]) -> tuple[int, str]:
        """Its exit status (minus the signal's number when one ended it) and its last line."""
        argv = python_module(
            "gateway.infer.thumbnail", str(os.getpid()), str(self._pictures), str(self._folder), *names
        )
        child = Child(argv, env=python_env(), nice=10, capture_stderr=True)
        async with child:
            try:
                async with asyncio.timeout(BATCH_S):
                    status = await child.wait()
            except TimeoutError:
                return -1, f"not done in {BATCH_S:.0f} s"
        return status, "".join(child.tail().splitlines()[-1:])

    def _trouble(self, message: str) -> None:
        if message != self._told:
            self._told = message
            self._notify("pictures.no_thumbnail", "raised", Severity.ALARM, f"no thumbnails are made: {message}")
