"""What a form says: values, doubts, checks, and one record a sheet."""

from typing import Any

import pytest

from gateway.analyse import workorder
from gateway.contract import Field, Inference, Result, Severity, Stamp
from gateway.forms import CheckTable, FieldTable, Template

BOX = (0.0, 0.0, 10.0, 10.0)
TEMPLATE = Template(
    name="t",
    field=(
        FieldTable(name="order", kind="code", pattern="99", box=BOX),
        FieldTable(name="day", kind="date", box=BOX),
        FieldTable(name="start", kind="time", box=BOX),
        FieldTable(name="end", kind="time", box=BOX),
        FieldTable(name="quantity", kind="number", least=1, most=5000, box=BOX),
        FieldTable(name="done", kind="number", decimals=1, box=BOX),
        FieldTable(name="who", kind="word", words=("Adams", "Bauer"), box=BOX, required=False),
        FieldTable(name="ok", kind="tick", box=BOX),
    ),
    check=(CheckTable("after", "end", "start"), CheckTable("at_most", "done", "quantity")),
)
READ = {
    "order": "17", "day": "28.02.2026", "start": "08:15", "end": "09:00", "quantity": "120", "done": "99,5", "who": "BAUER",
    "ok": "yes",
}  # fmt: skip


def result(sure: float = 1.0, **changes: Any) -> Any:
    texts = READ | changes
    return Result(
        score=sure, fields=tuple(Field(name, text, sure, doubt="" if sure > 0.9 else "not sure") for name, text in texts.items())
    )  # fmt: skip


def judged(**changes: Any) -> Any:
    return workorder.judge(TEMPLATE, result(**changes))


def doubts(**changes: Any) -> Any:
    return {field.name: field.doubt for field in judged(**changes).fields if field.doubt}


def test_a_form_that_is_right_is_accepted_with_its_values() -> None:
    got = judged()
    assert got.label == "accepted"
    assert {field.name: field.value for field in got.fields} == READ | {
        "day": "2026-02-28",
        "done": "99.5",
        "who": "Bauer",
    }
    assert got.text.startswith("accepted: order 17, day 2026-02-28")


@pytest.mark.parametrize(
    ("changes", "doubted"),
    [
        ({"day": "30.02.2026"}, {"day": "no date"}),
        ({"order": ""}, {"order": "empty"}),
        ({"who": ""}, {}),
        ({"end": "08:15"}, {"end": "end is not after start", "start": "end is not after start"}),
        ({"end": "07:00"}, {"end": "end is not after start", "start": "end is not after start"}),
        ({"done": "121"}, {"done": "done is more than quantity", "quantity": "done is more than quantity"}),
        ({"done": "120"}, {}),
        ({"quantity": "0", "done": "0"}, {"quantity": "less than 1"}),
        ({"quantity": "6000"}, {"quantity": "more than 5000"}),
        ({"end": ""}, {"end": "empty"}),  # nothing to compare: only told once
    ],
)
def test_what_is_doubted(changes: Any, doubted: dict[str, str]) -> None:
    assert doubts(**changes) == doubted
    assert judged(**changes).label == ("review" if doubted else "accepted")


def test_what_the_worker_is_not_sure_of_is_reviewed() -> None:
    got = workorder.judge(TEMPLATE, result(sure=0.5, end="08:00"))
    assert got.label == "review"
    assert {field.doubt for field in got.fields} == {"not sure", "not sure; end is not after start"}


def test_no_form_stays_no_form() -> None:
    assert workorder.judge(TEMPLATE, Result("no form")) == Result("no form")


def test_years_of_two_digits_and_other_formats() -> None:
    field = FieldTable(name="day", kind="date", format="MM/DD/YY", box=BOX)
    read = Result(fields=(Field("day", "02/01/27", 1.0),))
    assert workorder.judge(Template(name="t", field=(field,)), read).fields[0].value == "2027-02-01"


def test_a_sheet_is_recorded_once_and_again_when_it_is_accepted() -> None:
    sheets = workorder.Sheets()
    bad, good, other = judged(day="30.02.2026"), judged(), judged(**dict.fromkeys(("order", "day", "start", "end"), "")
    )  # fmt: skip
    assert sheets.is_new(bad)
    assert not sheets.is_new(bad)
    assert sheets.is_new(good)
    assert not sheets.is_new(bad)
    assert not sheets.is_new(good)
    assert sheets.is_new(other)
    assert not sheets.is_new(Result("no form"))
    assert sheets.is_new(other)  # laid down again


def inference(read: Any) -> Any:
    return Inference("orders", Stamp("b", 7, None, 0), "m", "d", "onnx", 1, read, 3)


def test_a_form_to_be_reviewed_is_an_event_with_its_picture() -> None:
    (change,) = workorder.changes(inference(judged(day="30.02.2026")))
    assert (change.rule, change.origin, change.severity) == ("form.review", "orders", Severity.WARNING)
    assert change.keep_picture
    assert change.point
    assert change.mono_ns == 7
    assert change.detail == {"doubts": {"day": "no date"}, "input_seq": 3}
    assert "day no date" in change.message
    assert list(workorder.changes(inference(judged()))) == []
    assert list(workorder.changes(inference(Result("review")))) == []  # a class of that name, no form
