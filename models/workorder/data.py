"""Filled-in forms as a camera sees them: contents, handwriting and print by font, paper, light, lens.

Everything is rendered and simulated; what is real are the fonts. One seed is one picture, and the seeds of the splits
are apart, as their fonts are.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from gateway.form_print import Fill, Frame, layout
from gateway.forms import Box, FieldTable, Template, load
from models.workorder import fonts
from models.workorder.fonts import Split
from sdk.registry import Say, quiet

FOLDER = Path(__file__).resolve().parent
TEMPLATE = FOLDER / "order.toml"

SEEDS: dict[Split, int] = {"validation": 100_000, "test": 200_000}
DENSITY = 12.0  # pixels a millimetre of the page before it is photographed
SIZE = (1920, 1440)  # of a photograph

Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class Filled:
    """A photograph of a filled-in form and what is on it.

    Attributes:
        texts: by field; `yes` or `no` of a tick box.
        styles: by field: `print`, `hand` or `tick`.
        corners: of the page in the picture [4, 2], clockwise from its own top left.
    """

    picture: Picture
    texts: dict[str, str]
    styles: dict[str, str]
    fonts: dict[str, str]
    corners: NDArray[np.float64]

    def jpeg(self, quality: int) -> bytes:
        return bytes(cv2.imencode(".jpg", self.picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1])


def template() -> Template:
    """The example form."""
    return load(TEMPLATE)


class Studio:
    """Makes pictures of one split.

    Raises:
        RegistryError: a font cannot be fetched.
    """

    def __init__(self, split: Split, form: Template | None = None, say: Say = quiet) -> None:
        self.form = form or template()
        self._seed = SEEDS[split]
        self._hand = list(fonts.files(fonts.HAND[split], say=say).items())
        self._print = list(fonts.files(fonts.PRINT[split], say=say).items())
        self._blank = blank(self.form)

    def form_of(self, number: int) -> tuple[Filled, bytes]:
        """Form `number` of the split: what is on it, and the photograph as JPEG."""
        rng = np.random.default_rng(self._seed + number)
        texts = contents(self.form, rng)
        sheet = self._blank.copy()
        hand, printed = self._hand[rng.integers(len(self._hand))], self._print[rng.integers(len(self._print))]
        pen = tuple(int(v) for v in rng.uniform((60, 10, 5), (150, 60, 50)))
        styles, names = {}, {}
        for field in self.form.field:
            if field.kind == "tick":
                styles[field.name] = "tick"
                if texts[field.name] == "yes":
                    tick(sheet, field.box, pen, rng)
                continue
            by_hand = bool(rng.random() < 0.5)
            styles[field.name] = "hand" if by_hand else "print"
            names[field.name], path = hand if by_hand else printed
            ink = pen if by_hand else (40, 40, 40)
            write(sheet, field.box, texts[field.name], fonts.face(path), ink, rng, by_hand)
        picture, corners = photograph(sheet, rng)
        filled = Filled(picture, texts, styles, names, corners)
        return filled, filled.jpeg(int(rng.integers(45, 85)))


# --- what is written ------------------------------------------------------------------------------------------------


def contents(form: Template, rng: np.random.Generator) -> dict[str, str]:
    """What a worker might write, such that the form's checks hold."""
    start = int(rng.integers(5 * 60, 18 * 60))
    end = start + int(rng.integers(10, 300))
    quantity = int(10 ** rng.uniform(1.0, 4.6))
    done = int(quantity * rng.uniform(0.5, 1.0))
    day = datetime.date(2026, 1, 1) + datetime.timedelta(days=int(rng.integers(0, 700)))
    known = {
        "quantity": str(quantity), "done": str(done), "scrap": str(int(done * rng.uniform(0, 0.1))),
        "start": f"{start // 60:02d}:{start % 60:02d}", "end": f"{end // 60:02d}:{end % 60:02d}",
        "date": day.strftime("%d.%m.%Y"), "weight": f"{10 ** rng.uniform(0, 3):.2f}".replace(".", rng.choice([".", ","])),
    }  # fmt: skip
    return {field.name: known.get(field.name) or _any(field, rng) for field in form.field}


def _any(field: FieldTable, rng: np.random.Generator) -> str:
    if field.kind == "tick":
        return "yes" if rng.random() < 0.5 else "no"
    if field.kind == "word":
        return str(rng.choice(field.words))
    if field.kind == "code":
        digits, letters = "0123456789", "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
        pools = {"9": digits, "A": letters, "N": digits + letters}
        return "".join(str(rng.choice(list(pools.get(char, char)))) for char in field.pattern)
    return str(int(10 ** rng.uniform(0, min(field.digits, 5))))


