"""Finds a form on a picture and cuts its cells out. OpenCV, loaded at import.

Pictures are uint8 [height, width, 3], blue, green, red. A homography maps millimetres on the page to pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from gateway.form_print import marker_boxes
from gateway.forms import Box, Template
from gateway.infer.steps import Array

SEEN_MARKERS = 3  # of four: two leave the far half of the page to chance
_LONGEST = 2400  # pixels of a picture's side that markers are looked for in
_NEAR_MM = 1.0  # a marker's corner may be so far from where the others say it is
_INSET_MM = 0.6  # of a cell: its own printed line
_DENSITY = 12.0  # pixels a millimetre a cell is cut out with, before it is brought to the recogniser's height
_PAGE_SHARE = 0.2  # of the picture that a page without markers must cover
_PRINTED = 4.0  # levels of grey by which a form's lines are darker than its paper, at least, on average
_INK = 0.25  # darker than the paper around by so much of it
_LEAST_INK = 0.004  # of a cell's area: less is dirt


class Page(NamedTuple):
    """Where a form lies: millimetres -> pixels, and how many markers say so (0: by the page's corners)."""

    homography: Array
    markers: int


def find(picture: Array, template: Template) -> Page | None:
    """Where the template's page lies on the picture, or None."""
    grey = cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)
    return _by_markers(grey, template) if template.markers is not None else _by_corners(grey, template)


def _by_markers(grey: Array, template: Template) -> Page | None:
    assert template.markers is not None  # the caller has looked
    scale = min(1.0, _LONGEST / max(grey.shape))
    small = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else grey
    corners, ids = detect_markers(small)
    boxes = dict(zip(template.markers.ids, marker_boxes(template.markers, template.page), strict=True))
    page, pixels = [], []
    for number, found in zip(ids, corners, strict=True):
        if (box := boxes.pop(number, None)) is not None:
            page += _clockwise(box)
            pixels += (found / scale).tolist()
    seen = len(page) // 4
    if seen < SEEN_MARKERS:
        return None
    source, target = np.array(page, np.float64), np.array(pixels, np.float64)
    near = _NEAR_MM * float(np.linalg.norm(target[1] - target[0])) / template.markers.size
    homography, inside = cv2.findHomography(source, target, cv2.RANSAC, near)
    if homography is None or inside.sum() < 4 * SEEN_MARKERS:
        return None
    return Page(np.asarray(homography), seen)


def detect_markers(grey: Array) -> tuple[list[Array], list[int]]:
    """ArUco markers of DICT_4X4_50: corners [4, 2] clockwise from their own top left, and their numbers."""
    settings = cv2.aruco.DetectorParameters()
    settings.cornerRefinementMethod = cv2.aruco.CORNER_REFINE_SUBPIX
    detector = cv2.aruco.ArucoDetector(cv2.aruco.getPredefinedDictionary(cv2.aruco.DICT_4X4_50), settings)
    corners, ids, _ = detector.detectMarkers(grey)
    if ids is None:
        return [], []
    return [np.asarray(found, np.float64).reshape(4, 2) for found in corners], [int(i) for i in ids.ravel()]


def _clockwise(box: Box) -> list[tuple[float, float]]:
    x0, y0, x1, y1 = box
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


# --- a page without markers -----------------------------------------------------------------------------------------


def _by_corners(grey: Array, template: Template) -> Page | None:
    """The largest bright quadrilateral; of the ways it can lie the one whose printed boxes are where they should be."""
    corners = page_corners(grey)
    if corners is None:
        return None
    width, height = template.page
    source = np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float32)
    best: tuple[float, Array] | None = None
    for turn in range(4):
        target = np.roll(corners, -turn, axis=0).astype(np.float32)
        homography = cv2.getPerspectiveTransform(source, target)
        score = _agreement(grey, homography, template)
        if best is None or score > best[0]:
            best = score, np.asarray(homography)
    return None if best is None or best[0] < _PRINTED else Page(best[1], 0)


