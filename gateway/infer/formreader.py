"""Reads a picture as a paper form: found on it, cut into cells, each cell read as its field allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from gateway.contract import Result
from gateway.errors import ModelError
from gateway.form_patterns import PatternError
from gateway.forms import FieldTable, Template, of_media
from gateway.infer.fields import Reader
from gateway.infer.steps import Array
from gateway.result import Field

if TYPE_CHECKING:
    from gateway.infer.register import Page

NO_FORM = "no form"
_MAX_FORMS = 8  # templates remembered; a gateway has a few
_TICKED, _CLEAN = 0.12, 0.04  # shares of a tick box that are written on: from the first ticked, below the second empty

_SURE_TICK = 0.75

# cells -> for each the recogniser's probabilities [steps, labels]
Recognise = Callable[[Sequence[Array]], Sequence[Array]]


class FormReader:
    """Reads forms with one recogniser; remembers what it has made of a template.

    Args:
        labels: what the recogniser's columns stand for, the first is the blank.
        accept: a field read with less confidence is doubted, unless its template says another.
    """

    def __init__(self, labels: Sequence[str], accept: float) -> None:
        self._labels, self._accept = labels, accept
        self._known: dict[str, tuple[str, Template, dict[str, Reader]]] = {}

    def template(self, media: str) -> tuple[str, Template]:
        """The kind of picture and the form that a job's media text names.

        Raises:
            ModelError: it names none that can be used.
        """
        if media not in self._known:
            try:
                kind, template = of_media(media)
                if template is None:
                    raise ValueError("no form in it")
                readers = {f.name: Reader(f, self._labels) for f in template.field if f.kind != "tick"}
            except (ValueError, PatternError) as error:
                raise ModelError(f"not a form's template: {error}", hint="does octogate check take it?") from error
            if len(self._known) >= _MAX_FORMS:
                self._known.clear()
            self._known[media] = kind, template, readers
        return self._known[media][:2]

    def read(self, picture: Array, media: str, recognise: Recognise) -> Result:
        """What is written on the form; `label` is `NO_FORM` when it is not on the picture."""
        from gateway.infer import register

        _, template, readers = self._known[media]
        page = register.find(picture, template)
        if page is None:
            return Result(NO_FORM)
        found: dict[str, Field] = {}
        cells: dict[str, Array] = {}
        for field in template.field:
            read = self._by_ink(picture, page, field)
            if isinstance(read, Field):
                found[field.name] = read
            else:
                cells[field.name] = read
        for name, table in zip(cells, recognise(list(cells.values())) if cells else (), strict=True):
            found[name] = Field(name, *readers[name].read(table))
        fields = tuple(self._doubted(field, found[field.name]) for field in template.field)
        return Result(
            score=min(field.confidence for field in fields),
            text=", ".join(f"{field.name} {field.text}" for field in fields if field.text),
            values={"markers": float(page.markers)},
            fields=fields,
        )

    def _doubted(self, field: FieldTable, read: Field) -> Field:
        least = field.confidence or (_SURE_TICK if field.kind == "tick" else self._accept)
        return msgspec.structs.replace(read, doubt="not sure") if read.confidence < least else read

    @staticmethod
    def _by_ink(picture: Array, page: Page, field: FieldTable) -> Field | Array:
        """A tick box, or an empty cell; of any other the line that is to be recognised."""
        from gateway.infer import register

        cut = register.cell(picture, page, field.box)
        if field.kind == "tick":
            share = register.ticked(cut)
            middle = (_TICKED + _CLEAN) / 2
            sure = min(1.0, 0.5 + abs(share - middle) / (_TICKED - _CLEAN))
            return Field(field.name, "yes" if share > middle else "no", sure)
        at = register.written(cut)
        return Field(field.name, "", 1.0) if at is None else register.line(cut, at)
