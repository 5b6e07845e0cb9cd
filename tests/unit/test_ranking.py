"""The choice among what was measured, and the file that remembers it."""

import logging
import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.infer import ranking
from gateway.infer.candidate import Candidate
from gateway.infer.ranking import MARGIN, Figures, Key, Measured, Objective, Placement
from tests.unit import bundles

KEY = Key("d" * 64, "latency", 2, "any/any/any", ("onnxruntime 1.20",), "cpu 0", ("onnx CPU",))
ONNX = Candidate(backend="onnx", file="model.onnx", precision="fp32")
ONNX2 = msgspec.structs.replace(ONNX, threads=2)
LITERT = Candidate(backend="litert", file="model.tflite", precision="fp32")
NPU = Candidate(backend="openvino", file="model.onnx", precision="fp32", device="NPU")


def took(us: float, *, cpu_us: float = 1.0, per_s: float = 1.0) -> Figures:
    return Figures(us, us, cpu_us, per_s, 1 << 20, 100)


def measured(candidate: Candidate, us: float, *, final: bool = True) -> Measured:
    return Measured(candidate, took(us), final=final)


def ranked(*lines: Measured, present: Candidate | None = ONNX) -> tuple[Candidate, ...]:
    return ranking.rank(lines, "latency", present=present, safe=(ONNX, LITERT))


@pytest.mark.parametrize(("us", "choice"), [(1.0, LITERT), (89, LITERT), (90, ONNX), (99, ONNX), (200, ONNX)])
def test_the_present_choice_stays_unless_another_is_better_by_the_margin(us: float, choice: Candidate) -> None:
    assert ranked(measured(ONNX, 100), measured(LITERT, us))[0] == choice


def test_without_a_present_choice_the_best_wins_by_any_margin() -> None:
    lines = measured(ONNX, 100), measured(LITERT, 99)
    assert ranked(*lines, present=None)[0] == LITERT
    assert ranked(*lines, present=NPU)[0] == LITERT  # it was not measured: it is gone
    assert ranked(Measured(ONNX, rejected="golden sample off"), measured(LITERT, 999)) == (LITERT,)


def test_fallbacks_are_other_ways_and_the_safe_one_is_last() -> None:
    lines = measured(NPU, 10), measured(ONNX2, 30), measured(LITERT, 40), measured(ONNX, 50)
    assert ranked(*lines) == (NPU, ONNX2, LITERT, ONNX)
    # safe already: the same threads are the best of their way
    assert ranked(measured(NPU, 10), measured(ONNX, 30), measured(LITERT, 40)) == (NPU, ONNX, LITERT)
    assert ranked(Measured(NPU, rejected="gone"), Measured(ONNX, rejected="off")) == ()


def test_who_was_tried_briefly_comes_after_who_took_part() -> None:
    assert ranked(measured(LITERT, 10, final=False), measured(ONNX, 50), present=None) == (ONNX, LITERT)


def test_each_objective_looks_at_its_own_figure() -> None:
    lines = (
        Measured(ONNX, took(100, cpu_us=100, per_s=10), final=True),
        Measured(ONNX2, took(60, cpu_us=110, per_s=12), final=True),
        Measured(LITERT, took(90, cpu_us=50, per_s=11), final=True),
        Measured(NPU, took(95, cpu_us=90, per_s=40), final=True),
    )
    best: dict[Objective, Candidate] = {"latency": ONNX2, "energy": LITERT, "throughput": NPU}
    for objective, choice in best.items():
        assert ranking.rank(lines, objective, present=ONNX, safe=(ONNX,))[0] == choice


CANDIDATES = st.builds(
    Candidate,
    backend=st.sampled_from(["onnx", "openvino"]),
    file=st.sampled_from(["a", "b"]),
    precision=st.just("fp32"),
    device=st.sampled_from(["CPU", "NPU"]),
    threads=st.integers(1, 3),
)
LINES = st.lists(
    st.builds(
        Measured,
        CANDIDATES,
        st.none() | st.builds(took, st.floats(1, 1e6)),
        st.text(max_size=20),
        st.booleans(),
    ),
    unique_by=lambda line: line.candidate,
)


