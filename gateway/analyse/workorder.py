"""What a form says: values of its fields, whether they go together, and whether a person must look at it.

Pure functions of the template and of what the worker read; light, in the daemon's own process.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping

import msgspec

from gateway.analyse.rules import Change
from gateway.contract import Field, Inference, Result, Severity
from gateway.forms import CheckTable, FieldTable, Template, format_of

ACCEPTED, REVIEW = "accepted", "review"
EVENT = "form.review"
_SAME = 0.6  # of two readings' filled fields that agree: it is the same sheet

Value = float | datetime.date | datetime.time


def judge(template: Template, read: Result) -> Result:
    """The reading with values and doubts; `label` says whether it is accepted or to be reviewed.

    What is no reading of a form (no form was found) is given back as it is.
    """
    if not read.fields:
        return read
    tables = {table.name: table for table in template.field}
    fields = {field.name: _valued(tables[field.name], field) for field in read.fields if field.name in tables}
    values = {name: value for name, field in fields.items() if (value := _value(tables[name], field.text)) is not None}
    for check in template.check:
        if why := _broken(check, values):
            for name in (check.field, check.than):
                fields[name] = _doubted(fields[name], why)
    outcome = REVIEW if any(field.doubt for field in fields.values()) else ACCEPTED
    said = ", ".join(f"{name} {field.value or field.text}" for name, field in fields.items() if field.text)
    return msgspec.structs.replace(read, label=outcome, text=f"{outcome}: {said}", fields=tuple(fields.values()))


def _valued(table: FieldTable, field: Field) -> Field:
    if not field.text:
        return _doubted(field, "empty") if table.required else field
    if table.kind == "word":
        value = next((word for word in table.words if word.upper() == field.text.upper()), "")
        return msgspec.structs.replace(field, value=value)
    if table.kind not in ("number", "date", "time"):
        return msgspec.structs.replace(field, value=field.text)
    known = _value(table, field.text)
    if known is None:
        return _doubted(field, f"no {table.kind}")
    if isinstance(known, float):
        text = field.text.replace(",", ".")
        field = msgspec.structs.replace(field, value=text)
        if table.least is not None and known < table.least:
            return _doubted(field, f"less than {table.least:g}")
        if table.most is not None and known > table.most:
            return _doubted(field, f"more than {table.most:g}")
        return field
    iso = known.isoformat() if isinstance(known, datetime.date) else known.isoformat("minutes")
    return msgspec.structs.replace(field, value=iso)


def _doubted(field: Field, why: str) -> Field:
    return msgspec.structs.replace(field, doubt=f"{field.doubt}; {why}" if field.doubt else why)


def _value(table: FieldTable, text: str) -> Value | None:
    """What a number, date or time says; None when it says none, or of another kind of field."""
    if not text:
        return None
    try:
        if table.kind == "number":
            return float(text.replace(",", "."))
        if table.kind in ("date", "time"):
            return _moment(format_of(table), text, table.kind)
    except ValueError:
        return None
    return None


def _moment(form: str, text: str, kind: str) -> datetime.date | datetime.time:
    """By the letters of its format, place by place. ValueError: no such day or time."""
    parts = {"Y": "", "M": "", "D": "", "H": "", "m": ""}
    if len(text) != len(form):
        raise ValueError(text)
    for letter, char in zip(form, text, strict=True):
        if letter in parts:
            parts[letter] += char
    if kind == "time":
        return datetime.time(int(parts["H"]), int(parts["m"] or 0))
    year = int(parts["Y"])
    return datetime.date(year + 2000 if len(parts["Y"]) == 2 else year, int(parts["M"]), int(parts["D"]))


def _broken(check: CheckTable, values: Mapping[str, Value]) -> str:
    """Why a check does not hold, or nothing: one that cannot be made (a field is empty or unreadable) holds."""
    if check.field not in values or check.than not in values:
        return ""
    field, than = values[check.field], values[check.than]
    if check.rule == "after":
        return "" if field > than else f"{check.field} is not after {check.than}"  # type: ignore[operator]
    return "" if field <= than else f"{check.field} is more than {check.than}"  # type: ignore[operator]


# --- one sheet, one record ------------------------------------------------------------------------------------------


class Sheets:
    """Tells the first reading of a sheet from the next ones: a form that lies before a camera is one record."""

    def __init__(self) -> None:
        self._last: Result | None = None

    def is_new(self, read: Result) -> bool:
        """Whether this reading is to be recorded: another sheet, or the same one now accepted."""
        last, self._last = self._last, read if read.fields else None
        if not read.fields or last is None:
            return bool(read.fields)
        if not _same_sheet(last, read):
            return True
        if last.label == ACCEPTED and read.label == REVIEW:
            self._last = last  # a hand in the way does not undo what was read well
            return False
        return read.label == ACCEPTED and last.label == REVIEW


def _same_sheet(one: Result, other: Result) -> bool:
    texts = [(a.text, b.text) for a, b in zip(one.fields, other.fields, strict=False) if a.text or b.text]
    return bool(texts) and sum(a == b for a, b in texts) >= _SAME * len(texts)


def changes(inference: Inference) -> Iterator[Change]:
    """The event of a form that a person must look at, with its picture."""
    result = inference.result
    if result.label != REVIEW or not result.fields:
        return
    doubts = {field.name: field.doubt for field in result.fields if field.doubt}
    told = ", ".join(f"{name} {why}" for name, why in doubts.items())
    yield Change(
        EVENT, inference.pipeline, True, Severity.WARNING, f"a form is to be reviewed: {told}"[:500],
        inference.stamp.mono_ns, {"doubts": doubts, "input_seq": inference.input_seq}, keep_picture=True, point=True,
    )  # fmt: skip
