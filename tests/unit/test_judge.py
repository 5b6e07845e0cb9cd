"""When a new bundle has to go: wrong, crashing, refusing, slow; and what is none of its business."""

import asyncio
from typing import Any

import msgspec
import pytest

from gateway.config import Config
from gateway.contract import Result
from gateway.errors import ModelError
from gateway.infer import judge
from gateway.infer.candidate import Candidate
from gateway.infer.fits import check_fit
from gateway.infer.judge import Judge
from gateway.infer.manifest import Limits, Picture, Yolo
from gateway.infer.seat import Job
from gateway.infer.wire import Loaded
from tests.unit import bundles
from tests.unit.bundles import manifest

NEW, OLD = (
    Loaded(Candidate(backend="onnx", file="m", precision="fp32"), "onnx", digest * 64, "", Limits())
    for digest in ("a", "b")
)
JOB: Any = object.__new__(Job)  # a judge does not look into it


def fresh() -> Judge:
    return Judge("new.octo", NEW.digest)


def answer(to: Judge, *took_ms: float, by: Loaded = NEW) -> None:
    for ms in took_ms:
        to.answered(JOB, Result(), by, int(ms * 1e6))


def test_a_wrong_golden_sample_is_enough_and_crashes_are_counted() -> None:
    wrong, crashing = fresh(), fresh()
    wrong.faulted("old.octo", "golden sample", crash=False)
    assert not wrong.over.is_set()
    wrong.faulted("new.octo", "golden sample", crash=False)
    assert wrong.over.is_set() and wrong.why == "golden sample"
    for _ in range(judge.CRASHES - 1):
        crashing.faulted("new.octo", "SIGSEGV", crash=True)
        crashing.faulted("old.octo", "SIGSEGV", crash=True)
    assert not crashing.over.is_set()
    crashing.faulted("new.octo", "SIGSEGV", crash=True)
    assert crashing.why == "3 workers ended: SIGSEGV"


def test_refusals_count_only_in_a_row() -> None:
    it = fresh()
    for _ in range(10):
        it.refused("NaN", NEW)
        it.refused("NaN", NEW)
        it.refused("NaN", OLD)
        answer(it, 1.0)
    assert not it.over.is_set()
    for _ in range(judge.REFUSALS):
        it.refused("NaN", NEW)
    assert it.why == "3 inputs in a row were refused: NaN"


def test_only_a_99th_percentile_over_the_limit_is_too_slow() -> None:
    it = fresh()
    it.limit_ms = 60.0
    answer(it, *[500.0] * judge.MIN_RUNS, by=OLD)
    answer(it, *[1.0] * (judge.MIN_RUNS - 2), 500.0, 1.0)
    assert not it.over.is_set()
    answer(it, *[1.0] * (judge.MIN_RUNS - 10), *[500.0] * 9)
    assert not it.over.is_set()
    answer(it, 500.0)
    assert it.why.startswith("too slow: p99 500 ms over 400 runs, the limit is 60 ms")
    few = fresh()
    few.limit_ms = 60.0
    answer(few, *[500.0] * (judge.AT_LEAST - 1))
    assert few.slow(judge.AT_LEAST) == ""
    answer(few, 500.0)
    assert few.why.startswith("too slow: median 500 ms over 20 runs")
    assert few.slow(judge.AT_LEAST).startswith("too slow: p99")


def test_it_serves_when_a_worker_has_this_bundle() -> None:
    it = fresh()
    it.serves(OLD)
    assert not it.serving.is_set()
    it.serves(NEW)
    assert it.serving.is_set() and it.loaded == NEW
    it.stop("")
    it.stop("later")
    assert it.why == "unknown"
    assert asyncio.run(it.over.wait())


PIPELINES: dict[str, Any] = {
    "gateway": {"id": "x", "data_dir": "data"},
    "source": [{"kind": "pictures", "name": "cam", "folder": "."}],
    "model": [{"name": "m", "bundle": "m.octo"}, {"name": "n", "bundle": "n.octo"}],
    "pipeline": [
        {"name": "look", "source": "cam", "model": "m"},
        {"name": "closer", "after": "look", "model": "n", "labels": ["cat"]},
    ],
    "rule": [{"kind": "detection", "name": "seen", "pipeline": "look", "labels": ["dog"]}],
}


def test_a_bundle_must_fit_pipelines_and_rules() -> None:
    config = msgspec.convert(PIPELINES, Config)
    plain = msgspec.structs.replace
    seen = manifest(task="detect", labels=("cat", "dog", "cow"), input=Picture(width=8, height=8), post=(Yolo(),))
    window = manifest()
    check_fit(config, "m", seen, plain(seen, labels=("dog", "cat"), input=Picture(width=9, height=9)))
    check_fit(config, "n", window, window)
    takes = window.input
    for old, new, why in (
        (seen, window, "takes readings, its pipelines give pictures"),
        (window, seen, "takes pictures, its pipelines give readings"),
        (window, plain(window, input=plain(takes, length=16)), "windows of 16, its pipelines give 8"),
        (window, plain(window, input=plain(takes, rate_hz=11.0)), "Hz 11.0"),
        (window, plain(window, input=plain(takes, channels=("q",))), "channels"),
        (seen, plain(seen, task="classify"), "it is for 'classify'"),
        (seen, plain(seen, labels=("cow", "dog")), "knows no 'cat', which 'closer' asks for"),
        (seen, plain(seen, labels=("cow", "cat")), "knows no 'dog', which 'seen' asks for"),
        (seen, plain(seen, post=bundles.manifest().post), "detects nothing for 'closer'"),
    ):
        with pytest.raises(ModelError, match=why):
            check_fit(config, "m", old, new)
