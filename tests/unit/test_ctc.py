"""CTC against the definition: every path through a small table, summed by the text it stands for."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import ModelError
from gateway.infer import ctc


def collapsed(path: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(label for label, _ in itertools.groupby(path) if label)


def texts(table: np.ndarray) -> dict[tuple[int, ...], float]:
    """Each text's probability: the sum over all paths that collapse to it."""
    out: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(table.shape[1]), repeat=len(table)):
        p = float(np.prod([table[t, label] for t, label in enumerate(path)]))
        out[collapsed(path)] = out.get(collapsed(path), 0.0) + p
    return out


@st.composite
def tables(draw: st.DrawFn, steps: int = 5, labels: int = 3) -> np.ndarray:
    n, c = draw(st.integers(1, steps)), draw(st.integers(2, labels))
    weights = draw(st.lists(st.integers(1, 100), min_size=n * c, max_size=n * c))
    table = np.array(weights, float).reshape(n, c)
    return np.asarray(table / table.sum(axis=1, keepdims=True))


@given(tables(steps=12, labels=6))
def test_greedy_collapses_the_best_path(table: np.ndarray) -> None:
    path = tuple(max(range(len(row)), key=lambda i: (row[i], -i)) for row in table.tolist())
    read = ctc.greedy(table)
    assert read.labels == collapsed(path)
    peaks = []
    for label, run in itertools.groupby(enumerate(path), key=lambda item: item[1]):
        if label:
            peaks.append(max(float(table[t, label]) for t, _ in run))
    assert read.characters == pytest.approx(tuple(peaks))


@given(tables())
def test_a_wide_beam_finds_the_most_probable_text(table: np.ndarray) -> None:
    every = texts(table)
    read = ctc.beam(table, 10_000, ctc.FREE, floor=0.0)
    assert every[read.labels] == pytest.approx(max(every.values()))


@given(tables(), st.sets(st.lists(st.integers(1, 2), max_size=3).map(tuple), min_size=1, max_size=4))
def test_a_lexicon_gives_its_most_probable_word(
    table: np.ndarray,
    words: set[tuple[int, ...]],
) -> None:
    words = {word for word in words if all(label < table.shape[1] for label in word)}
    every = {text: p for text, p in texts(table).items() if text in words and p > 0}
    read = ctc.beam(table, 10_000, ctc.Lexicon(words), floor=0.0)
    if not every:
        assert read == ctc.Read((), ())
    else:
        assert every[read.labels] == pytest.approx(max(every.values()))


@given(tables())
def test_characters_are_those_of_the_best_path_of_the_text(table: np.ndarray) -> None:
    text = ctc.greedy(table).labels
    paths = [p for p in itertools.product(range(table.shape[1]), repeat=len(table)) if collapsed(p) == text]
    best = max(float(np.prod([table[t, i] for t, i in enumerate(path)])) for path in paths)
    candidates = []
    for path in paths:
        if np.prod([table[t, i] for t, i in enumerate(path)]) >= best * (1 - 1e-9):
            runs = [(i, [t for t, _ in run]) for i, run in itertools.groupby(enumerate(path), key=lambda x: x[1])]
            candidates.append([max(float(table[t, i]) for t in steps) for i, steps in runs if i])
    got = ctc.aligned(table, text)
    assert any(got == pytest.approx(tuple(candidate)) for candidate in candidates)


@given(tables(steps=20, labels=8), st.integers(1, 8))
def test_a_narrow_beam_gives_labels_and_probabilities(table: np.ndarray, width: int) -> None:
    read = ctc.beam(table, width, ctc.FREE)
    assert len(read.labels) == len(read.characters) <= len(table)
    assert all(0 < label < table.shape[1] for label in read.labels)
    assert all(0 < p <= 1 for p in read.characters)


def test_two_equal_characters_need_a_blank_between() -> None:
    table = np.array([[0.1, 0.9], [0.8, 0.2], [0.1, 0.9]])
    assert ctc.greedy(table).labels == (1, 1)
    assert ctc.aligned(table, (1, 1)) == pytest.approx((0.9, 0.9))
    with pytest.raises(ModelError, match="2 steps cannot read 2 characters"):
        ctc.aligned(table[:2], (1, 1))
    assert ctc.aligned(table, ()) == ()


def test_the_beam_beats_the_greedy_path_where_paths_add_up() -> None:
    table = np.array([[0.6, 0.4], [0.6, 0.4]])  # blank-blank .36, but the three paths to 'a' make .64
    assert ctc.greedy(table).labels == ()
    assert ctc.beam(table, 4, ctc.FREE).labels == (1,)


def test_a_long_text_does_not_vanish() -> None:
    table = np.full((3000, 4), 0.02)
    table[np.arange(3000), [1, 0, 2, 0, 3, 0] * 500] = 0.94
    assert ctc.beam(table, 3, ctc.FREE).labels == (1, 2, 3) * 500


class Digits:
    """A pattern of another: exactly two labels, the second larger than the first."""

    def start(self) -> tuple[int, ...]:
        return ()

    def step(self, state: tuple[int, ...], label: int) -> tuple[int, ...] | None:
        return (*state, label) if len(state) < 2 and (not state or label > state[-1]) else None

    def accepts(self, state: tuple[int, ...]) -> bool:
        return len(state) == 2


@given(tables(labels=4))
def test_any_automaton_constrains(table: np.ndarray) -> None:
    every = {text: p for text, p in texts(table).items() if len(list(text)) == 2 and list(text) == sorted(set(text))}
    read = ctc.beam(table, 10_000, Digits(), floor=0.0)
    if not every:
        assert read.labels == ()
    else:
        assert every[read.labels] == pytest.approx(max(every.values()))
