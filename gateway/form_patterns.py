"""What may stand in a field, as an automaton over characters: patterns such as `AA-9999`, dates, times, words.

Light to import: the daemon checks templates with it, the worker constrains what the recogniser reads with it.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Sequence
from typing import NamedTuple

DIGITS = frozenset(string.digits)
LETTERS = frozenset(string.ascii_uppercase)
CLASSES = {"9": DIGITS, "A": LETTERS, "N": DIGITS | LETTERS}
PRINTABLE = frozenset(map(chr, range(32, 127)))
MAX_LENGTH = 64  # characters of a field

# letters of a format -> the shapes that they may take; a reading is one shape of each
_PARTS: dict[str, tuple[str, ...]] = {
    "YYYY": ("2099",),
    "YY": ("99",),
    "DD": ("0[1-9]", "[12]9", "3[01]"),
    "MM": ("0[1-9]", "1[0-2]"),
    "HH": ("[01]9", "2[0-3]"),
    "mm": ("[0-5]9",),
}


class Item(NamedTuple):
    """One place of a pattern: which characters, how often."""

    chars: frozenset[str]
    least: int = 1
    most: int = 1


Shape = tuple[Item, ...]
# places in the shapes that the text so far may have reached: (shape, item, how often that item was read)
State = frozenset[tuple[int, int, int]]


class PatternError(ValueError):
    """A pattern that says nothing, or too much."""


class Pattern:
    """A text fits when it is of one of the shapes."""

    def __init__(self, shapes: Sequence[Shape]) -> None:
        if not shapes or not all(shapes):
            raise PatternError("an empty pattern")
        if any(sum(item.most for item in shape) > MAX_LENGTH for shape in shapes):
            raise PatternError(f"a pattern for more than {MAX_LENGTH} characters")
        self.shapes = tuple(shapes)
        self.alphabet = frozenset().union(*(item.chars for shape in shapes for item in shape))
        if strange := self.alphabet - PRINTABLE:
            raise PatternError(f"{min(strange)!r} is no printable ASCII, and nothing else is read")
        self._steps: dict[tuple[State, str], State | None] = {}

    def start(self) -> State:
        """The state before anything was read."""
        return self._closed((i, 0, 0) for i in range(len(self.shapes)))

    def step(self, state: State, char: str) -> State | None:
        """The state after this character, or None when no text of the pattern goes on so."""
        key = state, char
        if key not in self._steps:
            self._steps[key] = self._step(state, char)
        return self._steps[key]

    def accepts(self, state: State) -> bool:
        """Whether what was read is a whole text of the pattern."""
        return any(item == len(self.shapes[shape]) for shape, item, _ in state)

    def fits(self, text: str) -> bool:
        """Whether a text is of one of the shapes."""
        state: State | None = self.start()
        for char in text:
            if (state := self.step(state, char) if state is not None else None) is None:
                return False
        return state is not None and self.accepts(state)

    def _step(self, state: State, char: str) -> State | None:
        reached = [
            (shape, item, count + 1)
            for shape, item, count in state
            if item < len(self.shapes[shape])
            and count < self.shapes[shape][item].most
            and char in self.shapes[shape][item].chars
        ]
        return self._closed(reached) or None

    def _closed(self, places: Iterable[tuple[int, int, int]]) -> State:
        """With the places that are reached without reading: an item that was read often enough is left."""
        todo, found = list(places), set()
        while todo:
            place = todo.pop()
            if place in found:
                continue
            found.add(place)
            shape, item, count = place
            if item < len(self.shapes[shape]) and count >= self.shapes[shape][item].least:
                todo.append((shape, item + 1, 0))
        return frozenset(found)


def code(pattern: str) -> Pattern:
    r"""`9` a digit, `A` a letter, `N` either, `[a-c]` one of these, `\x` and any other character itself; `{2}` and
    `{1,4}` after one: so often.

    Raises:
        PatternError: not written so.
    """
    return Pattern([_parse(pattern)])


def number(digits: int, decimals: int) -> Pattern:
    """Up to so many digits, then perhaps a point (a comma is read as one) and up to so many more."""
    whole = Item(DIGITS, 1, digits)
    shapes: list[Shape] = [(whole,)]
    if decimals:
        shapes.append((whole, Item(frozenset(".")), Item(DIGITS, 1, decimals)))
    return Pattern(shapes)


def dated(form: str) -> Pattern:
    """A date or time written as `DD.MM.YYYY`, `YYYY-MM-DD`, `MM/DD/YY`, `HH:mm`; anything else stands for itself.

    Raises:
        PatternError: nothing of a date or time in it.
    """
    shapes: list[Shape] = [()]
    at = 0
    seen = False
    while at < len(form):
        part = next((name for name in ("YYYY", "YY", "DD", "MM", "HH", "mm") if form.startswith(name, at)), "")
        seen = seen or bool(part)
        following = [_parse(text) for text in _PARTS[part]] if part else [(Item(frozenset(form[at])),)]
        shapes = [before + after for before in shapes for after in following]
        at += len(part) or 1
    if not seen:
        raise PatternError(f"not a format of a date or time: '{form}'")
    return Pattern(shapes)


def words(lexicon: Iterable[str]) -> Pattern:
    """One of these words, in capitals."""
    return Pattern([tuple(Item(frozenset(char)) for char in word.upper()) for word in lexicon])


def free(most: int = MAX_LENGTH) -> Pattern:
    """Anything that is printable ASCII."""
    return Pattern([(Item(PRINTABLE, 1, most),)])


def _parse(pattern: str) -> Shape:
    items: list[Item] = []
    at = 0
    while at < len(pattern):
        char = pattern[at]
        if char == "{" and items:
            end = pattern.find("}", at)
            items[-1] = _repeated(items[-1], pattern[at + 1 : end] if end > 0 else "")
            at = end + 1
            continue
        if char == "[":
            end = pattern.find("]", at)
            items.append(Item(_chars(pattern[at + 1 : end] if end > 0 else "")))
            at = end + 1
            continue
        if char == "\\" and at + 1 < len(pattern):
            at += 1
            items.append(Item(frozenset(pattern[at])))
        else:
            items.append(Item(CLASSES.get(char, frozenset(char.upper()))))
        at += 1
    return tuple(items)


def _repeated(item: Item, text: str) -> Item:
    low, _, high = text.partition(",")
    if not low.isdecimal() or (high and not high.isdecimal()) or len(text) > 7:
        raise PatternError(f"not a number of times: '{{{text}}}'")
    least, most = int(low), int(high or low)
    if not 0 <= least <= most <= MAX_LENGTH or most == 0:
        raise PatternError(f"not a number of times: '{{{text}}}'")
    return Item(item.chars, least, most)


def _chars(text: str) -> frozenset[str]:
    found: set[str] = set()
    at = 0
    while at < len(text):
        if text[at + 1 : at + 2] == "-" and at + 2 < len(text):
            found.update(map(chr, range(ord(text[at]), ord(text[at + 2]) + 1)))
            at += 3
        else:
            found.add(text[at])
            at += 1
    if not found or found - PRINTABLE:
        raise PatternError(f"not a set of characters: '[{text}]'")
    return frozenset(char.upper() for char in found)
