"""A paper form's template: where its fields are, what may stand in them, how they must go together. One TOML file.

Lengths are millimetres from the page's top left corner. Light to import: the daemon reads templates, hands them to the
worker with each picture (`as_media`), and checks what was read. docs/workorders.md explains the keys.
"""

from __future__ import annotations

import base64
import tomllib
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from gateway import form_patterns
from gateway.errors import ConfigError
from gateway.form_patterns import Pattern, PatternError
from gateway.tables import Name, Score, Table

MAX_BYTES = 32 << 10  # of a template file
MARK = ";form="  # in a job's media text, before the template

Millimetres = Annotated[float, Meta(ge=0, le=2000)]
Box = tuple[Millimetres, Millimetres, Millimetres, Millimetres]  # x0, y0, x1, y1
Text = Annotated[str, Meta(max_length=200)]
Word = Annotated[str, Meta(min_length=1, max_length=form_patterns.MAX_LENGTH, pattern=r"^[ -~]+$")]
Kind = Literal["number", "date", "time", "code", "word", "text", "tick"]
TYPED = ("number", "date", "time", "code", "word")  # of these a pattern says what may stand there


class Markers(Table, frozen=True):
    """Four ArUco markers (DICT_4X4_50), clockwise from the top left, each so far from its corner of the page."""

    ids: tuple[
        Annotated[int, Meta(ge=0, lt=50)], Annotated[int, Meta(ge=0, lt=50)],
        Annotated[int, Meta(ge=0, lt=50)], Annotated[int, Meta(ge=0, lt=50)],
    ] = (0, 1, 2, 3)  # fmt: skip
    size: Annotated[float, Meta(ge=4, le=60)] = 12.0  # of the black square
    margin: Annotated[float, Meta(ge=0, le=200)] = 9.0  # from the page's edges to the black square


class FieldTable(Table, frozen=True):
    """One place that is filled in."""

    name: Name
    kind: Kind
    box: Box
    label: Text = ""  # printed above it
    required: bool = True  # left empty it is to be reviewed
    pattern: Annotated[str, Meta(max_length=100)] = ""  # of a code
    words: Annotated[tuple[Word, ...], Meta(max_length=500)] = ()  # of a word
    format: Annotated[str, Meta(max_length=20)] = ""  # of a date or time
    digits: Annotated[int, Meta(ge=1, le=15)] = 8  # of a number, before the comma
    decimals: Annotated[int, Meta(ge=0, le=6)] = 0
    least: float | None = None
    most: float | None = None
    confidence: Score = 0.0  # below it a field is to be reviewed; 0: as fitted for its kind


class CheckTable(Table, frozen=True):
    """`field` must come after `than` (dates, times), or be at most `than` (numbers)."""

    rule: Literal["after", "at_most"]
    field: Name
    than: Name


class Template(Table, frozen=True, kw_only=True):
    name: Name
    title: Text = ""
    page: tuple[Annotated[float, Meta(ge=20, le=2000)], Annotated[float, Meta(ge=20, le=2000)]] = (210.0, 297.0)
    markers: Markers | None = None  # without them the page's own corners are looked for
    field: Annotated[tuple[FieldTable, ...], Meta(min_length=1, max_length=100)]
    check: Annotated[tuple[CheckTable, ...], Meta(max_length=100)] = ()


def pattern_of(field: FieldTable) -> Pattern:
    """What may be read in a field that is read as text.

    Raises:
        PatternError: its pattern, words or format say nothing.
    """
    match field.kind:
        case "number":
            return form_patterns.number(field.digits, field.decimals)
        case "date" | "time":
            return form_patterns.dated(format_of(field))
        case "code":
            return form_patterns.code(field.pattern)
        case "word":
            return form_patterns.words(field.words)
        case _:
            return form_patterns.free()


def format_of(field: FieldTable) -> str:
    """How a date or time is written."""
    return field.format or ("HH:mm" if field.kind == "time" else "DD.MM.YYYY")


