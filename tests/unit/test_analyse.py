"""Windows and rules: the same readings give the same windows and events, however they are cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.analyse.rules import Change, Rules
from gateway.analyse.windows import Windows, time_of
from gateway.config import ClassRule, DetectionRule, ThresholdRule
from gateway.contract import Detection, Inference, Result, Sample, Stamp
from tests.unit.samples import SCHEMA, counted

STEP = 5_000_000


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(1, 25), st.data())
def test_windows_do_not_depend_on_the_cut(cuts: list[int], length: int, data: st.DataObject) -> None:
    hop = data.draw(st.integers(1, length))
    windows = Windows(length, hop)
    found, at = [], 0
    for cut in cuts:
        found += windows.feed(counted("p/x", at, cut))
        at += cut
    size = SCHEMA.record_size
    whole = counted("p/x", 0, at).data
    starts = range(0, at - length + 1, hop)
    assert [w.first for w in found] == list(starts)
    assert [w.data for w in found] == [whole[s * size : (s + length) * size] for s in starts]
    assert [w.end_ns for w in found] == [(s + length - 1) * STEP for s in starts]


@pytest.mark.parametrize(("length", "hop"), [(4, 0), (4, 5), (0, 1)])
def test_a_hop_outside_the_window_is_refused(length: int, hop: int) -> None:
    with pytest.raises(ValueError, match="hop"):
        Windows(length, hop)


def test_time_of_a_reading() -> None:
    sample = counted("p/x", 10, 4)
    assert [time_of(sample, i) for i in range(4)] == [STEP * i if i else STEP * 10 for i in (0, 11, 12, 13)]


def inference(mono_ns: int, result: Result) -> Inference:
    return Inference("eye", Stamp("boot", mono_ns, None, 0), "m", "0" * 12, "onnx", 1, result, 3)


def run(rules: list[ThresholdRule | ClassRule | DetectionRule], inputs: list[Sample | Inference]) -> list[Change]:
    changes: list[Change] = []
    engine = Rules(rules, changes.append)
    for given_ in inputs:
        if isinstance(given_, Sample):
            engine.sample(given_)
        else:
            engine.inference(given_)
    return changes


@given(st.lists(st.integers(1, 30), min_size=1, max_size=20))
def test_a_threshold_does_not_depend_on_the_cut(cuts: list[int]) -> None:
    total = sum(cuts)
    rule = ThresholdRule(name="high", stream="p/x", channel="count", above=20, hold_s=0.05)  # held for 10 readings
    pieces, at = [], 0
    for cut in cuts:
        pieces.append(counted("p/x", at, cut))
        at += cut
    changes = run([rule], list(pieces))
    assert [c.mono_ns for c in changes] == ([31 * STEP] if total > 31 else [])


def test_hysteresis_and_clearing() -> None:
    rule = ThresholdRule(name="high", stream="p/x", channel="count", above=10, hysteresis=4)
    series = [counted("p/x", n, 1) for n in (9, 11, 8, 7, 11, 6, 5, 12)]
    changes = run([rule], list(series))
    assert [(c.raised, c.detail["value"]) for c in changes] == [(True, 11), (False, 6), (True, 12)]
    assert "above 10" in changes[0].message


def test_an_unknown_channel_raises_nothing() -> None:
    rule = ThresholdRule(name="high", stream="p/x", channel="nope", above=0)
    assert run([rule], [counted("p/x", 1, 5)]) == []


def test_class_with_score_and_hold() -> None:
    rule = ClassRule(name="runs", pipeline="eye", labels=("running",), min_score=0.7, hold_s=1.0)
    second = 10**9
    says = [("running", 0.9), ("running", 0.6), ("running", 0.9), ("running", 0.8), ("idle", 0.9)]
    changes = run([rule], [inference(i * second, Result(label, score)) for i, (label, score) in enumerate(says)])
    assert [(c.raised, c.mono_ns) for c in changes] == [(True, 3 * second), (False, 4 * second)]


def test_detections_are_counted_and_the_picture_kept() -> None:
    rule = DetectionRule(name="crowd", pipeline="eye", labels=("person",), min_score=0.5, min_count=2)
    box = (0.0, 0.0, 1.0, 1.0)
    one = Result(
        detections=(Detection("person", 0.9, *box), Detection("person", 0.4, *box), Detection("cat", 0.9, *box))
    )
    two = Result(detections=(Detection("person", 0.9, *box), Detection("person", 0.6, *box)))
    changes = run([rule], [inference(1, one), inference(2, two), inference(3, two), inference(4, one)])
    assert [(c.raised, c.keep_picture) for c in changes] == [(True, True), (False, False)]
    assert changes[0].detail["count"] == 2


def test_a_rule_judges_all_regions_of_a_picture_together() -> None:
    rule = ClassRule(name="helmetless", pipeline="eye", labels=("bare",))
    changes: list[Change] = []
    rules = Rules([rule], changes.append)
    bare, helmet = Result("bare", 0.9), Result("helmet", 0.9)
    for second, says in enumerate([[helmet, bare], [bare, helmet], [helmet], [bare], []]):
        looks = [inference(second * 10**9, result) for result in says]
        rules.regions("eye", Stamp("boot", second * 10**9, None, 0), looks)
    assert [(c.raised, c.mono_ns // 10**9) for c in changes] == [(True, 0), (False, 2), (True, 3), (False, 4)]
    assert changes[0].detail["label"] == "bare" and changes[1].detail["label"] == "helmet"
    assert changes[3].message == "eye: nothing to look at"