# --- ink on paper ---------------------------------------------------------------------------------------------------


def _px(box: Box) -> tuple[int, int, int, int]:
    x0, y0, x1, y1 = (round(value * DENSITY) for value in box)
    return x0, y0, x1, y1


def blank(form: Template) -> Picture:
    """The printed form, uint8 [height, width, 3], DENSITY pixels a millimetre."""
    width, height = (round(side * DENSITY) for side in form.page)
    sheet = np.full((height, width, 3), 255, np.uint8)
    for mark in layout(form):
        if isinstance(mark, Fill):
            x0, y0, x1, y1 = _px(mark.box)
            sheet[y0:y1, x0:x1] = round(mark.grey * 255)
        elif isinstance(mark, Frame):
            x0, y0, x1, y1 = _px(mark.box)
            grey = round(mark.grey * 255)
            cv2.rectangle(sheet, (x0, y0), (x1, y1), (grey,) * 3, max(1, round(mark.width * DENSITY)))
        else:
            at = (round(mark.x * DENSITY), round(mark.y * DENSITY))
            cv2.putText(sheet, mark.text, at, (0, 0, 0), cv2.FontFace("sans"), round(mark.size * DENSITY))
    return sheet


def text_mask(text: str, face: cv2.FontFace, size: int, weight: int = 0) -> NDArray[np.float32]:
    """Ink 0 to 1 of a line of text, cut to what is inked."""
    canvas = np.zeros((size * 4, size * (len(text) + 4), 3), np.uint8)
    cv2.putText(canvas, text, (size, size * 2), (255, 255, 255), face, size, weight)
    mask = canvas[:, :, 0]
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return np.zeros((1, 1), np.float32)
    inked = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.float32)
    return np.asarray(inked / np.float32(255), np.float32)


def stamp(sheet: Picture, mask: NDArray[np.float32], at: tuple[int, int], ink: tuple[int, ...]) -> None:
    """Lay ink on paper, in place; what would lie outside is left out."""
    x, y = max(0, at[0]), max(0, at[1])
    part = sheet[y : y + mask.shape[0], x : x + mask.shape[1]]
    cover = mask[: part.shape[0], : part.shape[1], None]
    part[:] = (part * (1 - cover) + np.array(ink) * cover).astype(np.uint8)


