"""What a job's media text says: the kind of bytes, and for a picture which regions of it are meant.

`image/jpeg;region=0.1,0.2,0.5,0.6;region=...`: x0, y0, x1, y1 in fractions of width and height, origin top left. Light
to import: the daemon writes these texts, the worker reads them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from gateway.contract import Region
from gateway.errors import ModelError

MAX_REGIONS = 32
WHOLE: Region = (0.0, 0.0, 1.0, 1.0)

_MARK = ";region="
_NUMBER = r"(0(?:\.\d{1,6})?|1(?:\.0{1,6})?)"
_REGION = re.compile(",".join([_NUMBER] * 4), re.ASCII)
_LEAST = 1e-4  # of a side: a region of less than a pixel of any camera is a mistake


def with_regions(media: str, regions: Iterable[Region]) -> str:
    """The media text of a picture of which these regions are meant."""
    return media + "".join(_MARK + ",".join(f"{value:.6f}" for value in region) for region in regions)


def split(media: str) -> tuple[str, tuple[Region, ...]]:
    """The inverse: the kind, and the regions that are named (none: the whole picture).

    Raises:
        ModelError: a region that is not within the picture, has no area or is not written so; or too many.
    """
    if _MARK not in media:
        return media, ()
    kind, *texts = media.split(_MARK)
    if len(texts) > MAX_REGIONS:
        raise ModelError(f"{len(texts)} regions of one picture; at most {MAX_REGIONS} are taken")
    return kind, tuple(_region(text) for text in texts)


def _region(text: str) -> Region:
    found = _REGION.fullmatch(text)
    if found is None:
        raise ModelError(f"not a region: {text[:60]!r}", hint="region=x0,y0,x1,y1 with fractions from 0 to 1")
    x0, y0, x1, y1 = map(float, found.groups())
    if x1 - x0 < _LEAST or y1 - y0 < _LEAST:
        raise ModelError(f"a region without an area: {text}", hint="x0 < x1 and y0 < y1")
    return x0, y0, x1, y1
