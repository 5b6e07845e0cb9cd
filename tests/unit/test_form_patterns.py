"""Patterns of fields, and the decoder that they constrain: compared with regular expressions and with every path."""

import itertools
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import form_patterns
from gateway.form_patterns import Pattern, PatternError
from gateway.forms import FieldTable
from gateway.infer import ctc
from gateway.infer.fields import Reader

BOX = (0.0, 0.0, 10.0, 10.0)
# (our pattern, the same as a regular expression)
CODES = [
    ("WO-999", r"WO-\d{3}"),
    ("A{1,2}9?", r"[A-Z]{1,2}\d\?"),
    ("[a-c]{2}-N", r"[A-C]{2}-[0-9A-Z]"),
    (r"\A\99{0,2}", r"A9\d{0,2}"),
    ("x.9{2}", r"X\.\d{2}"),
]


@pytest.mark.parametrize(("ours", "theirs"), CODES)
@settings(deadline=None)
@given(data=st.data())
def test_a_code_fits_what_the_regular_expression_matches(ours: str, theirs: str, data: Any) -> None:
    text = data.draw(st.from_regex(theirs, fullmatch=True) | st.text("AWO019-?.X", max_size=6))
    ascii_digits = all(char in form_patterns.DIGITS or not char.isdigit() for char in text)
    assert form_patterns.code(ours).fits(text) == (bool(re.fullmatch(theirs, text)) and ascii_digits)


@pytest.mark.parametrize(
    ("form", "good", "bad"),
    [
        ("DD.MM.YYYY", ["01.12.2026", "31.02.2026"], ["32.01.2026", "01.13.2026", "1.1.2026", "00.01.2026", "01.01.1999"]),
        ("YYYY-MM-DD", ["2026-10-09"], ["2026-1-09", "20261009"]),
        ("MM/DD/YY", ["02/29/26"], ["13/01/26"]),
        ("HH:mm", ["00:00", "23:59", "19:30"], ["24:00", "12:60", "1:30", "12.30"]),
    ],
)  # fmt: skip
def test_dates_and_times(form: str, good: list[str], bad: list[str]) -> None:
    pattern = form_patterns.dated(form)
    assert [text for text in good if not pattern.fits(text)] == []
    assert [text for text in bad if pattern.fits(text)] == []


def test_numbers() -> None:
    pattern = form_patterns.number(3, 2)
    assert all(map(pattern.fits, ["0", "123", "1.5", "123.45"]))
    assert not any(map(pattern.fits, ["", "1234", "1.", ".5", "1.234", "1,5", "-1"]))
    assert not form_patterns.number(3, 0).fits("1.5")


@settings(deadline=None)
@given(st.text(max_size=12))
def test_any_text_is_a_code_or_is_refused_with_a_word(text: str) -> None:
    try:
        pattern = form_patterns.code(text)
    except PatternError as error:
        assert str(error)
    else:
        assert pattern.alphabet and not pattern.fits("\n")


@pytest.mark.parametrize(
    "text", ["", "9{", "9{x}", "9{3,1}", "9{0}", "9{65}", "[", "[]", "[ä]", "9{64}9", "A{-1}", "\n", "9\\\n", "ÄA-9"]
)
def test_what_is_no_pattern(text: str) -> None:
    with pytest.raises(PatternError):
        form_patterns.code(text)


def test_a_format_without_date_or_time_is_refused() -> None:
    with pytest.raises(PatternError, match="not a format"):
        form_patterns.dated("--")


# --- the decoder ----------------------------------------------------------------------------------------------------


def collapsed(path: Any) -> Any:
    return "".join(label for label, _ in itertools.groupby(path) if label)


def best_by_all_paths(table: Any, labels: Any, pattern: Any) -> Any:
    """The most probable text of the pattern, by adding up every path."""
    sums: dict[str, float] = {}
    for path in itertools.product(range(len(labels)), repeat=len(table)):
        text = collapsed([labels[i] if i else "" for i in path])
        if pattern.fits(text):
            p = float(np.prod([table[t, i] for t, i in enumerate(path)]))
            sums[text] = sums.get(text, 0.0) + p
    return sums


