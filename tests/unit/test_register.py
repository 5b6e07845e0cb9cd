"""Forms found on pictures: random views of a blank sheet, with markers and without, turned and covered."""

from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import form_scan
from gateway.contract import Region
from gateway.errors import ModelError
from gateway.forms import Markers, as_media
from gateway.infer import register
from gateway.infer.formreader import NO_FORM, FormReader
from models.workorder import data

FORM = data.template()
SHEET = data.blank(FORM)
PLAIN = type(FORM)(name="plain", page=FORM.page, field=FORM.field)
CORNERS = np.array([(0, 0), (210, 0), (210, 148), (0, 148)], np.float64)
SIZE = (1280, 960)
LABELS = ["<blank>", *map(chr, range(33, 127)), " "]


def seen(angle: float, jitter: list[float], sheet: Any = SHEET, size: tuple[int, int] = SIZE) -> Any:
    """The sheet on a dark desk, turned by `angle` degrees, its corners moved; and where its corners are."""
    turn = cv2.getRotationMatrix2D((0, 0), angle, 1)[:, :2]
    at = (CORNERS - CORNERS.mean(axis=0)) @ turn.T
    at *= 0.85 * min(size[0] / np.ptp(at[:, 0]), size[1] / np.ptp(at[:, 1]))
    at += np.array(jitter).reshape(4, 2) * np.array(size) + np.array(size) / 2
    from_sheet = cv2.getPerspectiveTransform((CORNERS * data.DENSITY).astype(np.float32), at.astype(np.float32))
    picture = np.full((size[1], size[0], 3), 60, np.uint8)
    cv2.warpPerspective(sheet, from_sheet, size, picture, flags=cv2.INTER_AREA, borderMode=cv2.BORDER_TRANSPARENT)
    return picture, at


def off_mm(page: Any, at: Any) -> Any:
    """The largest error of the page's corners, in millimetres."""
    found = cv2.perspectiveTransform(CORNERS[None], page.homography)[0]
    return float(np.linalg.norm(found - at, axis=1).max() / np.linalg.norm(at[1] - at[0]) * 210)


JITTER = st.lists(st.floats(-0.06, 0.06), min_size=8, max_size=8)


@settings(max_examples=25, deadline=None)
@given(st.floats(-180, 180), JITTER)
def test_a_page_is_found_by_its_markers(angle: float, jitter: list[float]) -> None:
    picture, at = seen(angle, jitter)
    page = register.find(picture, FORM)
    assert page is not None
    assert page.markers == 4
    assert off_mm(page, at) < 0.6


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 3), st.floats(-180, 180))
def test_one_marker_may_be_covered_two_may_not(covered: int, angle: float) -> None:
    def hide(sheet: Any, number: int) -> None:
        x = 0 if number in (0, 3) else sheet.shape[1] - 260
        y = 0 if number < 2 else sheet.shape[0] - 260
        sheet[y : y + 260, x : x + 260] = 200

    sheet = SHEET.copy()
    hide(sheet, covered)
    picture, at = seen(angle, [0.0] * 8, sheet)
    page = register.find(picture, FORM)
    assert page is not None
    assert page.markers == 3
    assert off_mm(page, at) < 2.0  # beyond the marker that is not seen
    hide(sheet, (covered + 1) % 4)
    assert register.find(seen(angle, [0.0] * 8, sheet)[0], FORM) is None


@settings(max_examples=15, deadline=None)
@given(st.sampled_from([0, 90, 180, 270]), st.floats(-20, 20), st.lists(st.floats(-0.03, 0.03), min_size=8, max_size=8))
def test_a_page_without_markers_is_found_by_its_corners_and_its_printed_boxes(
    quarter: int, angle: float, jitter: list[float]
) -> None:
    sheet = SHEET.copy()
    for x, y in ((0, 0), (1, 0), (1, 1), (0, 1)):
        left, top = x * (sheet.shape[1] - 230), y * (sheet.shape[0] - 230)
        sheet[top : top + 230, left : left + 230] = 255
    picture, at = seen(quarter + angle, jitter, sheet)
    page = register.find(picture, PLAIN)
    assert page is not None
    assert page.markers == 0
    assert off_mm(page, at) < 1.5


def test_a_picture_without_a_form() -> None:
    empty = np.full((600, 800, 3), 90, np.uint8)
    assert register.find(empty, FORM) is None
    assert register.find(empty, PLAIN) is None
    reader, media = FormReader(LABELS, 0.9), "image/png" + as_media(FORM)
    assert reader.template(media) == ("image/png", FORM)
    assert reader.read(empty, media, lambda cells: []).label == NO_FORM


def test_markers_of_another_form_are_not_this_one() -> None:
    other = type(FORM)(name="other", page=FORM.page, markers=Markers(ids=(4, 5, 6, 7)), field=FORM.field)
    assert register.find(seen(0, [0.0] * 8)[0], other) is None


def box(name: str) -> Region:
    return next(field.box for field in FORM.field if field.name == name)


