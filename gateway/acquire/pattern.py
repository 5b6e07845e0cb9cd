"""Patterns for lines of text: a small language of our own, matched in one pass.

A pattern is the line itself with fields in braces: `ST,GS, {weight:float kg}kg`. Regular expressions are not taken: one
that a person wrote at three in the morning can take minutes for a line of a hundred characters, inside the daemon.
Here every step either moves on or gives up, so a line costs at most its own length.

    text        itself; `{{` and `}}` are braces
    space(s)    any number of spaces and tabs, also none
    {name:float unit}   a number: sign, digits, point, exponent; spaces before it are passed over. Unit: UCUM, optional
    {name:int unit}     a whole number, 64 bits with a sign
    {name:hex unit}     a whole number in hexadecimal, 64 bits
    {name:angle}        degrees and minutes with a hemisphere as NMEA 0183 has them: 4807.038,N
    {name:text}         characters up to what follows in the pattern; is told as an event, readings are numbers
    {_}                 characters up to what follows in the pattern, not kept
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Iterator

import msgspec

from gateway import ucum
from gateway.contract import Channel, Schema
from gateway.errors import ConfigError

MAX_PATTERN = 400  # characters
MAX_FIELDS = 64

Value = float | int | str
Match = dict[str, Value]

_NAME = re.compile(r"[a-z][a-z0-9_]{0,47}")
_UNIT = re.compile(r"[^,:\x00-\x20\x7f]{0,32}")
_PIECES = re.compile(r"\{\{|\}\}|\{[^{}]*(?:\{[^{}]*\}[^{}]*)?\}|[ \t]+|[{}]|[^{} \t]+")
# bounded and without nested repeats, so matching one is linear
_FLOAT = re.compile(r"[ \t]*([+-]?)[ \t]*([0-9]{1,32}(?:\.[0-9]{0,32})?|\.[0-9]{1,32})((?:[eE][+-]?[0-9]{1,3})?)")
_INT = re.compile(r"[ \t]*([+-]?)[ \t]*([0-9]{1,19})(?![0-9])")
_HEX = re.compile(r"[ \t]*(?:0[xX])?([0-9a-fA-F]{1,16})(?![0-9a-fA-F])")
_ANGLE = re.compile(r"([0-9]{1,3})([0-9]{2}(?:\.[0-9]{1,9})?),([NSEW])")
_GREEDY = {"float": "0123456789.", "int": "0123456789", "hex": "0123456789abcdefABCDEF"}
_CODES = {"float": "d", "int": "q", "hex": "Q", "angle": "d"}


class _Step(msgspec.Struct, frozen=True):
    """One piece of a pattern: a literal, a space, or a field.

    Attributes:
        kind: literal, space, text, skip, or a key of `_CODES`.
        text: of a literal; the name of a field.
    """

    kind: str
    text: str
    unit: str = ""


class Pattern:
    """A pattern, compiled.

    Attributes:
        source: as it was written.
        schema: of the numbers, in their order; None when there are none.
        texts: names of the text fields.

    Raises:
        ConfigError: it is not a pattern; says where.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self._steps = tuple(_compile(source))
        channels = tuple(Channel(s.text, _CODES[s.kind], s.unit) for s in self._steps if s.kind in _CODES)
        self.schema = Schema(channels) if channels else None
        self.texts = tuple(step.text for step in self._steps if step.kind == "text")

    def match(self, line: str) -> Match | None:
        """The fields of a line that fits from its first character to its last (spaces at the end aside)."""
        found: Match = {}
        at = 0
        for i, step in enumerate(self._steps):
            if step.kind == "literal":
                if not line.startswith(step.text, at):
                    return None
                at += len(step.text)
            elif step.kind == "space":
                at = _after_spaces(line, at)
            elif step.kind in ("text", "skip"):
                end = self._end_of_text(line, at, i)
                if end < 0:
                    return None
                if step.kind == "text":
                    found[step.text] = line[at:end]
                at = end
            else:
                scanned = _SCANNERS[step.kind](line, at)
                if scanned is None:
                    return None
                found[step.text], at = scanned
        return found if _after_spaces(line, at) == len(line) else None

    def record(self, match: Match) -> bytes:
        """The packed record of a match's numbers."""
        assert self.schema is not None
        return struct.pack(self.schema.format, *(match[channel.name] for channel in self.schema.channels))

    def _end_of_text(self, line: str, at: int, i: int) -> int:
        """Where the text that begins at `at` ends: before what follows in the pattern; -1 when that does not come."""
        if i + 1 == len(self._steps):
            return len(line)
        after = self._steps[i + 1]
        if after.kind == "literal":
            return line.find(after.text, at)
        ends = [end for end in (line.find(" ", at), line.find("\t", at)) if end >= 0]
        return min(ends, default=len(line))