@given(LINES, st.none() | CANDIDATES, st.lists(CANDIDATES, max_size=3))
def test_the_choice_is_near_the_best_and_every_way_is_there(
    lines: list[Measured], present: Candidate | None, safe: list[Candidate]
) -> None:
    found = ranking.rank(lines, "latency", present=present, safe=safe)
    works = {line.candidate: line for line in lines if line.figures}
    assert set(found) <= works.keys() and len(set(found)) == len(found)
    assert {(c.backend, c.file, c.device) for c in found} == {(c.backend, c.file, c.device) for c in works}
    if not works:
        return
    finals = [line for line in works.values() if line.final] or list(works.values())
    best = min(line.figures.p50_us for line in finals if line.figures)
    choice = works[found[0]].figures
    assert choice is not None
    if found[0] == present:
        assert choice.p50_us * (1 - MARGIN) <= best or not works[found[0]].final
    else:
        assert choice.p50_us == best
        if present in works and works[present].final:
            assert best < (1 - MARGIN) * works[present].figures.p50_us  # type: ignore[union-attr]


def placement(*lines: Measured, key: Key = KEY) -> Placement:
    return Placement(1, key, ONNX, ranked(*lines), lines)


GOOD = placement(measured(ONNX, 100), measured(LITERT, 50), Measured(NPU, rejected="no such device"))


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "placement" / "m.json"
    assert ranking.load(path) is None
    ranking.save(path, GOOD)
    assert ranking.load(path) == GOOD
    assert GOOD.gain == 2.0
    assert os.listdir(path.parent) == ["m.json"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.json"
    ranking.save(path, GOOD)

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        ranking.save(path, placement(measured(ONNX, 1)))
    assert ranking.load(path) == GOOD and os.listdir(tmp_path) == ["m.json"]


SAVED = msgspec.json.encode(GOOD)


@given(
    st.one_of(
        st.binary(max_size=300),
        st.integers(0, len(SAVED) - 1).map(lambda n: SAVED[:n]),
        st.tuples(st.integers(0, len(SAVED) - 1), st.integers(0, 255)).map(
            lambda at: SAVED[: at[0]] + bytes([at[1]]) + SAVED[at[0] + 1 :]
        ),
        st.just(SAVED.replace(b"100.0", b"1e300")),
        st.just(b" " * (ranking.MAX_BYTES + 1)),
        st.just(b"[" * 100_000),
    )
)
def test_no_damage_of_the_file_raises(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.json"
    path.write_bytes(data)
    found = ranking.load(path)
    if found is not None:
        # a changed digit or letter is a whole placement still, within its bounds
        assert len(data) == len(SAVED) and msgspec.json.decode(msgspec.json.encode(found), type=Placement) == found


def test_a_damaged_file_is_told_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "m.json"
    path.write_bytes(SAVED[:-1])
    with caplog.at_level(logging.WARNING):
        assert ranking.load(path) is None
    assert len(caplog.messages) == 1 and "m.json: cannot be used, the model is measured again" in caplog.messages[0]


def test_a_ranking_of_another_bundle_or_against_the_pins_is_not_used() -> None:
    manifest = bundles.manifest()
    only = placement(measured(ONNX, 100))
    open_ = {"backend": "", "device": "", "threads": 0}
    assert ranking.fits(only, manifest, **open_)  # type: ignore[arg-type]
    assert not ranking.fits(GOOD, manifest, **open_)  # type: ignore[arg-type]
    assert not ranking.fits(placement(), manifest, **open_)  # type: ignore[arg-type]
    for pin in ({"backend": "litert"}, {"device": "NPU"}, {"threads": 2}):
        assert not ranking.fits(only, manifest, **{**open_, **pin})  # type: ignore[arg-type]
    assert ranking.allowed(NPU, backend="", device="NPU", threads=4)  # threads are the CPU's
