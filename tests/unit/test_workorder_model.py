"""The recogniser's build and its measures: columns taken out of an ONNX file, splits, thresholds, the card's bars."""

import re
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.contract import Field
from gateway.errors import ModelError
from gateway.infer.manifest import Manifest
from models import kit
from models.workorder import calibrate, data, fetch, fonts, slim
from models.workorder.measure import Seen, is_right
from tests.unit.bundles import onnx_model


def tensor(name: str, values: np.ndarray) -> bytes:
    shape = b"".join(slim.field(1, n) for n in values.shape)
    return shape + slim.field(2, 1) + slim.field(8, name.encode()) + slim.field(9, values.astype("<f4").tobytes())


def model(columns: int = 7) -> tuple[bytes, np.ndarray]:
    weights = np.arange(3.0 * columns, dtype=np.float32).reshape(3, columns)
    inner = slim.field(5, tensor("head.w", weights)) + slim.field(5, tensor("head.b", weights[0]))
    inner += slim.field(5, tensor("other.w", weights)) + slim.field(12, slim.field(1, b"out") + slim.field(2, b"shape"))
    pair = slim.field(1, b"character") + slim.field(2, b"a\nb")
    return slim.field(1, 8) + slim.field(7, inner) + slim.field(14, pair), weights


def tensors(made: bytes) -> dict[str, np.ndarray]:
    graph = next(bytes(p.value) for p in slim.parts(made) if p.number == 7)
    found = {}
    for part in slim.parts(graph):
        if part.number == 5:
            inner = list(slim.parts(bytes(part.value)))
            shape = [int(p.value) for p in inner if p.number == 1]
            name, raw = (next(bytes(p.value) for p in inner if p.number == n) for n in (8, 9))
            found[name.decode()] = np.frombuffer(raw, "<f4").reshape(shape)
    return found


def test_only_the_named_layer_loses_columns() -> None:
    made, weights = model()
    assert slim.metadata(made, "character") == "a\nb"
    less = tensors(slim.keep_columns(made, "head", [0, 5, 2]))
    assert np.array_equal(less["head.w"], weights[:, [0, 5, 2]])
    assert np.array_equal(less["head.b"], weights[0, [0, 5, 2]])
    assert np.array_equal(less["other.w"], weights)
    with pytest.raises(ModelError, match="no metadata"):
        slim.metadata(slim.keep_columns(made, "head", [0]), "character")
    with pytest.raises(ModelError, match="0 tensors of a layer 'tail'"):
        slim.keep_columns(made, "tail", [0])


def test_a_real_onnx_file_is_taken_apart_and_together() -> None:
    made = onnx_model()
    assert b"".join(part.raw for part in slim.parts(made)) == made


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_bytes_are_a_message_or_are_refused(data: Any) -> None:
    try:
        found = list(slim.parts(data))
    except ModelError as error:
        assert error.hint
    else:
        assert b"".join(part.raw for part in found) == data


def test_the_manifest_is_one() -> None:
    spec = {**kit.read_spec(fetch.SPEC), "labels": [fetch.BLANK, "0", "1"]}
    golden = {"input": "golden/a.png", "media": "image/png", "expected": "golden/a.json", "tolerance": {"fp32": 0.02}}
    made = msgspec.convert({**spec, "golden": [golden]}, Manifest)
    assert made.name == "workorder"
    assert made.task == "read"


# --- splits and measures --------------------------------------------------------------------------------------------


def test_no_font_and_no_seed_is_in_two_splits() -> None:
    pinned = {line.split()[0] for line in fonts._PINS.splitlines()}
    names = [name for kind in (fonts.HAND, fonts.PRINT) for split in kind.values() for name in split]
    assert len(names) == len(set(names))
    assert set(names) == pinned
    assert abs(data.SEEDS["test"] - data.SEEDS["validation"]) > 10_000


def test_what_is_written_keeps_the_forms_checks() -> None:
    form = data.template()
    for seed in range(50):
        texts = data.contents(form, np.random.default_rng(seed))
        assert texts["start"] < texts["end"]
        assert int(texts["scrap"]) <= int(texts["done"]) <= int(texts["quantity"])
        assert set(texts) == {field.name for field in form.field}


def test_a_comma_and_capitals_do_not_make_a_reading_wrong() -> None:
    by_kind = {field.kind: field for field in data.template().field}
    assert is_right(by_kind["number"], "1,5", "1.5")
    assert is_right(by_kind["word"], "Adams", "ADAMS")
    assert not is_right(by_kind["code"], "WO-1", "wo-1")
    assert not is_right(by_kind["number"], "15", "1.5")


def seen(sure: float, right: bool, kind: str = "number") -> Seen:
    return Seen(0, kind, "hand", "f", "1", Field("a", "1", sure), right)


def test_the_threshold_is_the_lowest_at_which_enough_is_right() -> None:
    good, bad = [seen(0.9, True)] * 50, [seen(0.455, False), seen(0.6, True)]
    assert calibrate.threshold([*good, *bad]) == 0.46
    assert calibrate.threshold([*good, *bad, seen(0.99, False, "tick")]) == 0.46
    assert calibrate.threshold([*good, *bad], wrong=0.5) == calibrate.GRID[0]
    assert calibrate.threshold([seen(1.0, False)]) == calibrate.GRID[-1]


def share(row: str, column: int) -> float:
    text = (fetch.FOLDER / "README.md").read_text()
    found = re.search(rf"^\| {row} \|(.*)\|$", text, re.MULTILINE)
    assert found, row
    right, of = re.findall(r"(\d+) of (\d+)", found[1])[column]
    return int(right) / int(of)


def test_the_card_reaches_its_bars() -> None:
    assert share("printed", 0) >= 0.95
    assert share("handwriting-like", 0) >= 0.85
    assert share("all", 2) >= 0.99