def _compile(source: str) -> Iterator[_Step]:
    if len(source) > MAX_PATTERN or not source.strip():
        raise ConfigError(f"pattern: {len(source)} characters", hint=f"1 to {MAX_PATTERN}")
    if not source.isascii() or not source.isprintable():
        raise ConfigError(f"pattern {source!r}: only printable ASCII", hint="the end of the line is not part of it")
    steps: list[_Step] = []
    for found in _PIECES.finditer(source):
        piece, where = found[0], f"pattern '{source}', character {found.start() + 1}"
        if piece in ("{", "}"):
            raise ConfigError(f"{where}: a lone {piece}", hint="{{ and }} are braces, {name:float} is a field")
        if piece.isspace():
            step = _Step("space", "")
        elif piece in ("{{", "}}") or not piece.startswith("{"):
            step = _Step("literal", piece[0] if piece in ("{{", "}}") else piece)
        else:
            step = _field(piece[1:-1], where)
        if steps and step.kind == steps[-1].kind == "literal":
            steps[-1] = _Step("literal", steps[-1].text + step.text)
            continue
        if steps:
            _check_pair(steps[-1], step, where)
        steps.append(step)
    names = [step.text for step in steps if step.kind not in ("literal", "space", "skip")]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"pattern '{source}': field '{twice[0]}' is there twice", hint="rename one")
    if len(names) > MAX_FIELDS:
        raise ConfigError(f"pattern '{source}': more than {MAX_FIELDS} fields", hint="keep fewer of them")
    yield from steps


def _check_pair(one: _Step, other: _Step, where: str) -> None:
    """Whether it is clear where `one` ends when `other` follows."""
    if other.kind == "literal":
        if other.text[0] in _GREEDY.get(one.kind, ""):
            raise ConfigError(f"{where}: '{other.text[0]}' would be part of the number before", hint="what is between?")
    elif one.kind in ("text", "skip") and other.kind != "space":
        raise ConfigError(f"{where}: two fields with nothing between", hint="where would the first end?")
    elif one.kind in _GREEDY and other.kind in _CODES:
        raise ConfigError(f"{where}: two numbers with nothing between", hint="where would the first end?")


def _field(inside: str, where: str) -> _Step:
    if inside == "_":
        return _Step("skip", "")
    name, colon, rest = inside.partition(":")
    kind, _, unit = rest.partition(" ")
    if not colon or not _NAME.fullmatch(name):
        raise ConfigError(f"{where}: '{{{inside}}}' is no field", hint="{name:float kg}; names as a_z, lower case")
    if kind not in (*_CODES, "text"):
        raise ConfigError(f"{where}: '{kind}' is no type", hint=f"one of {', '.join(_CODES)}, text")
    if unit and (kind == "text" or not _UNIT.fullmatch(unit)):
        raise ConfigError(
            f"{where}: '{unit}' is no unit here", hint="UCUM without spaces, colons and commas; of numbers"
        )
    if wrong := ucum.problem(unit):
        raise ConfigError(f"{where}: {wrong}", hint="what is no unit stands in braces: {n:int {parts}}")
    return _Step(kind, name, "deg" if kind == "angle" and not unit else unit)


def _after_spaces(line: str, at: int) -> int:
    while at < len(line) and line[at] in " \t":
        at += 1
    return at


def _scan_float(line: str, at: int) -> tuple[float, int] | None:
    found = _FLOAT.match(line, at)
    if found is None:
        return None
    value = float(found[1] + found[2] + found[3])
    return (value, found.end()) if math.isfinite(value) else None


def _scan_int(line: str, at: int) -> tuple[int, int] | None:
    found = _INT.match(line, at)
    if found is None:
        return None
    value = int(found[1] + found[2])
    return (value, found.end()) if -(1 << 63) <= value < 1 << 63 else None


def _scan_hex(line: str, at: int) -> tuple[int, int] | None:
    found = _HEX.match(line, at)
    return (int(found[1], 16), found.end()) if found else None


def _scan_angle(line: str, at: int) -> tuple[float, int] | None:
    found = _ANGLE.match(line, at)
    if found is None:
        return None
    degrees, minutes = int(found[1]), float(found[2])
    if minutes >= 60 or degrees + minutes / 60 > (90 if found[3] in "NS" else 180):
        return None
    return (degrees + minutes / 60) * (-1 if found[3] in "SW" else 1), found.end()


_SCANNERS: dict[str, Callable[[str, int], tuple[float | int, int] | None]] = {
    "float": _scan_float,
    "int": _scan_int,
    "hex": _scan_hex,
    "angle": _scan_angle,
}
