"""What a model says of one window or picture; `gateway.contract` names these too."""

from __future__ import annotations

import msgspec

MAX_MASK_CELLS = 1 << 16
MAX_MASK_BYTES = 4096

# x0, y0, x1, y1 of a part of a picture, in fractions of width and height, origin top left
Region = tuple[float, float, float, float]


class Detection(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One object on a picture; the box is in fractions of width and height, origin top left."""

    label: str
    score: float
    x0: float
    y0: float
    x1: float
    y1: float


class Mask(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """Where one class lies on a picture (or on its region), as a coarse grid of cells.

    Attributes:
        runs: lengths of runs of cells, row by row from the top left, outside and inside by turns, outside first; each
            length as LEB128 (seven bits a byte, the lowest first, the high bit says that another byte follows).
    """

    label: str
    width: int
    height: int
    runs: bytes

    def cells(self) -> bytes:
        """One byte for each cell, 1 inside and 0 outside.

        Raises:
            ValueError: the runs do not fill the grid, or the mask is larger than the bounds.
        """
        cells = self.width * self.height
        if self.width < 1 or self.height < 1 or cells > MAX_MASK_CELLS or len(self.runs) > MAX_MASK_BYTES:
            raise ValueError(f"a mask of {self.width} x {self.height} cells in {len(self.runs)} bytes")
        out = bytearray()
        inside = length = shift = 0
        for byte in self.runs:
            length |= (byte & 0x7F) << shift
            shift += 7
            if shift > 21 or len(out) + length > cells:
                raise ValueError(f"a mask's runs do not fit {self.width} x {self.height} cells")
            if byte < 0x80:
                out += bytes((inside,)) * length
                inside, length, shift = 1 - inside, 0, 0
        if shift or len(out) != cells:
            raise ValueError(f"a mask's runs do not fill {self.width} x {self.height} cells")
        return bytes(out)


class Field(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """What was read in one field of a form.

    Attributes:
        text: as it is written; `yes` or `no` of a tick box.
        confidence: 0 to 1.
        value: a number as digits with a point, a date as ISO 8601, a word as the template has it; empty when the text says none.
        doubt: why a person should look at it; empty: accepted.
    """

    name: str
    text: str
    confidence: float
    value: str = ""
    doubt: str = ""


class Result(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a model says about one window or picture, after its post steps.

    Attributes:
        label: the best class, empty when the model has none.
        score: its probability, 0 to 1; of a text the mean of its characters.
        scores: label -> probability for every class that is reported.
        detections: objects, best first.
        values: further named numbers (an anomaly score, a regression, a mask's share of the picture).
        text: what was read.
        characters: the probability of each character of `text`, 0 to 1.
        masks: what covers the picture, one for each class that does.
        parts: one result for each region, when the job named regions of a picture.
        fields: of a form, in the order of its template; `label` is then `accepted`, `review` or `no form`.
    """

    label: str = ""
    score: float = 0.0
    scores: dict[str, float] = {}
    detections: tuple[Detection, ...] = ()
    values: dict[str, float] = {}
    text: str = ""
    characters: tuple[float, ...] = ()
    masks: tuple[Mask, ...] = ()
    parts: tuple[Result, ...] = ()
    fields: tuple[Field, ...] = ()
