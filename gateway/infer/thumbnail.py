"""The child that makes thumbnails: `python -m gateway.infer.thumbnail PARENT SOURCE TARGET NAME...`

OpenCV is loaded here and nowhere near the daemon. Each thumbnail is written whole or not at all; what cannot be decoded is
passed over, and the parent sees that it is missing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from gateway import durable
from gateway.child import die_with_parent
from gateway.errors import ModelError
from gateway.infer.thumbnails import LONGEST, MAX_PICTURE, NO_DECODER, NO_ROOM, thumbnail_name

MAX_PIXELS = 25_000_000  # 75 MB decoded
QUALITY = 80  # JPEG


def main(argv: Sequence[str]) -> int:
    """Its exit status: `NO_DECODER` where OpenCV cannot be loaded, `NO_ROOM` when the disk refuses."""
    die_with_parent(int(argv[0]))
    try:
        from gateway.infer import pictures
    except ImportError as error:
        print(error, file=sys.stderr)
        return NO_DECODER
    pictures.set_threads(1)
    source, target = Path(argv[1]), Path(argv[2])
    for name in argv[3:]:
        try:
            with (source / name).open("rb") as file:
                data = pictures.thumbnail(file.read(MAX_PICTURE), LONGEST, QUALITY, MAX_PIXELS)
        except (ModelError, FileNotFoundError):  # damaged; or deleted meanwhile, for the oldest goes first
            continue
        try:
            durable.write_whole(target / thumbnail_name(name), data)
        except OSError as error:
            print(error, file=sys.stderr)
            return NO_ROOM
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
