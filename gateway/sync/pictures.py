"""The picture plane: kept pictures, in blocks, when everything else has been sent.

The receiver's retained word names the picture it was sent last and the first block of it that it lacks: that is where
sending goes on after whatever broke. How far sending may run ahead of that word is bounded by a few blocks, so pictures
never stand between the line and a reading for long. A file that the receiver has confirmed is noted by name; losing the
note costs one block a picture, for the receiver then says that it has it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gateway.blocks import BLOCK, MAX_PICTURE, NAME, Block, PictureAck, count

log = logging.getLogger("octogate")

AHEAD = 16  # blocks beyond what the receiver has said
ANSWER_S = 10.0  # so long it has to say something; doubled each time it does not
ANSWER_MAX_S = 300.0
REFUSALS = 3  # whole files whose digest was wrong at the receiver: then the next picture's turn
MAX_NOTES = 8 << 20  # bytes of the file of notes that are read


@dataclass(frozen=True)
class Picture:
    name: str
    data: bytes
    sha256: bytes

    def block(self, number: int) -> Block:
        data = self.data[number * BLOCK : (number + 1) * BLOCK]
        return Block(self.name, number, self.sha256, len(self.data), data)


class Shelf:
    """The folder of kept pictures, and which of them are delivered. Calls block: use a thread."""

    def __init__(self, folder: Path, notes: Path) -> None:
        self._folder = folder
        self._notes = notes
        self._done: set[str] | None = None

    def next(self, skip: set[str]) -> Picture | None:
        """The oldest that is neither delivered nor to be skipped; what cannot be read is added to `skip`."""
        while True:
            names = self._waiting(skip)
            if not names:
                return None
            try:
                with (self._folder / names[0]).open("rb") as file:
                    data = file.read(MAX_PICTURE + 1)
            except OSError:  # the oldest goes first when the folder is full: gone, or unreadable
                data = b""
            if 0 < len(data) <= MAX_PICTURE:
                return Picture(names[0], data, hashlib.sha256(data).digest())
            skip.add(names[0])

    def delivered(self, name: str) -> None:
        """Note it. Not synced: at worst the receiver is asked once more."""
        self._loaded().add(name)
        with contextlib.suppress(OSError), self._notes.open("a") as file:
            file.write(name + "\n")

    def _waiting(self, skip: set[str]) -> list[str]:
        """Oldest first: by the number in the name, for dates of files follow every step of the clock."""
        done, found = self._loaded(), []
        with contextlib.suppress(FileNotFoundError), os.scandir(self._folder) as entries:
            for entry in entries:
                if NAME.fullmatch(entry.name) and entry.name not in done and entry.name not in skip:
                    with contextlib.suppress(FileNotFoundError):
                        found.append((_number_of(entry.name), entry.stat().st_mtime_ns, entry.name))
        return [name for _, _, name in sorted(found)]

    def _loaded(self) -> set[str]:
        """The notes, read once; those of pictures that are gone are forgotten on this occasion."""
        if self._done is None:
            noted: set[str] = set()
            with contextlib.suppress(OSError), self._notes.open(errors="replace") as file:
                noted = set(file.read(MAX_NOTES).split("\n"))
            there: set[str] = set()
            with contextlib.suppress(FileNotFoundError):
                there = set(os.listdir(self._folder))
            self._done = noted & there
            part = self._notes.with_suffix(".part")
            with contextlib.suppress(OSError):
                part.write_text("".join(f"{name}\n" for name in sorted(self._done)))
                part.replace(self._notes)
        return self._done


def _number_of(name: str) -> int:
    """As gateway/store/pictures.py numbers them; -1 for one of an older version, which are in the order of their dates."""
    digits = name.partition("-")[0]
    return int(digits) if digits.isdecimal() and len(digits) >= 8 else -1


class Pictures:
    """Sends one picture after the other.

    Args:
        send: publishes a block; False when it could not.
        room: whether `send` may be called now: nothing more important waits.
    """

    def __init__(self, shelf: Shelf, send: Callable[[Block], bool], room: Callable[[], bool]) -> None:
        self._shelf = shelf
        self._send = send
        self._room = room
        self._wake = asyncio.Event()
        self._flowing = False
        self._ack: PictureAck | None = None  # the receiver's last word, until it is used
        self._skip: set[str] = set()
        self.delivered = 0

    def start(self) -> None:
        """The connection is up, and what the receiver retained has come."""
        self._flowing = True
        self._wake.set()

    def stop(self) -> None:
        """The connection is gone."""
        self._flowing = False
        self._wake.set()

    def kept(self) -> None:
        """There is another picture in the folder."""
        self._wake.set()

    def push(self) -> None:
        """There may be room now."""
        if self._flowing:
            self._wake.set()

    def acknowledged(self, ack: PictureAck) -> None:
        self._ack = ack
        self._wake.set()

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._flowing and (picture := await asyncio.to_thread(self._shelf.next, self._skip)) is not None:
                await self._deliver(picture)

    async def _deliver(self, picture: Picture) -> None:
        """Until the receiver has it, refuses it, or the connection is gone."""
        blocks, name = count(len(picture.data)), picture.name
        has = sent = 0  # blocks: the receiver's by its word, and ours
        wait_s, refusals = ANSWER_S, 0
        while self._flowing:
            if (ack := self._answer(picture)) is not None:
                if ack.done:
                    await asyncio.to_thread(self._shelf.delivered, name)
                    self.delivered += 1
                    return
                refusals += ack.refused
                if refusals >= REFUSALS:
                    log.warning(
                        "uplink: %s: the receiver found another digest %d times; left for later", name, refusals
                    )
                    self._skip.add(name)
                    return
                # back only if it has lost what it had: going back at each word that moves nothing would never end
                sent = ack.next if ack.next < has or ack.refused else max(sent, ack.next)
                has, wait_s = ack.next, ANSWER_S
            while sent < min(blocks, has + AHEAD) and self._room() and self._send(picture.block(sent)):
                sent += 1
            try:
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
            except TimeoutError:
                sent, wait_s = has, min(2 * wait_s, ANSWER_MAX_S)
            self._wake.clear()

    def _answer(self, picture: Picture) -> PictureAck | None:
        """The receiver's word, if there is a new one about this very file."""
        ack, self._ack = self._ack, None
        if ack is None or ack.name != picture.name or ack.sha256 != picture.sha256.hex():
            return None
        return ack if 0 <= ack.next <= count(len(picture.data)) else None