def load(path: Path) -> Template:
    """Read and check a template.

    Raises:
        ConfigError: unreadable, not TOML, a key unknown, missing or out of range, or settings that contradict.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot read it: {error.strerror}", hint="make one: octogate form new") from error
    return parse(data, str(path))


def parse(data: bytes, where: str) -> Template:
    """The same, of bytes."""
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{where}: larger than {MAX_BYTES >> 10} KiB", hint="is this a form's template?")
    try:
        template = msgspec.convert(tomllib.loads(data.decode()), Template)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where}: not valid TOML: {error}", hint="mend that line") from error
    except RecursionError as error:
        raise ConfigError(f"{where}: tables too deep", hint="is this a form's template?") from error
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {error}", hint="docs/workorders.md explains the keys") from error
    _check(template, where)
    return template


def _check(template: Template, where: str) -> None:
    seen: dict[str, FieldTable] = {}
    width, height = template.page
    for i, field in enumerate(template.field):
        key = f"{where}: field[{i}] '{field.name}'"
        if field.name in seen:
            raise ConfigError(f"{key}: there are two of this name", hint="rename one")
        seen[field.name] = field
        x0, y0, x1, y1 = field.box
        if not (x0 + 1 <= x1 <= width and y0 + 1 <= y1 <= height):
            raise ConfigError(f"{key}: box is not on the page, or smaller than 1 mm", hint="box = [x0, y0, x1, y1]")
        for name, kinds in _ONLY.items():
            if getattr(field, name) not in ("", ()) and field.kind not in kinds:
                raise ConfigError(f"{key}: {name} is for {' and '.join(kinds)}", hint="delete the line")
        try:
            pattern_of(field)
        except PatternError as error:
            wanted = next((name for name, kinds in _ONLY.items() if field.kind in kinds), "kind")
            raise ConfigError(f"{key}: {error}", hint=f"give {wanted} = ...") from error
    for i, check in enumerate(template.check):
        fitting = {"after": ("date", "time"), "at_most": ("number",)}[check.rule]
        for name in (check.field, check.than):
            if name not in seen or seen[name].kind not in fitting:
                hint = f"rule '{check.rule}' is for {' and '.join(fitting)}"
                raise ConfigError(f"{where}: check[{i}]: no such field '{name}' of a fitting kind", hint=hint)
        if seen[check.field].kind != seen[check.than].kind:
            raise ConfigError(f"{where}: check[{i}]: a date and a time", hint="compare dates with dates")


_ONLY: dict[str, tuple[Kind, ...]] = {"pattern": ("code",), "words": ("word",), "format": ("date", "time")}


def dumps(template: Template, notes: str = "") -> str:
    """The template as TOML that `parse` reads back to the same; `notes` becomes comment lines at its top."""
    lines = [f"# {''.join(filter(str.isprintable, line))}".rstrip() for line in notes.splitlines()]
    plain = {name: value for name, value in _kept(template) if name not in ("markers", "field", "check")}
    lines += [f"{name} = {_toml(value)}" for name, value in plain.items()]
    tables: list[tuple[str, Table]] = [("[markers]", template.markers)] if template.markers else []
    tables += [("[[field]]", field) for field in template.field] + [("[[check]]", check) for check in template.check]
    for head, table in tables:
        lines += ["", head, *(f"{name} = {_toml(value)}" for name, value in _kept(table))]
    return "\n".join(lines) + "\n"


def _kept(table: Table) -> list[tuple[str, object]]:
    """What differs from the defaults, in the order of declaration."""
    return [
        (field.name, getattr(table, field.name))
        for field in msgspec.structs.fields(table)
        if getattr(table, field.name) is not None and getattr(table, field.name) != field.default
    ]


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return repr(value)


def _quoted(text: str) -> str:
    """A basic string (TOML 1.0): quotes, backslashes and control characters escaped."""
    escaped = "".join(
        f"\\u{ord(char):04x}" if char < " " or char == "\x7f" else f"\\{char}" if char in '"\\' else char
        for char in text
    )
    return f'"{escaped}"'


# --- the way to the worker ------------------------------------------------------------------------------------------

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Template)


def as_media(template: Template) -> str:
    """What is added to a picture's media text so that the worker reads it as this form."""
    return MARK + base64.urlsafe_b64encode(_encoder.encode(template)).decode()


def of_media(media: str) -> tuple[str, Template | None]:
    """The inverse: the kind of picture, and the template that is named.

    Raises:
        ValueError: not what `as_media` writes.
    """
    kind, mark, text = media.partition(MARK)
    if not mark:
        return media, None
    return kind, _decoder.decode(base64.b64decode(text, altchars=b"-_", validate=True))
