"""Forms of a split, read by the whole road: JPEG, registration, cells, recogniser, fields, checks."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import NamedTuple

from gateway.analyse import workorder
from gateway.contract import Field, Result
from gateway.forms import FieldTable, as_media
from models import kit
from models.workorder.data import Studio
from models.workorder.fonts import Split
from sdk.registry import Say, quiet


class Seen(NamedTuple):
    """One field of one form."""

    form: int
    kind: str
    style: str  # print, hand or tick
    font: str
    truth: str
    read: Field
    right: bool


@dataclass(frozen=True)
class Measured:
    """All fields; seconds a form; the forms' outcomes; how many were not found on their pictures."""

    fields: list[Seen]
    took: list[float]
    outcomes: list[str]
    lost: int


def is_right(field: FieldTable, truth: str, read: str) -> bool:
    """Whether a reading is what was written: a decimal comma is a point, capitals of a word do not count."""
    if field.kind == "number":
        return truth.replace(",", ".") == read.replace(",", ".")
    return truth.upper() == read.upper() if field.kind == "word" else truth == read


def measure(model: kit.Loaded, split: Split, forms: int, say: Say = quiet) -> Measured:
    """Read forms 0 to `forms` - 1 of a split."""
    studio = Studio(split, say=say)
    media = "image/jpeg" + as_media(studio.form)
    found = Measured([], [], [], 0)
    lost = 0
    for number in range(forms):
        filled, jpeg = studio.form_of(number)
        began = time.perf_counter()
        read = model.recipe.run(model.runner, jpeg, media, model.variant.batch)
        found.took.append(time.perf_counter() - began)
        result: Result = workorder.judge(studio.form, read)
        found.outcomes.append(result.label)
        lost += not result.fields
        by_name = {field.name: field for field in result.fields}
        for field in studio.form.field:
            said = by_name.get(field.name, Field(field.name, "", 0.0, doubt="no form"))
            truth = filled.texts[field.name]
            found.fields.append(
                Seen(number, field.kind, filled.styles[field.name], filled.fonts.get(field.name, ""), truth, said,
                     is_right(field, truth, said.text))
            )  # fmt: skip
    return Measured(found.fields, found.took, found.outcomes, lost)
