"""A form on paper: what is to be drawn, and a PDF of it (ISO 32000-1), vectors and the standard font only.

`layout` is also what a blank form is rendered from for tests and training, so that paper and picture are one.
Lengths are millimetres from the page's top left corner.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from gateway.forms import Box, FieldTable, Markers, Template

CELLS = 6  # of a marker's side, its black border included
# the inner 4 x 4 cells of each marker of ArUco's DICT_4X4_50, row by row, 1 is white
_MARKERS = (
    0xB532, 0x0F9A, 0x332D, 0x9946, 0x549E, 0x79CD, 0x9E2E, 0xC4F2, 0xFEDA, 0xCF56, 0xF991, 0x11A7, 0x0EB7, 0x2A0F,
    0x24B1, 0x263E, 0x4665, 0x6600, 0x6C5E, 0x76AF, 0x868B, 0xB02B, 0xCCD5, 0xDD82, 0xFE47, 0x9471, 0xACE4, 0xA554,
    0x2123, 0x346F, 0x4415, 0x57B2, 0x9ECF, 0xF0CB, 0x08AE, 0x0929, 0x1875, 0x04FF, 0x0DF6, 0x1C5A, 0x1718, 0x2A28,
    0x328C, 0x38B2, 0x24E8, 0x2EEB, 0x2D3F, 0x4B64, 0x502E, 0x5013,
)  # fmt: skip
_LINE, _GREY = 0.35, 0.45  # of a box
_LABEL, _TITLE = 3.0, 6.0  # heights of letters
_POINTS = 72 / 25.4


class Fill(NamedTuple):
    """A filled rectangle; grey 0 is black."""

    box: Box
    grey: float


class Frame(NamedTuple):
    """The outline of a rectangle."""

    box: Box
    width: float
    grey: float


class Letters(NamedTuple):
    """A line of text: where its baseline begins, how high it is."""

    x: float
    y: float
    size: float
    text: str


Mark = Fill | Frame | Letters


def marker_boxes(markers: Markers, page: tuple[float, float]) -> tuple[Box, Box, Box, Box]:
    """The black squares, clockwise from the top left."""
    near, far = markers.margin, markers.margin + markers.size
    width, height = page
    return (
        (near, near, far, far),
        (width - far, near, width - near, far),
        (width - far, height - far, width - near, height - near),
        (near, height - far, far, height - near),
    )


def layout(template: Template) -> Iterator[Mark]:
    """Everything that is printed on the blank form, in the order of drawing."""
    if template.markers is not None:
        for number, box in zip(template.markers.ids, marker_boxes(template.markers, template.page), strict=True):
            yield from _marker(number, box)
    left = template.markers.margin + template.markers.size + 5 if template.markers else 15.0
    yield Letters(left, 20.0, _TITLE, template.title or template.name)
    for field in template.field:
        yield Frame(field.box, _LINE, _GREY)
        yield _label(field)


def _label(field: FieldTable) -> Letters:
    x0, y0, x1, y1 = field.box
    text = field.label or field.name
    if field.kind == "tick":
        return Letters(x1 + 2, (y0 + y1) / 2 + _LABEL / 3, _LABEL, text)
    return Letters(x0, y0 - 1.2, _LABEL, text)


def _marker(number: int, box: Box) -> Iterator[Fill]:
    x, y, side = box[0], box[1], (box[2] - box[0]) / CELLS
    yield Fill(box, 0.0)
    for at in range(16):
        if _MARKERS[number] >> (15 - at) & 1:
            left, top = x + (1 + at % 4) * side, y + (1 + at // 4) * side
            yield Fill((left, top, left + side, top + side), 1.0)


def pdf(template: Template) -> bytes:
    """One page, to be printed at 100 %."""
    width, height = template.page

    def point(x: float, y: float) -> str:
        return f"{x * _POINTS:.3f} {(height - y) * _POINTS:.3f}"

    drawn = []
    for mark in layout(template):
        if isinstance(mark, Letters):
            drawn.append(
                f"0 g BT /F1 {mark.size * _POINTS:.2f} Tf {point(mark.x, mark.y)} Td ({_escaped(mark.text)}) Tj ET"
            )
            continue
        x0, y0, x1, y1 = mark.box
        rectangle = f"{point(x0, y1)} {(x1 - x0) * _POINTS:.3f} {(y1 - y0) * _POINTS:.3f} re"
        if isinstance(mark, Fill):
            drawn.append(f"{mark.grey:g} g {rectangle} f")
        else:
            drawn.append(f"{mark.grey:g} G {mark.width * _POINTS:.3f} w {rectangle} S")
    content = "\n".join(drawn).encode("cp1252", "replace")
    box = f"[0 0 {width * _POINTS:.3f} {height * _POINTS:.3f}]"
    return _file(
        [
            b"<< /Type /Catalog /Pages 2 0 R /ViewerPreferences << /PrintScaling /None >> >>",
            b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
            f"<< /Type /Page /Parent 2 0 R /MediaBox {box} /Contents 4 0 R /Resources << /Font << /F1 5 0 R >> >> >>".encode(),
            b"<< /Length %d >>\nstream\n%b\nendstream" % (len(content), content),
            b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
        ]
    )


def _file(objects: list[bytes]) -> bytes:
    """Objects 1, 2, ... with the table of where they are (7.5)."""
    out = bytearray(b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n")
    offsets = []
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%b\nendobj\n" % (number, body)
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    out += b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, start)
    return bytes(out)


def _escaped(text: str) -> str:
    """A literal string (7.3.4.2): on one line, its parentheses and backslashes escaped."""
    plain = "".join(char if char >= " " else " " for char in text)
    return plain.replace("\\", "\\\\").replace("(", "\\(").replace(")", "\\)")
