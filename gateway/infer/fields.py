"""What a field says, from a recogniser's probabilities and what may stand there. NumPy only.

The recogniser knows every character; a field does not allow all of them. Before the search the probabilities of what
it does not allow go to what looks like it: an O in a number is a 0, a small letter of a code is a capital one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gateway.form_patterns import Pattern, State
from gateway.forms import FieldTable, pattern_of
from gateway.infer import ctc
from gateway.infer.steps import Array

WIDTH = 12  # prefixes kept
_FLOOR = 1e-4
_UNSEEN = 1e-5  # the probability that any allowed character has at each step when nothing else can be read
_SHARE = 0.3  # of a character's probability that goes to a look-alike although it is allowed itself

# a character -> what it may be a bad copy of, the likeliest first
_ALIKE = {
    "O": "0DQ", "Q": "0O", "D": "0O", "U": "0", "C": "0", "o": "0", "I": "1J", "l": "1I", "i": "1", "|": "1I", "!": "1", "J": "1",
    "L": "1", "Z": "2", "z": "2", "?": "2", "S": "5", "s": "5", "G": "6", "b": "6", "T": "7", "B": "8", "g": "9",
    "q": "9", "A": "4", "Y": "4", "0": "O", "1": "I", "2": "Z", "5": "S", "6": "G", "7": "T", "8": "B", "4": "A",
    ";": ":", ".": ":,-", ",": ".", "_": "-", "~": "-", "\\": "/", "'": "1", "=": "-", "-": ".",
}  # fmt: skip


class Reader:
    """One field's decoder over a recogniser's labels (the first is the blank).

    Raises:
        PatternError: the field's pattern says nothing.
    """

    def __init__(self, field: FieldTable, labels: Sequence[str]) -> None:
        self.pattern = pattern_of(field)
        self._chars = sorted(self.pattern.alphabet)
        self._fold = _folded(labels, self._chars)
        self._word = field.kind == "word"
        self._constraint = _OfPattern(self.pattern, self._chars)

    def read(self, table: Array) -> tuple[str, float]:
        """The most probable text that fits, and how sure that is; `("", 0.0)` when nothing can be read.

        Args:
            table: probabilities [steps, labels].
        """
        folded = table @ self._fold
        found = ctc.beams(folded, WIDTH, self._constraint, _FLOOR)
        if not found or not found[0][1]:
            folded = folded + np.float32(_UNSEEN)
            found = ctc.beams(folded, WIDTH, self._constraint, 0.0)
        if not found or not found[0][1]:
            return "", 0.0
        share, best = found[0]
        rivals = sum(other for other, _ in found)
        # both: a character may be doubtful though no other text fits, and another text nearly as good though none is
        each = ctc.aligned(folded, best)
        # and something may stand there that fits nowhere: a step of which little is allowed
        least = self._of_word(each) if self._word else min(*each, float(folded.sum(axis=1).min()))
        sure = least * share / rivals
        return "".join(self._chars[label - 1] for label in best), min(1.0, sure)

    @staticmethod
    def _of_word(each: Sequence[float]) -> float:
        """The geometric mean: one unclear letter leaves a word clear when no other word fits."""
        return float(np.exp(np.log(np.maximum(each, 1e-9)).mean()))


class _OfPattern:
    """A pattern as a constraint over the folded columns."""

    def __init__(self, pattern: Pattern, chars: Sequence[str]) -> None:
        self._pattern, self._chars = pattern, chars

    def start(self) -> State:
        return self._pattern.start()

    def step(self, state: State, label: int) -> State | None:
        return self._pattern.step(state, self._chars[label - 1])

    def accepts(self, state: State) -> bool:
        return self._pattern.accepts(state)


def _folded(labels: Sequence[str], chars: Sequence[str]) -> Array:
    """[labels, 1 + chars]: how much of each label's probability goes to the blank and to each allowed character."""
    column = {char: i for i, char in enumerate(chars, 1)}
    fold = np.zeros((len(labels), len(chars) + 1), np.float32)
    fold[ctc.BLANK, 0] = 1
    for row, label in enumerate(labels):
        if row == ctc.BLANK:
            continue
        capital = label if label in column else label.upper()
        alike = [char for char in _ALIKE.get(label, _ALIKE.get(capital, "")) if char in column]
        if capital in column:
            fold[row, column[capital]] = 1
            if alike:
                fold[row, column[alike[0]]] = _SHARE
        elif alike:
            fold[row, column[alike[0]]] = 1
        elif label == " ":
            fold[row, 0] = 1
    return fold
