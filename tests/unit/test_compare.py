"""`octogate diff` on spools made for it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from gateway.clock import Clock
from gateway.compare import compare, diff_text
from gateway.contract import BatchKind, Detection, Inference, Result
from gateway.errors import StoreError
from gateway.store.inline import InlineSpool, prepare, settle
from gateway.virtual import VirtualLoop

BEGIN_NS = 10**12


def spool(folder: Path, results: Sequence[tuple[float, Result]], bundle: str = "old") -> Path:
    """One with these results of the pipeline `eye`, each at so many seconds."""
    loop = VirtualLoop(BEGIN_NS, 1e6)
    clock = Clock(mono=loop.mono_ns, wall=lambda: 0, error=lambda: 0, boot="b")

    async def story() -> None:
        prepare(folder / "spool.db", bytes(16))
        opened = InlineSpool.open(
            folder / "spool.db", clock, commit_s=0.02, max_bytes=1 << 24, notify=lambda *_: None
        )  # fmt: skip
        async with opened as made:
            for seconds, result in results:
                stamp = clock.at(BEGIN_NS + int(seconds * 1e9))
                row = Inference("eye", stamp, "m", bundle, "onnx", len(bundle), result)
                await made.append_row("eye", BatchKind.INFERENCES, msgspec.json.encode(row))
        settle(folder / "spool.db")

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(story())
    return folder


def on(score: float = 0.9) -> Result:
    return Result("on", score)


OFF = Result("off", 0.8)


def test_another_bundle_that_says_the_same_is_no_difference(tmp_path: Path) -> None:
    a = spool(tmp_path / "a", [(1, on()), (2, OFF)])
    b = spool(tmp_path / "b", [(1.0001, on()), (2, OFF)], bundle="new one")
    found = compare(a, b, 0.0)
    assert not found.different and found.pipelines[0].compared == 2
    assert found.pipelines[0].labels_a == {"on": 1, "off": 1}


def test_other_labels_scores_and_missing_rows_are_counted(tmp_path: Path) -> None:
    a = spool(tmp_path / "a", [(1, on()), (2, OFF), (3, on()), (4, on(0.9)), (5, on())])
    b = spool(tmp_path / "b", [(1, on()), (2, on()), (4, on(0.7)), (5, on()), (6, OFF)])
    [eye] = compare(a, b, 0.0).pipelines
    assert (eye.compared, eye.different, round(eye.largest, 3)) == (4, 4, 0.2)
    assert [(d.mono_ns - BEGIN_NS) // 10**9 for d in eye.first] == [2, 3, 4, 6]
    assert (eye.first[0].a, eye.first[0].b) == ("off (0.80)", "on (0.90)")
    assert (eye.first[1].b, eye.first[3].a) == ("", "")
    assert compare(a, b, 0.25).pipelines[0].different == 3
    text = diff_text(compare(a, b, 0.0))
    assert "1002.000 s after boot\n    A  off (0.80)\n    B  on (0.90)" in text and text.endswith("different")


def test_objects_are_compared_by_kind_and_number(tmp_path: Path) -> None:
    cat, man = Detection("cat", 0.9, 0, 0, 1, 1), Detection("man", 0.8, 0, 0, 1, 1)
    a = spool(tmp_path / "a", [(1, Result(detections=(cat, man))), (2, Result(detections=(cat,)))])
    b = spool(tmp_path / "b", [(1, Result(detections=(cat, man))), (2, Result(detections=(cat, cat)))])
    [eye] = compare(a, b, 0.0).pipelines
    assert eye.labels_a == {"1 x cat, 1 x man": 1, "1 x cat": 1} and eye.different == 1
    assert eye.first[0].b == "2 x cat (0.90)"


def test_many_differences_are_counted_and_ten_are_listed(tmp_path: Path) -> None:
    a = spool(tmp_path / "a", [(k, on()) for k in range(30)])
    b = spool(tmp_path / "b", [(k, OFF) for k in range(30)])
    found = compare(a, b, 0.0)
    assert found.pipelines[0].different == 30 and len(found.pipelines[0].first) == 10
    assert "and 20 more" in diff_text(found)


def test_a_spool_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no spool"):
        compare(tmp_path, tmp_path, 0.0)
