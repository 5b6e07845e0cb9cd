"""A reader of videos that does what the test tells it: `python -I -S fake_video_child.py MODE DESCRIPTOR`.

It imports nothing of the project, so that a hundred of them start quickly.
"""

import json
import mmap
import os
import socket
import struct
import sys
import time

OPENED, PICTURE, ALIVE, ENDED, FAULT, UNUSABLE = range(1, 7)
JPEG = b"\xff\xd8 a picture \xff\xd9"


def main(mode: str, descriptor: int) -> None:
    channel = socket.socket(fileno=descriptor)
    setup = json.loads(channel.recv(4096))
    memory = mmap.mmap(setup["memory"], 2 * setup["slot_bytes"])

    def tell(kind: int, slot: int = 0, size: int = 0, text: str = "", dropped: int = 0, bad: int = 0) -> None:
        channel.send(struct.pack("<BBIqII", kind, slot, size, time.monotonic_ns(), dropped, bad) + text.encode())

    def show(slot: int, dropped: int = 0, bad: int = 0) -> None:
        at = slot * setup["slot_bytes"]
        memory[at : at + len(JPEG)] = JPEG
        tell(PICTURE, slot, len(JPEG), dropped=dropped, bad=bad)

    if mode == "fault":
        tell(FAULT, text="Connection refused")
        return
    if mode == "unusable":
        tell(UNUSABLE, text="No module named 'av'; install octogate[video]")
        return
    tell(OPENED, text="h264 640 x 480, 25 fps")
    if mode == "nonsense":
        channel.send(b"\x63nonsense")
    elif mode == "wild slot":
        tell(PICTURE, 7, 10)
    elif mode == "wild size":
        tell(PICTURE, 0, setup["slot_bytes"] + 1)
    elif mode == "crash":
        print("cannot go on", file=sys.stderr, flush=True)
        os._exit(3)
    elif mode == "two and end":
        show(0, dropped=4, bad=1)
        assert channel.recv(16) == b"\0"  # the slot comes back
        show(1, dropped=5, bad=1)
        assert channel.recv(16) == b"\1"
        tell(ENDED)
    elif mode == "one and crash":
        show(0)
        assert channel.recv(16) == b"\0"
        os._exit(3)
    elif mode == "hang":
        show(0)
    elif mode == "alive":
        for _ in range(130):
            tell(ALIVE)
            time.sleep(0.02)
        show(0)
    channel.recv(16)
    channel.recv(16)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