def write(
    sheet: Picture, box: Box, text: str, face: cv2.FontFace, ink: tuple[int, ...], rng: np.random.Generator, by_hand: bool
) -> None:  # fmt: skip
    """A text into a cell; by hand it leans, sits anywhere and varies in size."""
    x0, y0, x1, y1 = _px(box)
    width, height = x1 - x0, y1 - y0
    mask = text_mask(text, face, round(height * 0.6))
    wanted = height * (rng.uniform(0.42, 0.68) if by_hand else rng.uniform(0.36, 0.5))
    scale = min(wanted / mask.shape[0], 0.88 * width / mask.shape[1])
    mask = np.asarray(cv2.resize(mask, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.float32)
    if by_hand:
        mask = lean(mask, rng)
    room = max(1, width - mask.shape[1]), max(1, height - mask.shape[0])
    left = int(room[0] * (rng.uniform(0.05, 0.7) if by_hand else rng.uniform(0.05, 0.3)))
    top = int(room[1] * (rng.uniform(0.25, 0.8) if by_hand else rng.uniform(0.4, 0.6)))
    stamp(sheet, mask, (x0 + left, y0 + top), ink)


def lean(mask: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Turned by up to 2.5 degrees, slanted a little, the baseline a soft wave."""
    height, width = mask.shape
    pad = height // 3
    wide = np.pad(mask, pad)
    rows, columns = np.mgrid[0 : wide.shape[0], 0 : wide.shape[1]].astype(np.float32)
    slope, slant = np.tan(np.radians(rng.uniform(-2.5, 2.5))), rng.uniform(-0.12, 0.2)
    wave = rng.uniform(0, 0.04) * height * np.sin(columns / (height * rng.uniform(1.5, 4)) + rng.uniform(0, 6))
    moved_y = rows + slope * (columns - width / 2) + wave
    moved_x = columns + slant * (rows - height / 2)
    out = cv2.remap(wide, moved_x.astype(np.float32), moved_y.astype(np.float32), cv2.INTER_LINEAR)
    inked_rows, inked = np.flatnonzero((out > 0.1).any(axis=1)), np.flatnonzero((out > 0.1).any(axis=0))
    return np.asarray(out[inked_rows[0] : inked_rows[-1] + 1, inked[0] : inked[-1] + 1], np.float32)


def tick(sheet: Picture, box: Box, ink: tuple[int, ...], rng: np.random.Generator) -> None:
    """A cross or a tick, not always within its box."""
    x0, y0, x1, y1 = _px(box)
    side = x1 - x0

    def near(x: float, y: float) -> tuple[int, int]:
        jitter = rng.uniform(-0.12, 0.12, 2) * side
        return int(x0 + x * side + jitter[0]), int(y0 + y * (y1 - y0) + jitter[1])

    width = int(DENSITY * rng.uniform(0.4, 0.9))
    if rng.random() < 0.5:
        cv2.line(sheet, near(0.15, 0.15), near(0.85, 0.85), ink, width, cv2.LINE_AA)
        cv2.line(sheet, near(0.85, 0.15), near(0.15, 0.85), ink, width, cv2.LINE_AA)
    else:
        middle = near(0.4, 0.85)
        cv2.line(sheet, near(0.1, 0.5), middle, ink, width, cv2.LINE_AA)
        cv2.line(sheet, middle, near(1.0, 0.0), ink, width, cv2.LINE_AA)


# --- the photograph -------------------------------------------------------------------------------------------------


def photograph(sheet: Picture, rng: np.random.Generator) -> tuple[Picture, NDArray[np.float64]]:
    """The sheet on a desk, turned and seen aslant, in uneven light, a little out of focus, with a sensor's noise."""
    width, height = SIZE
    rows, columns = sheet.shape[:2]
    angle = np.radians(rng.uniform(-18, 18) + (180 if rng.random() < 0.15 else 0))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    flat = (np.array([(0, 0), (columns, 0), (columns, rows), (0, rows)]) - (columns / 2, rows / 2)) @ turn.T
    flat *= rng.uniform(0.86, 0.97) * min(width / np.ptp(flat[:, 0]), height / np.ptp(flat[:, 1]))
    flat += rng.uniform(-0.05, 0.05, (4, 2)) * (np.ptp(flat[:, 0]), np.ptp(flat[:, 1]))
    least, most = flat.min(axis=0), flat.max(axis=0)
    flat += np.array([width, height]) / 2 - (least + most) / 2
    source = np.array([(0, 0), (columns, 0), (columns, rows), (0, rows)], np.float32)
    warp = cv2.getPerspectiveTransform(source, flat.astype(np.float32))
    desk = np.array(rng.uniform(30, 130, 3) * np.ones(3))
    texture = cv2.resize(rng.normal(0, 12, (height // 8, width // 8)).astype(np.float32), (width, height))
    picture = (desk + texture[:, :, None]).astype(np.float32)
    paper = cv2.warpPerspective(cv2.GaussianBlur(sheet, (0, 0), 0.7), warp, (width, height), flags=cv2.INTER_LINEAR)
    there = cv2.warpPerspective(np.ones(sheet.shape[:2], np.float32), warp, (width, height), flags=cv2.INTER_LINEAR)
    picture = picture * (1 - there[:, :, None]) + paper * there[:, :, None] * rng.uniform(0.8, 0.95)
    picture *= light(rng)[:, :, None]
    picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.5, 1.5))
    picture += rng.normal(0, rng.uniform(3, 10), picture.shape).astype(np.float32)
    return np.asarray(picture.clip(0, 255), np.uint8), flat


def light(rng: np.random.Generator) -> NDArray[np.float32]:
    """Brightness by place: a slope, and mostly a shadow with a soft edge."""
    width, height = SIZE
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    towards = rng.uniform(0, 2 * np.pi)
    slope = ((x / width - 0.5) * np.cos(towards) + (y / height - 0.5) * np.sin(towards)) * rng.uniform(0, 0.35)
    out = 1 - 0.05 + slope
    if rng.random() < 0.7:
        towards, at = rng.uniform(0, 2 * np.pi), rng.uniform(-0.3, 0.3)
        across = (x / width - 0.5) * np.cos(towards) + (y / height - 0.5) * np.sin(towards) - at
        out -= rng.uniform(0.15, 0.45) / (1 + np.exp(-across * rng.uniform(15, 80)))
    return np.asarray(out.clip(0.25, 1.1), np.float32)


# --- single lines ---------------------------------------------------------------------------------------------------

GOLDEN = {"time": "08:15", "order": "WO-204117"}


def golden_lines() -> dict[str, bytes]:
    """Two lines in OpenCV's own font as PNG: what every worker must be able to read."""
    made = {}
    for name, text in GOLDEN.items():
        mask = text_mask(text, cv2.FontFace("sans"), 32)
        paper = np.full((48, mask.shape[1] + 24, 3), 235, np.uint8)
        stamp(paper, mask, (12, (48 - mask.shape[0]) // 2), (60, 40, 30))
        made[name] = bytes(cv2.imencode(".png", paper)[1])
    return made