@pytest.mark.parametrize("angle", [0, 12, 180])
def test_what_is_written_in_a_cell_is_cut_out_and_an_empty_cell_is_empty(angle: float) -> None:
    sheet = SHEET.copy()
    x0, y0, _, y1 = (round(edge * data.DENSITY) for edge in box("done"))
    cv2.rectangle(sheet, (x0 + 60, y0 + 30), (x0 + 200, y1 - 30), (90, 20, 20), -1)
    picture, _ = seen(angle, [0.0] * 8, sheet)
    page = register.find(picture, FORM)
    assert page is not None
    cut = register.cell(picture, page, box("done"))
    at = register.written(cut)
    assert at is not None
    assert np.allclose(at, (60 - 7, 30 - 7, 200 - 7, 120 - 30 - 7), atol=6)
    assert register.line(cut, at).shape[0] < cut.shape[0]
    assert register.written(register.cell(picture, page, box("scrap"))) is None


def test_ticks_and_empty_cells_are_read_without_the_recogniser() -> None:
    sheet = SHEET.copy()
    data.tick(sheet, box("first-piece"), (90, 20, 20), np.random.default_rng(3))
    picture, _ = seen(5, [0.0] * 8, sheet)
    reader, media = FormReader(LABELS, 0.9), "image/png" + as_media(FORM)
    reader.template(media)

    def recognise(cells: Any) -> Any:
        raise AssertionError(f"{len(cells)} cells were to be recognised")

    result = reader.read(picture, media, recognise)
    read = {field.name: (field.text, field.doubt) for field in result.fields}
    assert read.pop("first-piece") == ("yes", "")
    assert read.pop("tool-changed") == ("no", "")
    assert set(read.values()) == {("", "")}


def test_a_cell_goes_to_the_recogniser_and_comes_back_by_its_name() -> None:
    sheet = SHEET.copy()
    for name in ("start", "scrap"):
        x0, y0, _, _ = (round(edge * data.DENSITY) for edge in box(name))
        cv2.putText(sheet, "08", (x0 + 40, y0 + 90), cv2.FONT_HERSHEY_SIMPLEX, 2.5, (0, 0, 0), 6)
    picture, _ = seen(0, [0.0] * 8, sheet)
    reader, media = FormReader(LABELS, 0.9), "image/png" + as_media(FORM)
    reader.template(media)

    def recognise(cells: Any) -> Any:
        """Each cell says its number, 12 and so on, in a table of clear characters."""
        assert len(cells) == 2
        tables = []
        for text in ("12:30", "7l"):
            table = np.full((2 * len(text), len(LABELS)), 1e-6, np.float32)
            table[::2, 0] = 1
            for i, char in enumerate(text):
                table[2 * i + 1, LABELS.index(char)] = 1
            tables.append(table)
        return tables

    result = reader.read(picture, media, recognise)
    texts = {field.name: field.text for field in result.fields if field.text}
    assert texts == {"start": "12:30", "scrap": "71", "first-piece": "no", "tool-changed": "no"}


@pytest.mark.parametrize("media", ["image/png", "image/png;form=", "image/png;form=AAAA", "image/png;form=e30="])
def test_a_media_text_that_names_no_form_is_refused(media: str) -> None:
    with pytest.raises(ModelError, match="not a form's template"):
        FormReader(LABELS, 0.9).template(media)


# --- drafting -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("angle", [0, 4])
def test_a_draft_has_the_boxes_and_markers_of_the_blank_form(angle: float) -> None:
    picture = SHEET if angle == 0 else seen(angle, [0.0] * 8, size=(2400, 1800))[0]
    draft = form_scan.draft(picture, "new", FORM.page)
    assert draft.markers is not None
    assert draft.markers.ids == Markers().ids
    assert abs(draft.markers.size - 12) < 0.4
    assert abs(draft.markers.margin - 6) < 0.5
    assert len(draft.field) == len(FORM.field)
    for field in FORM.field:
        near = min(np.abs(np.array(other.box) - field.box).max() for other in draft.field)
        assert near < (0.5 if angle == 0 else 1.0), field.name
    assert sum(field.kind == "tick" for field in draft.field) == 2


def test_names_and_kinds_come_from_labels() -> None:
    labels = iter(["Order no.", "Part no.", "Quantity", "Date", "Date", ""])
    draft = form_scan.draft(SHEET, "new", FORM.page, lambda cut: next(labels, "Remark"))
    assert [(field.name, field.kind) for field in draft.field[:6]] == [
        ("order-no", "code"), ("part-no", "code"), ("quantity", "number"), ("date", "date"), ("date-5", "date"), ("field-6", "text"),
    ]  # fmt: skip


def test_a_ruled_line_is_room_to_write_on() -> None:
    sheet = np.full((800, 800, 3), 255, np.uint8)
    cv2.line(sheet, (80, 400), (480, 400), (0, 0, 0), 3)
    (field,) = form_scan.draft(sheet, "new", (100.0, 100.0)).field
    assert np.allclose(field.box, (10, 42, 60, 50), atol=0.6)


def test_a_picture_of_nothing_is_no_form() -> None:
    with pytest.raises(ModelError, match="no boxes or lines"):
        form_scan.draft(np.full((400, 300, 3), 255, np.uint8), "new", FORM.page)
