"""Templates: TOML and back, what is refused, the way to the worker; the form as a PDF."""

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import form_print, forms
from gateway.config import load as load_config
from gateway.errors import ConfigError
from gateway.forms import CheckTable, FieldTable, Markers, Template
from models.workorder import data

NAMES = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,20}", fullmatch=True)
TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=30)
SIDES = st.floats(1, 100).map(lambda x: round(x, 2))


@st.composite
def fields(draw: Any, name: str) -> Any:
    kind = draw(st.sampled_from(["number", "date", "time", "code", "word", "text", "tick"]))
    x, y, width, height = (draw(SIDES) for _ in range(4))
    more = {
        "code": {"pattern": draw(st.sampled_from(["9{3}", 'A"9', "WO-99", r"\\9"]))},
        "word": {"words": tuple(draw(st.lists(st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=9), min_size=1, max_size=4)))},
        "number": {"digits": draw(st.integers(1, 15)), "decimals": draw(st.integers(0, 6)), "least": draw(st.none() | st.floats(-1e6, 1e6))},
        "date": {"format": draw(st.sampled_from(["", "YYYY-MM-DD"]))},
    }.get(kind, {})  # fmt: skip
    return FieldTable(
        name=name, kind=kind, box=(x, y, x + width + 1, y + height + 1), label=draw(TEXTS), required=draw(st.booleans()),
        confidence=draw(st.floats(0, 1)), **more,
    )  # fmt: skip


@st.composite
def templates(draw: Any) -> Any:
    names = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    markers = draw(st.none() | st.just(Markers()) | st.just(Markers(ids=(4, 5, 6, 7), size=20.5, margin=3.25)))
    return Template(
        name=draw(NAMES), title=draw(TEXTS), page=(210.0, 297.0), markers=markers,
        field=tuple(draw(fields(name)) for name in names),
    )  # fmt: skip


@settings(deadline=None)
@given(templates(), TEXTS)
def test_a_template_is_the_same_after_toml(template: Template, notes: str) -> None:
    assert forms.parse(forms.dumps(template, notes).encode(), "x") == template


@settings(deadline=None)
@given(templates())
def test_a_template_is_the_same_at_the_worker(template: Template) -> None:
    assert forms.of_media("image/png" + forms.as_media(template)) == ("image/png", template)
    assert forms.as_media(template).isascii()


@settings(deadline=None)
@given(st.binary(max_size=300) | st.text(max_size=200).map(str.encode))
def test_what_is_no_template_is_refused_with_a_word(data: Any) -> None:
    with pytest.raises(ConfigError, match=r"^x: "):
        forms.parse(data, "x")


@settings(deadline=None)
@given(st.text(st.characters(max_codepoint=126), max_size=60))
def test_a_media_text_that_is_not_ours(text: str) -> None:
    with pytest.raises(ValueError):  # msgspec's and base64's own are both
        forms.of_media("image/png" + forms.MARK + "!" + text)


def test_a_media_text_without_a_form() -> None:
    assert forms.of_media("image/jpeg") == ("image/jpeg", None)


GOOD = """
name = "f"
page = [100.0, 100.0]
[[field]]
name = "a"
kind = "time"
box = [10.0, 10.0, 50.0, 20.0]
[[field]]
name = "b"
kind = "time"
box = [10.0, 30.0, 50.0, 40.0]
[[check]]
rule = "after"
field = "b"
than = "a"
"""


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('name = "b"', 'name = "a"', "two of this name"),
        ("50.0, 40.0", "10.5, 40.0", "smaller than 1 mm"),
        ("50.0, 40.0", "150.0, 40.0", "not on the page"),
        ('kind = "time"', 'kind = "clock"', "clock"),
        ('kind = "time"', 'kind = "code"', "empty pattern"),
        ('kind = "time"', 'kind = "word"', "empty pattern"),
        ('kind = "time"', 'kind = "time"\npattern = "9"', "pattern is for code"),
        ('kind = "time"', 'kind = "time"\nformat = "xx"', "not a format"),
        ('rule = "after"', 'rule = "at_most"', "no such field"),
        ('than = "a"', 'than = "c"', "no such field 'c'"),
        ('kind = "time"', 'kind = "date"', "a date and a time"),
        ('name = "f"', 'name = "f"\nsize = 3', "size"),
        ("[[field]]", "[[field]", "not valid TOML"),
    ],
)
def test_what_is_wrong_is_named(old: str, new: str, said: str) -> None:
    assert forms.parse(GOOD.encode(), "x").check == (CheckTable("after", "b", "a"),)
    with pytest.raises(ConfigError, match=re.escape(said)):
        forms.parse(GOOD.replace(old, new, 1).encode(), "x")


def test_a_file_that_is_not_there_or_too_large(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="form new"):
        forms.load(tmp_path / "none.toml")
    (tmp_path / "large.toml").write_text("#" * (forms.MAX_BYTES + 1))
    with pytest.raises(ConfigError, match="larger than"):
        forms.load(tmp_path / "large.toml")


CONFIG = """
[gateway]
id = "g"
data_dir = "data"
[[source]]
kind = "pictures"
name = "desk"
folder = "."
[[model]]
name = "reader"
bundle = "form.toml"
[[pipeline]]
name = "orders"
source = "desk"
model = "reader"
form = "form.toml"
"""


def test_a_config_names_a_template_and_is_refused_with_a_bad_one(tmp_path: Path) -> None:
    config, form = tmp_path / "gateway.toml", tmp_path / "form.toml"
    config.write_text(CONFIG)
    form.write_text(GOOD)
    assert load_config(config).pipeline[0].form == "form.toml"
    form.write_text(GOOD.replace("time", "tame"))
    with pytest.raises(ConfigError, match=r"form\.toml: .*tame"):
        load_config(config)
    form.write_text(GOOD)
    config.write_text(CONFIG + "window = 8\nhop = 4\n")
    with pytest.raises(ConfigError, match="no pictures of forms"):
        load_config(config)
    config.write_text(CONFIG.replace('form = "form.toml"', 'form = "none.toml"'))
    with pytest.raises(ConfigError, match=r"pipeline\[0\]\.form: no file"):
        load_config(config)


# --- on paper -------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(templates())
def test_every_object_of_the_pdf_is_where_its_table_says(template: Template) -> None:
    made = form_print.pdf(template)
    start = int(made.rsplit(b"startxref\n", 1)[1].split()[0])
    assert made[start:].startswith(b"xref\n0 6\n")
    rows = made[start:].split(b"\n")[2:8]
    assert all(len(row) == 19 for row in rows)
    for number, row in enumerate(rows[1:], 1):
        assert made[int(row[:10]) :].startswith(b"%d 0 obj\n" % number)
    (stated,) = re.findall(rb"/Length (\d+)", made)
    length = int(stated)
    body = made.index(b"stream\n") + len(b"stream\n")
    assert made[body + length :].startswith(b"\nendstream")
    shown = re.findall(rb"\((?:[^()\\\n]|\\.)*\) Tj", made[body : body + length])
    assert len(shown) == 1 + len(template.field)


def test_the_example_is_drawn_once_and_within_its_page() -> None:
    template = data.template()
    marks = list(form_print.layout(template))
    frames = [mark for mark in marks if isinstance(mark, form_print.Frame)]
    assert [frame.box for frame in frames] == [field.box for field in template.field]
    for mark in marks:
        if not isinstance(mark, form_print.Letters):
            x0, y0, x1, y1 = mark.box
            assert 0 <= x0 < x1 <= template.page[0] + 1e-9
            assert 0 <= y0 < y1 <= template.page[1] + 1e-9
