"""The parts of sdk.optimise that need no training tools: keys of the cache, budgets, verdicts, fronts, parity."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import ModelError
from gateway.infer.backend import Runner
from gateway.infer.bundle import Bundle
from models.machine_state import package
from sdk.optimise import Budget, Built, Steps, Task, cache, latency_us, parity, read_tflite, runner
from sdk.optimise.budget import search
from sdk.optimise.figures import Figure, Figures, nearest
from sdk.optimise.figures import read as read_figures
from sdk.optimise.flow import Outcome, judged
from sdk.optimise.pareto import front
from sdk.optimise.verdict import Lost, Row, refused, table, terminal
from tests.unit import bundles

# --- the cache ----------------------------------------------------------------------------------------------------


def counted(steps: Steps, **changes: object) -> int:
    """How often the work was done for this key: 0 or 1."""
    done: list[int] = []

    def work() -> bytes:
        done.append(1)
        return b"made"

    given: dict[str, object] = {"inputs": ["a"], "settings": {"ratio": 0.5}, "version": 1, "packages": ("numpy",)}
    assert steps.run(str(changes.pop("step", "s")), work, bytes, **{**given, **changes}) == b"made"  # type: ignore[arg-type]
    return len(done)


def test_a_step_is_done_once_for_what_it_depends_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[tuple[str, bool]] = []
    steps = Steps(tmp_path, seed=1, tell=lambda step, kept: heard.append((step, kept)))
    assert [counted(steps), counted(steps)] == [1, 0]
    assert heard == [("s", False), ("s", True)]
    for change in ({"inputs": ["b"]}, {"settings": {"ratio": 0.6}}, {"version": 2}, {"step": "t"}):
        assert counted(steps, **change) == 1
    assert counted(replace(steps, seed=2)) == 1
    assert counted(replace(steps, fresh=True)) == 1
    assert counted(steps) == 0
    monkeypatch.setattr(cache, "versions", lambda names: dict.fromkeys(names, "another"))
    assert counted(steps) == 1


def test_a_damaged_result_is_made_anew(tmp_path: Path) -> None:
    steps = Steps(tmp_path)
    counted(steps)
    [kept] = tmp_path.iterdir()
    kept.write_bytes(b"\xc1")
    assert [counted(steps), counted(steps)] == [1, 0]


def test_a_step_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> bytes:
        raise ModelError("no")

    with pytest.raises(ModelError):
        Steps(tmp_path).run("s", fail, bytes)
    assert list(tmp_path.iterdir()) == []


@given(st.lists(st.binary(max_size=8)), st.lists(st.binary(max_size=8)))
def test_no_two_lists_of_parts_have_one_digest(one: list[bytes], other: list[bytes]) -> None:
    assert (cache.digest(*one) == cache.digest(*other)) == (one == other)


def test_a_digest_knows_kinds_and_shapes() -> None:
    x = np.arange(6, dtype=np.float32)
    kinds = [
        cache.digest(x),
        cache.digest(x.reshape(2, 3)),
        cache.digest(x.astype(np.int32)),
        cache.digest(x.tobytes()),
    ]
    assert len({*kinds, cache.digest(""), cache.digest(None), cache.digest(b"")}) == 7
    assert cache.digest(x[::-1]) == cache.digest(x[::-1].copy())


# --- budgets ------------------------------------------------------------------------------------------------------


def test_the_smallest_ratio_within_the_budget_is_taken() -> None:
    assert search(lambda ratio: 100 * (1 - ratio), Budget(60), steps=10, most=1.0) == pytest.approx(0.4)
    assert search(lambda ratio: 100.0, Budget(100)) == 0.0


def test_costs_that_rise_again_hide_no_ratio() -> None:
    """A layer of which nothing would be left is not pruned: the largest ratio may cost the most."""
    costs = {0: 100.0, 1: 70.0, 2: 40.0, 3: 100.0, 4: 100.0}
    assert search(lambda ratio: costs[round(ratio * 4)], Budget(50), steps=4, most=1.0) == 0.5


def test_a_budget_out_of_reach_says_what_can_be_had() -> None:
    with pytest.raises(ModelError, match=r"leaves 50 bytes at least, the budget is at most 10 bytes"):
        search(lambda ratio: max(50.0, 100 * (1 - ratio)), Budget(10, "bytes"))


@given(st.lists(st.floats(0, 100), min_size=2, max_size=30), st.floats(0, 100))
def test_what_the_search_gives_keeps_the_budget(costs: list[float], limit: float) -> None:
    last = len(costs) - 1

    def cost(ratio: float) -> float:
        return costs[round(ratio * last)]

    if min(costs) <= limit:
        at = round(search(cost, Budget(limit), steps=last, most=1.0) * last)
        assert costs[at] <= limit < min([*costs[:at], float("inf")])
    else:
        with pytest.raises(ModelError):
            search(cost, Budget(limit), steps=last, most=1.0)


# --- verdicts -----------------------------------------------------------------------------------------------------


def row(file: str, f1: float | None, backend: str = "onnx", fault: str = "") -> Row:
    metrics = {} if f1 is None else {"f1": f1}
    return Row(
        stage="int8", file=file, precision="int8", backend=backend, size=10, worst=0.1, metrics=metrics, fault=fault
    )


@pytest.mark.parametrize(("f1", "why"), [(0.95, ""), (0.94, ""), (0.939, "loses 1.10"), (float("nan"), "loses nan")])
def test_a_variant_that_loses_too_much_is_refused(f1: float, why: str) -> None:
    found = refused([row("a", f1)], {"f1": 0.95}, {"f1": 0.01})
    assert (why in found["a"]) if why else found == {}


def test_one_bad_runtime_refuses_the_file_and_a_missing_one_does_not() -> None:
    rows = [row("a", 0.95), row("a", 0.5, "openvino"), row("b", 0.95), row("b", None, "openvino", "not installed")]
    assert refused(rows, {"f1": 0.95}, {"f1": 0.01}) == {"a": "openvino: loses 45.00 points of f1, 1 are allowed"}
    assert refused([row("c", None, fault="crashed")], {"f1": 0.9}, {}) == {"c": "it ran on no runtime here: crashed"}


def test_a_refused_variant_ends_the_build_with_the_table_unless_it_is_optional() -> None:
    x = np.zeros((1, 8), np.float32)
    task = Task(name="press", calibration=[x], check=[x], metric=lambda run: {}, allowed={"f1": 0.01})
    rows, base = [row("model-int8.onnx", 0.5)], {"f1": 0.95}
    built = Built.onnx(b"", "int8")
    outcome = Outcome({"int8": [built]}, rows, base, refused(rows, base, task.allowed))
    assert outcome.shipped("int8") == []
    with pytest.raises(Lost, match=r"press.*model-int8\.onnx may not be shipped") as raised:
        outcome.insist(task, "int8")
    assert "0.5000  +45.00" in raised.value.what
    assert "REFUSED model-int8.onnx: onnx: loses 45.00 points of f1, 1 are allowed" in raised.value.what
    outcome.insist(replace(task, optional=["model-int8.onnx"]), "int8")
    assert len(table(rows, base, {})) == 3


def test_the_table_fits_a_terminal_of_100_columns_and_says_why() -> None:
    base = {"f1": 0.9512, "auroc": 0.9711}
    rows = [
        Row(
            stage=stage, file=f"{stage}-{'very-' * 9}long-name.onnx", precision="fp32", backend="openvino", size=12_345_678,
            worst=0.1, metrics=metrics, latency_us=123456.7, fault=fault,
        )
        for stage, metrics, fault in (("base", base, ""), ("pruned", {"f1": 0.5, "auroc": 0.5}, ""), ("int8", {}, "no " * 60))
    ]  # fmt: skip
    lines = terminal(rows, base, refused(rows, base, {"f1": 0.01}))
    assert max(map(len, lines)) <= 100
    head, _, first, second, third, *notes = lines
    assert head.split() == ["variant", "stage", "runtime", "kB", "f1", "lost", "auroc", "lost", "us", "verdict"]
    assert first.endswith("ok") and second.endswith("REFUSED") and third.endswith("REFUSED")
    said = " ".join(" ".join(notes).split())
    assert "openvino: loses 45.12 points of f1, 1 are allowed" in said and "not run: int8-very-" in said


# --- fronts, figures ----------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=20))
def test_the_front_is_what_nobody_beats(items: list[tuple[int, int]]) -> None:
    def beats(a: tuple[int, int], b: tuple[int, int]) -> bool:
        return a[0] <= b[0] and a[1] >= b[1] and a != b

    best = front(items, lambda item: item[0], lambda item: item[1])
    assert sorted(best) == sorted(item for item in items if not any(beats(other, item) for other in items))
    assert best == sorted(best)


def test_figures_survive_the_file_and_their_absence_is_told(tmp_path: Path) -> None:
    one = Figure(stage="base", file="a", precision="fp32", backend="onnx", size=1, macs=2, metrics={"f1": 0.5})
    figures = Figures(model="m", bundle="d", bundle_bytes=3, headline=("f1",), figures=(one.timed(7.5),))
    figures.write(tmp_path)
    assert read_figures(tmp_path) == figures
    with pytest.raises(ModelError, match=r"no figures.*models\.evaluate"):
        read_figures(tmp_path / "none")


def test_figures_of_another_bundle_are_stale(tmp_path: Path) -> None:
    for digest in ("a", "b"):
        Figures(model="m", bundle=digest, bundle_bytes=3, headline=(), figures=()).write(tmp_path / digest)
    folders = [tmp_path / name for name in ("none", "a", "b")]
    good, stale = nearest(folders, "b")
    assert good and good.bundle == "b" and stale is None
    good, stale = nearest(folders, "c")
    assert good is None and stale and stale.bundle == "a"
    assert nearest(folders[:1], "a") == (None, None)


def test_comparisons_are_kept_when_the_task_says_what_its_metric_depends_on(tmp_path: Path) -> None:
    asked: list[str] = []
    heard: list[tuple[str, bool]] = []

    def metric(run: Runner) -> dict[str, float]:
        asked.append(run.description)
        return {"f1": 0.9}

    x = [np.full((1, bundles.LENGTH), value, np.float32) for value in (0.5, 1.0)]
    stages = {"base": [Built.onnx(bundles.onnx_model(), "fp32")]}
    steps = Steps(tmp_path, tell=lambda step, kept: heard.append((step, kept)))
    for depends, often in (("", 2), ("", 4), ("data 1", 6), ("data 1", 6), ("data 2", 8)):
        task = Task(name="m", calibration=x, check=x, metric=metric, allowed={}, depends=depends)
        outcome = judged(stages, task, steps)
        assert len(asked) == often
        assert [(row.backend, row.metrics) for row in outcome.rows] == [
            ("onnx", {"f1": 0.9}),
            ("openvino", {"f1": 0.9}),
        ]
        assert all(row.latency_us > 0 for row in outcome.rows) and outcome.base == {"f1": 0.9}
    assert [kept for step, kept in heard if step == "compare base"] == [False, False, False, True, False]


# --- variants and parity, on the runtimes of the development environment --------------------------------------------


def test_the_committed_network_answers_the_same_on_every_runtime() -> None:
    with Bundle(package.BUNDLE) as bundle:
        variant = next(one for one in bundle.manifest.variants if one.format == "onnx")
        built = Built(variant, {variant.file: bytes(bundle.member(variant.file))})
    windows = list(package.golden_windows(1.0, 1.0).values())
    inputs = [np.frombuffer(records, "<f4").reshape(-1, 2).T[None].copy() for records in windows]
    found = parity([built], inputs)
    assert [one.backend for one in found if one.ran] == ["onnx", "openvino"]
    assert all(one.worst is not None and one.worst < 0.1 for one in found)  # int8


def test_a_wrong_variant_is_seen_and_one_that_does_not_load_is_told() -> None:
    right = Built.onnx(bundles.onnx_model(), "fp32")
    garbage = Built.onnx(b"\x08garbage", "fp32", file="garbage.onnx")
    x = np.ones((1, bundles.LENGTH), np.float32)
    good, also, bad, worse = parity([right, garbage], [x])
    assert good.worst == 0.0
    assert also.worst == pytest.approx(0.0, abs=1e-6)
    assert not bad.ran and "does not take it" in bad.fault and "does not take it" in worse.fault
    off = parity([right], [x], reference=[[np.zeros(3, np.float32)]])
    assert not off[0].ran and "other shapes" in off[0].fault
    with pytest.raises(ModelError, match="no variant runs here"):
        parity([garbage], [x])


def test_the_faster_of_two_runners_is_seen() -> None:
    quick = runner(Built.onnx(bundles.onnx_model(), "fp32"), "onnx")

    class Slow:
        description = "slow"

        def __init__(self, run: Callable[..., object]) -> None:
            self._run = run

        def __call__(self, inputs: object) -> object:
            return [self._run(inputs) for _ in range(20)][-1]

    slow: Runner = Slow(quick)  # type: ignore[assignment]
    times = latency_us([quick, slow], [np.ones((1, bundles.LENGTH), np.float32)], rounds=3, each_s=0.02)
    assert times[1] > 3 * times[0]


def test_a_digest_of_a_variant_is_of_all_its_files() -> None:
    ir = Built.openvino(b"x", b"y", "int8")
    assert ir.variant.weights == "model-int8.bin" and ir.size == 2
    assert len({ir.digest, Built.openvino(b"x", b"z", "int8").digest, Built.openvino(b"xy", b"", "int8").digest}) == 3


def test_what_is_no_tflite_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    with pytest.raises(ModelError, match="cannot read it"):
        read_tflite(path)
    path.write_bytes(b"TFL")
    with pytest.raises(ModelError, match="not a TFLite model"):
        read_tflite(path)
    path.write_bytes(bundles.tflite_model())
    assert read_tflite(path) == bundles.tflite_model()