class Over:
    """A pattern as a constraint over labels."""

    def __init__(self, pattern: Any, labels: Any) -> None:
        self.pattern, self.labels = pattern, labels

    def start(self) -> Any:
        return self.pattern.start()

    def step(self, state: Any, label: Any) -> Any:
        return self.pattern.step(state, self.labels[label])

    def accepts(self, state: Any) -> Any:
        return self.pattern.accepts(state)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**31),
    st.integers(2, 5),
    st.sampled_from(["9{1,3}", "A9", "1N", "[01]{2}A{0,1}", "9A{1,2}"]),
)
def test_the_constrained_search_finds_the_best_of_all_paths(seed: int, steps: int, written: str) -> None:
    labels = ["", "0", "1", "A", "B"]
    pattern = form_patterns.code(written)
    table = np.random.default_rng(seed).dirichlet(np.full(len(labels), 0.4), steps).astype(np.float64) + 1e-9
    wanted = best_by_all_paths(table, labels, pattern)
    found = ctc.beams(table, 10_000, Over(pattern, labels), 0.0)
    if not wanted:
        assert found == []
        return
    texts = {"".join(labels[i] for i in text): share for share, text in found}
    assert texts.keys() == wanted.keys()
    best = max(wanted, key=wanted.__getitem__)
    assert texts[best] == pytest.approx(max(texts.values()))
    for text in wanted:  # shares are as the sums of all paths are to each other
        assert texts[text] / texts[best] == pytest.approx(wanted[text] / wanted[best], rel=1e-6)


def spelled(text: str, labels: Any, doubt: Any = ()) -> Any:
    """A recogniser's table that says `text` clearly, but for (place, other character, its share)."""
    table = np.full((2 * len(text) + 1, len(labels)), 1e-6, np.float32)
    table[::2, 0] = 1
    for i, char in enumerate(text):
        table[2 * i + 1, labels.index(char)] = 1
    for place, other, part in doubt:
        table[2 * place + 1] *= 1 - part
        table[2 * place + 1, labels.index(other)] = part
    return table


LABELS = ["<blank>", *map(chr, range(33, 127)), " "]


@pytest.mark.parametrize(
    ("more", "seen", "read"),
    [
        ({"kind": "number"}, "I2O5", "1205"),
        ({"kind": "number", "decimals": 2}, "7,5O", "7.50"),
        ({"kind": "time"}, "O8:l5", "08:15"),
        ({"kind": "date"}, "3l.12.2O26", "31.12.2026"),
        ({"kind": "code", "pattern": "WO-9999"}, "wO-1Z34", "WO-1234"),
        ({"kind": "word", "words": ("Press 1", "Mill 2")}, "Press l", "PRESS 1"),
        ({"kind": "word", "words": ("Adams", "Evans")}, "Adans", "ADAMS"),
        ({"kind": "text"}, "a b", "a b"),
    ],
)
def test_a_field_reads_what_may_stand_there(more: dict[str, Any], seen: str, read: Any) -> None:
    reader = Reader(FieldTable(name="f", box=BOX, **more), LABELS)
    text, sure = reader.read(spelled(seen, LABELS))
    assert text == read
    assert 0 <= sure <= 1


def test_confidence_falls_with_a_rival_and_with_what_does_not_fit() -> None:
    number = Reader(FieldTable(name="f", kind="number", box=BOX), LABELS)
    clear = number.read(spelled("1234", LABELS))[1]
    rival = number.read(spelled("1234", LABELS, [(2, "8", 0.4)]))[1]
    other = number.read(spelled("12#4", LABELS))[1]
    assert clear > 0.95
    assert rival < 0.6
    assert other < 0.1


def test_a_table_that_allows_nothing_gives_nothing() -> None:
    reader = Reader(FieldTable(name="f", kind="code", pattern="9{10}", box=BOX), LABELS)
    assert reader.read(spelled("1", LABELS)) == ("", 0.0)


def test_states_are_remembered_not_computed_again() -> None:
    pattern = Pattern([(form_patterns.Item(form_patterns.DIGITS, 1, 3),)])
    state = pattern.step(pattern.start(), "1")
    assert pattern.step(pattern.start(), "1") is state
