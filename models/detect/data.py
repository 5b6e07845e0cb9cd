"""Pictures with known content for the detectors, and their split: what may be learned from, chosen by and judged on.

`labels.toml` holds the boxes, drawn by hand. The pictures are fetched from the packages that carry them, pinned by sha256,
and are no part of the repository: those of scikit-image are free of conditions (astronaut, chelsea, coffee, rocket) or as it
states (motorcycle: Middlebury Stereo 2014); the package terms of the others are Apache-2.0 (opencv-doc), MIT (face-api) and
BSD-3-Clause (tracking), and the pictures' own terms were not checked: for measuring only, never in a bundle.

The split is by a hash of the picture's name, the frames of one film together. `calibration` sets the ranges of int8 variants;
the labelled pictures of it and `validation` decide whether a variant is taken; `test` is read by evaluate.py only.
"""

from __future__ import annotations

import hashlib
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import cv2

from gateway.errors import ModelError
from models.scoring import Truth
from sdk.demo_data import SKIMAGE
from sdk.registry import Member, Package, Say, fetch

Split = Literal["calibration", "validation", "test"]

SPLITS: tuple[Split, ...] = ("calibration", "validation", "test", "test")  # the test split is half of all

FOLDER = Path(__file__).resolve().parent
LABELS = FOLDER / "labels.toml"
PACKAGES = {
    "scikit-image": SKIMAGE,
    "face-api": Package(
        "npm", "@vladmandic/face-api", "1.7.15", "0d77fffeef362ef9c0939cf6c567f3a2e8e177f114fa257a3270cbd2e509b031"
    ),
    "tracking": Package("npm", "tracking", "1.1.3", "cac8569e3f1e6158a3b1162fe2212a33c671c17f67729ad6a7fa2e35faaa52fb"),
    "opencv-doc": Package(
        "debian", "opencv-doc", "4.6.0+dfsg-12", "4b12681df35878207ac7097dc66184b2ae552e4bf4ddd2af04a0f03ed0b8682a"
    ),
}


@dataclass(frozen=True)
class Picture:
    """One picture of labels.toml.

    Attributes:
        name: stable; decides the split together with `group`.
        frame: of a film. crop: x0, y0, x1, y1 in pixels; empty takes the whole picture.
        truths: what is to be seen; empty for pictures that calibrate only.
    """

    name: str
    package: str
    member: Member
    truths: tuple[Truth, ...]
    group: str = ""
    frame: int | None = None
    crop: tuple[int, ...] = ()

    @property
    def split(self) -> Split:
        if not self.truths:
            return "calibration"
        digest = hashlib.sha256((self.group or self.name).encode()).digest()
        return SPLITS[digest[0] % len(SPLITS)]


@cache
def pictures() -> tuple[Picture, ...]:
    """All of labels.toml.

    Raises:
        ModelError: the file is not what it should be.
    """
    try:
        stated = tomllib.loads(LABELS.read_text(encoding="utf-8"))["picture"]
        return tuple(_picture(each) for each in stated)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{LABELS}: {error}", hint="mend that picture") from error


def _picture(stated: dict[str, Any]) -> Picture:
    truths = tuple(
        Truth(each["label"], _box(each["box"]), tuple(each.get("also", ())), each.get("ignore", False))
        for each in stated.get("object", ())
    )
    member = Member(stated["path"], stated["size"], stated["sha256"])
    crop = tuple(stated.get("crop", ()))
    return Picture(
        stated["name"], stated["package"], member, truths, stated.get("group", ""), stated.get("frame"), crop
    )


def _box(stated: list[float]) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = map(float, stated)
    if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
        raise ValueError(f"the box {stated} is none")
    return x0, y0, x1, y1


def of(*splits: Split) -> list[Picture]:
    """The pictures of some of the splits."""
    return [picture for picture in pictures() if picture.split in splits]


def load(wanted: list[Picture], say: Say = print) -> dict[str, tuple[bytes, str]]:
    """Name -> encoded picture and its media type; each package is asked once.

    Raises:
        RegistryError: a package cannot be fetched, or is not what was pinned.
    """
    files: dict[tuple[str, str], Path] = {}
    for package in dict.fromkeys(picture.package for picture in wanted):
        members = {p.member.path: p.member for p in wanted if p.package == package}
        fetched = fetch(PACKAGES[package], list(members.values()), say=say)
        files |= {(package, path): file for path, file in fetched.items()}
    return {picture.name: _encoded(picture, files[picture.package, picture.member.path]) for picture in wanted}


Labelled = tuple[dict[str, tuple[bytes, str]], dict[str, tuple[Truth, ...]]]


def labelled(loaded: dict[str, tuple[bytes, str]]) -> Labelled:
    """Of loaded pictures those with truths, and these."""
    truths = {picture.name: picture.truths for picture in pictures() if picture.name in loaded and picture.truths}
    return {name: loaded[name] for name in truths}, truths


def _encoded(picture: Picture, file: Path) -> tuple[bytes, str]:
    if picture.frame is None and not picture.crop:
        return file.read_bytes(), "image/png" if file.suffix == ".png" else "image/jpeg"
    image = cv2.imread(str(file)) if picture.frame is None else _frame(file, picture.frame)
    if image is None:
        raise ModelError(f"{file}: cannot be read as a picture")
    if picture.crop:
        x0, y0, x1, y1 = picture.crop
        image = image[y0:y1, x0:x1]
    return cv2.imencode(".png", image)[1].tobytes(), "image/png"


def _frame(file: Path, number: int) -> Any:
    """One frame of a film, counted from 0: read one after the other, since seeking is not exact in every format."""
    film = cv2.VideoCapture(str(file))
    try:
        for _ in range(number):
            film.grab()
        good, image = film.read()
        return image if good else None
    finally:
        film.release()
