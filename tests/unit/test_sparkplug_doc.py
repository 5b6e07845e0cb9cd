"""docs/sparkplug.md says what the tests hold, and its generator notices when it does not."""

from __future__ import annotations

import pytest

from docs import make_sparkplug as maker
from docs.make_sparkplug import Statement, complaints, document, marks, statements

MARKED = '@pytest.mark.tck("tck-id-a")\ndef test_a() -> None: ...\n'
A = Statement("tck-id-a", "MUST", "edge", "asks", "")


def test_the_document_is_up_to_date() -> None:
    assert maker.DOCUMENT.read_text() == maker.made(), "run python docs/make_sparkplug.py"


def test_all_statements_are_listed_once() -> None:
    listed = statements(maker.STATEMENTS.read_text())
    assert len(listed) == len({statement.id for statement in listed}) == 299


def test_marks_are_read_from_the_source() -> None:
    assert list(marks("tests/x.py", MARKED)) == [("tck-id-a", "tests/x.py::test_a")]
    assert "| a | MUST | asks | `x.py::test_a` |" in document([A], {"tck-id-a": ["tests/x.py::test_a"]})


@pytest.mark.parametrize(
    "source",
    [
        MARKED.replace("test_a", "helper"),
        MARKED.replace('"tck-id-a"', "NAME"),
        "pytestmark = pytest.mark.tck('tck-id-a')\n",
    ],
)
def test_a_mark_that_would_be_missed_is_refused(source: str) -> None:
    with pytest.raises(ValueError, match=r"x\.py"):
        list(marks("x.py", source))


@pytest.mark.parametrize(
    ("listed", "held", "complaint"),
    [
        ([A], {}, "held by no test"),
        ([A], {"tck-id-b": ["t"]}, "no statement"),
        ([Statement("tck-id-a", "MUST", "host", "", "")], {"tck-id-a": ["t"]}, "binds a host"),
        ([Statement("tck-id-a", "MUST", "edge", "", "because")], {"tck-id-a": ["t"]}, "reason why not"),
        ([A, A], {"tck-id-a": ["t"]}, "twice"),
    ],
)
def test_a_gap_is_complained_about(listed: list[Statement], held: dict[str, list[str]], complaint: str) -> None:
    assert any(complaint in line for line in complaints(listed, held))
    assert complaints([A], {"tck-id-a": ["t"]}) == []


def test_a_broken_list_is_refused() -> None:
    with pytest.raises(ValueError, match="line 2"):
        statements("# head\ntck-id-a\tMUST\n")
