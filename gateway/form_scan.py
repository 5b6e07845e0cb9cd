"""A template from a blank form's scan or photo: markers, boxes and lines are found, names are guessed from labels.

A first draft for a person to edit. OpenCV, loaded at import. Lengths are millimetres on the page.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np

from gateway.errors import ModelError
from gateway.forms import Box, FieldTable, Kind, Markers, Template
from gateway.infer import register
from gateway.infer.steps import Array

DENSITY = 8.0  # pixels a millimetre of the straightened page
_LEAST = 3.5  # of a box's sides
_LINE = 15.0  # a ruled line to write on is at least so long
_ROOM = 8.0  # of a field above a ruled line
_MARKED = 4

Read = Callable[[Array], str]  # one line of text in a cut-out

# words of a label -> what such a field usually holds
_KINDS: tuple[tuple[str, Kind], ...] = (
    (r"\bdate|\bday\b", "date"),
    (r"\bstart|\bend\b|\btime\b|\bfrom\b|\buntil\b", "time"),
    (r"quantity|qty|pieces|scrap|amount|count|weight|\bkg\b|number of|hours", "number"),
    (r"\bno\b|\bno\.|\bnr|order|part|serial|\bid\b|code", "code"),
)


def straightened(picture: Array, page: tuple[float, float]) -> Array:
    """The page, DENSITY pixels a millimetre: of a scan the whole picture, of a photo the bright quadrilateral on it."""
    grey = cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)
    rows, columns = grey.shape
    rim = np.concatenate([grey[: rows // 50].ravel(), grey[-rows // 50 :].ravel()])
    corners = None if np.median(rim) > 0.75 * np.percentile(grey, 95) else register.page_corners(grey)
    if corners is None:
        corners = np.array([(0, 0), (columns, 0), (columns, rows), (0, rows)], np.float64)
    width, height = (round(side * DENSITY) for side in page)
    target = np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float32)
    warp = cv2.getPerspectiveTransform(corners.astype(np.float32), target)
    return np.asarray(
        cv2.warpPerspective(picture, warp, (width, height), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REPLICATE)
    )


def draft(picture: Array, name: str, page: tuple[float, float], read: Read | None = None) -> Template:
    """A template of a blank form.

    Args:
        read: reads a printed label; without it fields are numbered.

    Raises:
        ModelError: nothing to fill in was found.
    """
    sheet = straightened(picture, page)
    markers, clear = _markers(sheet, page)
    found = boxes(clear)
    found += [box for box in ruled(clear) if not any(_overlap(box, other) or _edge(box, other) for other in found)]
    if not found:
        raise ModelError("no boxes or lines on this picture", hint="is the form blank, sharp and seen from above?")
    found.sort(key=lambda box: (round(box[1] / 8), box[0]))
    names: set[str] = set()
    fields = [_field(clear, box, i, names, read) for i, box in enumerate(found[:100], 1)]
    return Template(name=name, page=page, markers=markers, field=tuple(fields))


def _markers(sheet: Array, page: tuple[float, float]) -> tuple[Markers | None, Array]:
    """The four markers, if they are there, and the page without any."""
    corners, ids = register.detect_markers(cv2.cvtColor(sheet, cv2.COLOR_BGR2GRAY))
    clear = sheet.copy()
    for square in corners:
        x0, y0 = np.floor(square.min(axis=0)).astype(int) - 4
        x1, y1 = np.ceil(square.max(axis=0)).astype(int) + 4
        clear[max(0, y0) : y1, max(0, x0) : x1] = 255
    if len(ids) != _MARKED or len(set(ids)) != _MARKED:
        return None, clear
    middle = np.array(page) * DENSITY / 2
    around = [np.asarray(square) - middle for square in corners]
    order = sorted(range(_MARKED), key=lambda i: float(np.arctan2(*around[i].mean(axis=0)[::-1])))
    size = float(np.median([np.ptp(square, axis=0) for square in corners])) / DENSITY
    edges = [np.minimum(square.min(axis=0), np.array(page) * DENSITY - square.max(axis=0)) for square in corners]
    a, b, c, d = (ids[i] for i in order)  # by angle from -pi: top left, top right, bottom right, bottom left
    return Markers((a, b, c, d), round(size, 1), round(float(np.median(edges)) / DENSITY, 1)), clear


def boxes(sheet: Array) -> list[Box]:
    """Printed rectangles, by the middle of their lines."""
    mask = register.ink(sheet)
    contours, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    found: list[Box] = []
    for contour in sorted(contours, key=cv2.contourArea, reverse=True):
        x, y, width, height = cv2.boundingRect(contour)
        if min(width, height) < _LEAST * DENSITY or cv2.contourArea(contour) < 0.85 * width * height:
            continue
        box = _millimetres(x, y, x + width, y + height)
        if width < 0.95 * sheet.shape[1] and not any(_overlap(box, other) for other in found):
            found.append(box)
    return found


def ruled(sheet: Array) -> list[Box]:
    """Room to write above ruled lines that are part of no box."""
    mask = register.ink(sheet)
    long = cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((1, round(_LINE * DENSITY)), np.uint8))
    count, _, stats, _ = cv2.connectedComponentsWithStats(long)
    found = []
    for x, y, width, height, _ in stats[1:count].tolist():
        if height < 2 * DENSITY and y > _ROOM * DENSITY:
            found.append(_millimetres(x, y - _ROOM * DENSITY, x + width, y))
    return found


def _millimetres(*edges: float) -> Box:
    x0, y0, x1, y1 = (round(edge / DENSITY, 1) for edge in edges)
    return max(0.0, x0), max(0.0, y0), x1, y1


def _edge(room: Box, other: Box) -> bool:
    """Whether the line under `room` is a side of a box."""
    across = min(room[2], other[2]) - max(room[0], other[0])
    return across > 0 and min(abs(room[3] - other[1]), abs(room[3] - other[3])) < 1.5


def _overlap(one: Box, other: Box) -> bool:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return width > 0 and height > 0 and width * height > 0.5 * smaller


def _field(sheet: Array, box: Box, number: int, names: set[str], read: Read | None) -> FieldTable:
    x0, y0, x1, y1 = box
    square = x1 - x0 < 9 and 0.7 < (x1 - x0) / (y1 - y0) < 1.4
    label = _label(sheet, box, square, read) if read else ""
    kind: Kind = "tick" if square else next((k for pattern, k in _KINDS if re.search(pattern, label.lower())), "text")
    slug = re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")[:40] or f"field-{number}"
    name = slug if slug not in names else f"{slug[:40]}-{number}"
    names.add(name)
    more: dict[str, Any] = {"pattern": "[A-Z0-9-]{1,16}"} if kind == "code" else {}
    return FieldTable(name=name, kind=kind, box=box, label=label, **more)


def _label(sheet: Array, box: Box, square: bool, read: Read) -> str:
    """What is printed above a box, to the right of a tick box."""
    x0, y0, x1, y1 = box
    strip: Box = (x1 + 1, y0 - 1, x1 + 45, y1 + 1) if square else (x0 - 1, max(0.0, y0 - 6), x1, y0 - 0.4)
    left, top, right, bottom = (round(edge * DENSITY) for edge in strip)
    cut = sheet[max(0, top) : bottom, max(0, left) : right]
    if min(cut.shape[:2], default=0) < 8:
        return ""
    return next((read(part) for part in _first_line(cut)), "").strip()


def _first_line(cut: Array) -> Sequence[Array]:
    """The first run of letters: what is far to its right belongs to another field."""
    mask = cv2.dilate(register.ink(cut), np.ones((1, round(3 * DENSITY)), np.uint8))
    count, _, stats, _ = cv2.connectedComponentsWithStats(mask)
    runs = sorted(
        (stat for stat in stats[1:count].tolist() if stat[4] > 40 and stat[3] > DENSITY), key=lambda stat: stat[0]
    )
    if not runs:
        return ()
    x, y, width, height, _ = runs[0]
    pad = round(0.5 * DENSITY)
    return (cut[max(0, y - pad) : y + height + pad, max(0, x - pad) : x + width + pad],)


def overlay(picture: Array, template: Template) -> Array:
    """The straightened page with what the template says of it drawn over: to be looked at."""
    sheet = straightened(picture, template.page)
    for field in template.field:
        x0, y0, x1, y1 = (round(edge * DENSITY) for edge in field.box)
        cv2.rectangle(sheet, (x0, y0), (x1, y1), (40, 120, 255), 3)
        cv2.putText(
            sheet, f"{field.name}: {field.kind}", (x0 + 6, y1 - 8), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (40, 120, 255), 2
        )
    return sheet