def page_corners(grey: Array) -> Array | None:
    """The four corners [4, 2] of the largest bright quadrilateral, clockwise from the one nearest the top left."""
    scale = min(1.0, 800 / max(grey.shape))
    small = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    _, bright = cv2.threshold(cv2.GaussianBlur(small, (5, 5), 0), 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    bright = cv2.morphologyEx(bright, cv2.MORPH_CLOSE, np.ones((15, 15), np.uint8))
    contours, _ = cv2.findContours(bright, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    for contour in sorted(contours, key=cv2.contourArea, reverse=True)[:3]:
        if cv2.contourArea(contour) < _PAGE_SHARE * small.size:
            return None
        hull = cv2.convexHull(contour)
        quad = cv2.approxPolyDP(hull, 0.03 * cv2.arcLength(hull, closed=True), closed=True)
        if len(quad) == 4:
            points = quad.reshape(4, 2).astype(np.float64) / scale
            points = points[np.argsort(np.arctan2(*(points - points.mean(axis=0)).T[::-1]))]
            return np.asarray(np.roll(points, -int(points.sum(axis=1).argmin()), axis=0))
    return None


def _agreement(grey: Array, homography: Array, template: Template) -> float:
    """How much darker the printed lines are than the paper 1.5 mm beside them, on average."""
    on, off = [], []
    for field in template.field:
        x0, y0, x1, y1 = field.box
        for step in np.linspace(0.05, 0.95, 24):
            x, y = x0 + (x1 - x0) * step, y0 + (y1 - y0) * step
            on += [(x, y0), (x, y1), (x0, y), (x1, y)]
            off += [(x, y0 + 1.5), (x, y1 - 1.5), (x0 + 1.5, y), (x1 - 1.5, y)]
    blurred = cv2.GaussianBlur(grey, (3, 3), 0)
    return _mean(blurred, homography, off) - _mean(blurred, homography, on)


def _mean(grey: Array, homography: Array, points: Sequence[tuple[float, float]]) -> float:
    at = cv2.perspectiveTransform(np.array([points], np.float64), homography)[0].round().astype(int)
    height, width = grey.shape
    return float(grey[at[:, 1].clip(0, height - 1), at[:, 0].clip(0, width - 1)].mean())


# --- cells ----------------------------------------------------------------------------------------------------------


def cell(picture: Array, page: Page, box: Box, inset: float = _INSET_MM) -> Array:
    """The inside of a box, straightened, straight from the picture: one interpolation."""
    x0, y0, x1, y1 = box[0] + inset, box[1] + inset, box[2] - inset, box[3] - inset
    width, height = max(8, round((x1 - x0) * _DENSITY)), max(8, round((y1 - y0) * _DENSITY))
    to_page = np.array([[(x1 - x0) / width, 0, x0], [0, (y1 - y0) / height, y0], [0, 0, 1]])
    return np.asarray(
        cv2.warpPerspective(
            picture, page.homography @ to_page, (width, height),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE,
        )
    )  # fmt: skip


def ink(cut: Array) -> Array:
    """What is written: 1 where it is much darker than the paper around it."""
    grey = cv2.GaussianBlur(cv2.cvtColor(cut, cv2.COLOR_BGR2GRAY), (0, 0), 1.5)
    paper = cv2.GaussianBlur(cv2.morphologyEx(grey, cv2.MORPH_CLOSE, np.ones((41, 41), np.uint8)), (0, 0), 8)
    return np.asarray((grey < paper * (1 - _INK)).astype(np.uint8))


def written(cut: Array) -> tuple[int, int, int, int] | None:
    """x0, y0, x1, y1 of what is written in a cell, or None when it is empty; dirt does not count."""
    mask = ink(cut)
    count, _, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    height, width = mask.shape
    keep = []
    for x, y, w, h, area in stats[1:count].tolist():
        edge = (w > 0.9 * width and h < 0.12 * height) or (h > 0.9 * height and w < 6)  # a rest of the printed box
        if not edge and area >= 12 and (area >= _LEAST_INK * height * height):
            keep.append((x, y, x + w, y + h))
    if not keep:
        return None
    left, top = min(box[0] for box in keep), min(box[1] for box in keep)
    return left, top, max(box[2] for box in keep), max(box[3] for box in keep)


def line(cut: Array, at: tuple[int, int, int, int]) -> Array:
    """The written part of a cell with a little paper around it, as recognisers are trained on."""
    height, width = cut.shape[:2]
    margin = max(4, round(0.18 * (at[3] - at[1])))
    x0, y0 = max(0, at[0] - margin), max(0, at[1] - margin)
    return cut[y0 : min(height, at[3] + margin), x0 : min(width, at[2] + margin)]


def ticked(cut: Array) -> float:
    """The share of a tick box that is written on, its rim left out."""
    rows, columns = cut.shape[:2]
    y, x = rows // 8, columns // 8
    return float(ink(cut)[y : rows - y, x : columns - x].mean())
