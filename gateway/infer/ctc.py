"""Text from a recogniser's probabilities: CTC (Graves et al. 2006), greedy and by prefix beam search. NumPy only.

A table is [steps, labels]; label 0 is the blank. A text is a tuple of labels without blanks. What may be read can be
constrained: a `Constraint` is an automaton over labels. `Lexicon` is one; whoever knows a field's pattern brings another.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from gateway.errors import ModelError
from gateway.infer.steps import Array

BLANK = 0
FLOOR = 1e-6  # a label less likely than this at a step is not tried there

State = TypeVar("State", bound=Hashable)


class Constraint(Protocol[State]):
    """What may be read, as an automaton: from `start`, one step a label; a text is allowed if it ends in `accepts`."""

    def start(self) -> State: ...

    def step(self, state: State, label: int) -> State | None:
        """The state after this label, or None when no allowed text goes on so."""

    def accepts(self, state: State) -> bool: ...


class Read(NamedTuple):
    """A text, and the probability of each of its characters: the largest of the steps that stand for it."""

    labels: tuple[int, ...]
    characters: tuple[float, ...]


class Lexicon:
    """Only these words; a state is a node of their tree."""

    def __init__(self, words: Iterable[Sequence[int]]) -> None:
        self._next: list[dict[int, int]] = [{}]
        self._ends: set[int] = set()
        for word in words:
            node = 0
            for label in word:
                if label not in self._next[node]:
                    self._next[node][label] = len(self._next)
                    self._next.append({})
                node = self._next[node][label]
            self._ends.add(node)

    def start(self) -> int:
        return 0

    def step(self, state: int, label: int) -> int | None:
        return self._next[state].get(label)

    def accepts(self, state: int) -> bool:
        return state in self._ends


class _Free:
    """Everything is allowed."""

    def start(self) -> int:
        return 0

    def step(self, state: int, label: int) -> int | None:
        return 0

    def accepts(self, state: int) -> bool:
        return True


FREE: Constraint[int] = _Free()


def greedy(table: Array) -> Read:
    """The best label of each step, repeats and blanks taken out."""
    best = table.argmax(axis=1)
    sure = table[np.arange(len(best)), best]
    begins = np.flatnonzero(np.diff(best, prepend=-1))
    if not begins.size:
        return Read((), ())
    peaks = np.maximum.reduceat(sure, begins)
    labels = best[begins]
    said = labels != BLANK
    return Read(tuple(labels[said].tolist()), tuple(peaks[said].astype(float).tolist()))


class _Beam(Generic[State]):
    """One prefix: probability of all paths to it that end in the blank, and of those that end in its last label."""

    __slots__ = ("blank", "label", "state")

    def __init__(self, state: State) -> None:
        self.state = state
        self.blank = 0.0
        self.label = 0.0


def beam(table: Array, width: int, constraint: Constraint[State], floor: float = FLOOR) -> Read:
    """The most probable text that the constraint allows, summed over its paths; empty when none was found.

    Args:
        width: how many prefixes are kept at each step.
        floor: labels less likely than this at a step are not tried there.
    """
    found = beams(table, width, constraint, floor)
    return Read(found[0][1], aligned(table, found[0][1])) if found else Read((), ())


def beams(
    table: Array, width: int, constraint: Constraint[State], floor: float = FLOOR
) -> list[tuple[float, tuple[int, ...]]]:
    """What `beam` chooses from: allowed texts with their shares of the probability of all that were kept, best first."""
    root = _Beam(constraint.start())
    root.blank = 1.0
    beams: dict[tuple[int, ...], _Beam[State]] = {(): root}
    for row in table:
        likely = np.flatnonzero(row > floor)
        labels = [(int(i), float(row[i])) for i in likely if i != BLANK]
        beams = _advance(beams, labels, float(row[BLANK]), constraint)
        if len(beams) > width:
            best = sorted(beams.items(), key=lambda item: -(item[1].blank + item[1].label))
            beams = dict(best[:width])
        total = sum(b.blank + b.label for b in beams.values())
        if total <= 0:
            return []
        for b in beams.values():  # scaled, so that a long text does not vanish
            b.blank /= total
            b.label /= total
    allowed = [(b.blank + b.label, text) for text, b in beams.items() if constraint.accepts(b.state)]
    return sorted(allowed, key=lambda item: -item[0])


def _advance(
    beams: dict[tuple[int, ...], _Beam[State]],
    labels: Sequence[tuple[int, float]],
    blank: float,
    constraint: Constraint[State],
) -> dict[tuple[int, ...], _Beam[State]]:
    """One step of the prefix search (Hannun et al. 2014, algorithm 1)."""
    following: dict[tuple[int, ...], _Beam[State]] = {}

    def at(text: tuple[int, ...], state: State) -> _Beam[State]:
        if (found := following.get(text)) is None:
            found = following[text] = _Beam(state)
        return found

    for text, b in beams.items():
        same = at(text, b.state)
        same.blank += (b.blank + b.label) * blank
        last = text[-1] if text else BLANK
        for label, p in labels:
            if label == last:
                same.label += b.label * p
            # the last label again is a new character only after a blank
            reach = b.blank if label == last else b.blank + b.label
            if reach and (state := constraint.step(b.state, label)) is not None:
                at((*text, label), state).label += reach * p
    return following


def aligned(table: Array, text: Sequence[int]) -> tuple[float, ...]:
    """The probability of each character at its best step of the most probable path that reads `text`.

    Raises:
        ModelError: the table has too few steps for the text.
    """
    if not text:
        return ()
    symbols = np.zeros(2 * len(text) + 1, np.intp)  # blanks around every character
    symbols[1::2] = text
    with np.errstate(divide="ignore"):
        logs = np.log(table[:, symbols].astype(np.float64))
    # from two places back only onto a character that differs from the one before: no blank is needed there
    skip = np.zeros(len(symbols), bool)
    skip[3::2] = symbols[3::2] != symbols[1:-2:2]
    score = np.full(len(symbols), -np.inf)
    score[:2] = logs[0, :2]
    came = np.zeros(logs.shape, np.int8)
    for t in range(1, len(logs)):
        options = np.full((3, len(symbols)), -np.inf)
        options[0] = score
        options[1, 1:] = score[:-1]
        options[2, 2:] = np.where(skip[2:], score[:-2], -np.inf)
        came[t] = options.argmax(axis=0)
        score = options.max(axis=0) + logs[t]
    place = len(symbols) - 1 if score[-1] >= score[-2] else len(symbols) - 2
    if score[place] == -np.inf:
        raise ModelError(f"{len(table)} steps cannot read {len(text)} characters")
    best = [0.0] * len(text)
    for t in range(len(logs) - 1, -1, -1):
        if place % 2:
            best[place // 2] = max(best[place // 2], float(table[t, symbols[place]]))
        place -= int(came[t, place])
    return tuple(best)
