"""Makes the pictures of docs/workorders.md from the model and its examples: docs/images/workorder-*.png.

python docs/make_workorders.py build/models/workorder.octo
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np

from gateway.analyse import workorder
from gateway.contract import Result
from gateway.forms import Template, as_media
from gateway.infer import register
from models import kit
from models.workorder import data, examples

IMAGES = Path(__file__).resolve().parent / "images"
EXAMPLE = examples.FOLDER / "2-end-before-start.jpg"
DENSITY = 4.0  # pixels a millimetre
GOOD, DOUBTED = (60, 140, 40), (30, 30, 210)


def drawn(picture: np.ndarray, form: Template, result: Result) -> np.ndarray:
    """The straightened sheet with what was read beside each field."""
    page = register.find(picture, form)
    assert page is not None  # the example has one
    width, height = (round(side * DENSITY) for side in form.page)
    scale = np.diag([1 / DENSITY, 1 / DENSITY, 1])
    sheet = cv2.warpPerspective(
        picture, page.homography @ scale, (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    )
    for field, read in zip(form.field, result.fields, strict=True):
        x0, y0, x1, y1 = (round(edge * DENSITY) for edge in field.box)
        colour = DOUBTED if read.doubt else GOOD
        cv2.rectangle(sheet, (x0, y0), (x1, y1), colour, 2)
        text = f"{read.value or read.text}  {read.confidence:.2f}"
        cv2.putText(sheet, text, (x0, y1 + 14), colour, cv2.FontFace("sans"), 13)
        if read.doubt:
            cv2.putText(sheet, read.doubt, (x0, y1 + 23), colour, cv2.FontFace("sans"), 9)
    cv2.putText(sheet, result.label, (width // 2 - 40, 40), (30, 30, 30), cv2.FontFace("sans"), 20)
    return np.asarray(sheet)


def main() -> None:
    model = kit.load(Path(sys.argv[1]), allow_unsigned=True)
    form, jpeg = data.template(), EXAMPLE.read_bytes()
    read = model.recipe.run(model.runner, jpeg, "image/jpeg" + as_media(form), model.variant.batch)
    picture = np.asarray(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR))
    photo = cv2.resize(picture, (720, 540), interpolation=cv2.INTER_AREA)
    for name, made in (("photo", photo), ("read", drawn(picture, form, workorder.judge(form, read)))):
        cv2.imwrite(str(IMAGES / f"workorder-{name}.png"), made, [cv2.IMWRITE_PNG_COMPRESSION, 9])


if __name__ == "__main__":
    main()
