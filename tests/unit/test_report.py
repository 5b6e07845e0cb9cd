"""What the report of the models says, and what it says when something is not there. Pictures: tests/train."""

from pathlib import Path

import msgspec
import pytest

from gateway.errors import ModelError
from gateway.infer.bundle import Bundle
from gateway.infer.candidate import Candidate
from gateway.infer.ranking import Figures as Took
from gateway.infer.ranking import Key, Measured, Placement
from models import __main__ as command
from models import kit, report, report_page
from sdk.optimise.figures import Figure, Figures
from sdk.optimise.variants import Built
from tests.unit import bundles

SEGMENT = kit.MODELS / "segment" / "segment.octo"
NAMES = sorted(path.parent.name for path in kit.MODELS.glob("*/figures.json"))


def candidate(file: str, backend: str = "onnx", threads: int = 1) -> Candidate:
    return Candidate(backend=backend, file=file, precision="int8" if "int8" in file else "fp32", threads=threads)


def placement(*times: tuple[Candidate, float]) -> Placement:
    key = Key(
        bundle="b", objective="latency", cpus=2, pinned="", versions=("onnxruntime 1",), cpu="a <cpu>", devices=()
    )
    took = [Measured(one, Took(us, us, us, 1.0, 45_000_000, 9), final=True) for one, us in times]
    broken = Measured(candidate("model.onnx", "openvino"), rejected="wrong <answers>")
    first = min(times, key=lambda pair: pair[1])[0]
    return Placement(1, key, times[0][0], (first,), (*took, broken))


def figure(file: str, f1: float, stage: str, backend: str = "onnx") -> Figure:
    return Figure(
        stage=stage, file=file, precision="fp32", backend=backend, size=5000, macs=7_000_000, metrics={"f1": f1}
    )


def section(known: Figures | None = None, stale: Figures | None = None) -> report.Section:
    found = placement(
        (candidate("model.onnx"), 300.0), (candidate("model.onnx", threads=2), 350.0), (candidate("model-int8.onnx"), 100.0)
    )  # fmt: skip
    files = {name: Built.onnx(b"no model", "fp32", file=name) for name in ("model.onnx", "model-int8.onnx")}
    ways = report.ways_of(found, files, known, found.ranking[0])
    return report.Section(
        name="press", digest="d" * 64, size=9000, ways=ways, placement=found, known=known, stale=stale,
        missing=report.not_there("press", ways, known, stale), rejected=["model.onnx on openvino: wrong <answers>"],
    )  # fmt: skip


def known(bundle: str = "d" * 64) -> Figures:
    figures = (
        figure("base.onnx", 0.95, "base"),
        figure("model.onnx", 0.94, "pruned"),
        figure("model-int8.onnx", 0.93, "int8"),
    )
    return Figures(model="press", bundle=bundle, bundle_bytes=9000, headline=("f1",), figures=figures)


def test_a_row_for_each_variant_with_its_stage_loss_times_and_the_choice() -> None:
    one = section(known())
    head, *rows = report_page.table(one)
    assert head == [
        "stage", "file", "runtime", "kB", "MMAC", "f1", "points lost", "ms, 1 thread", "ms, 2 threads", "MB", "front", "auto",
    ]  # fmt: skip
    assert rows == [
        ["base", "base.onnx", "onnx", "5.0", "7", "0.9500", "0", "-", "-", "-", "", ""],
        ["pruned", "model.onnx", "onnx", "0.0", "-", "0.9400", "+1.00", "0.3", "0.35", "45", "yes", ""],
        ["int8", "model-int8.onnx", "onnx", "0.0", "-", "0.9300", "+2.00", "0.1", "-", "45", "yes", "chosen, x1"],
    ]
    assert any("not in the bundle, and not in build/" in line for line in one.missing)
    assert report_page.chosen(one) == (
        "auto chose model-int8.onnx on onnx with 1 thread: 0.1 ms, 45 MB, 3.0 times as fast as onnx fp32 x1."
    )


def test_the_numbers_are_told_as_json_by_model() -> None:
    said = msgspec.json.decode(report.numbers([section(known())]))
    assert list(said) == ["press"] and said["press"]["bundle"] == "d" * 64 and said["press"]["bytes"] == 9000
    assert [(way["stage"], way["metrics"], way["p50_us"]) for way in said["press"]["ways"]] == [
        ("base", {"f1": 0.95}, {}), ("pruned", {"f1": 0.94}, {"1": 300.0, "2": 350.0}), ("int8", {"f1": 0.93}, {"1": 100.0}),
    ]  # fmt: skip


def test_what_is_not_there_is_said_in_words() -> None:
    one = section()
    assert one.metric == "" and not any("f1" in cell for row in report_page.table(one) for cell in row)
    assert any(
        line.startswith("No accuracy: it was not evaluated. ./inv models.evaluate press") for line in one.missing
    )
    assert any("no stage pruned" in line for line in one.missing)


def test_figures_of_another_bundle_are_shown_as_stale_and_not_used() -> None:
    one = section(stale=known("e" * 64))
    assert any("belong to another bundle" in line for line in one.missing)
    page = report_page.html_page([one], ["classify"], {"press": b"png"})
    assert '<tr class="stale">' in page and "Stale, of bundle eeeeeeeeeeeeeeee..." in page and "no bundle here" in page
    assert "wrong &lt;answers&gt;" in page and "a &lt;cpu&gt;" in page and "<answers>" not in page
    text = report_page.markdown([one], [])
    assert "Stale, of bundle" in text and "| base.onnx |" in text.replace("| base | base.onnx |", "| base.onnx |")
    assert report_page.terminal([one], ["classify"])[-1].startswith("classify")
    assert "stale" in report_page.terminal([one], [])[1]


def test_work_of_an_int8_file_that_nobody_can_count_is_that_of_its_fp32_file() -> None:
    with Bundle(SEGMENT) as opened:
        whole = Built.onnx(bytes(opened.member("model.onnx")), "fp32")
    files = {"model.onnx": whole, "other-int8.onnx": Built.onnx(b"none", "int8")}
    files["model-int8.onnx"] = files["other-int8.onnx"]
    work = report.work_of(files)
    assert work["model.onnx"] and work["model-int8.onnx"] == work["model.onnx"] and work["other-int8.onnx"] is None


def test_a_bundle_of_all_stages_is_made_to_be_measured(tmp_path: Path) -> None:
    network = bundles.onnx_model()
    bundle = tmp_path / "press.octo"
    bundles.make(bundle)
    (tmp_path / "base.onnx").write_bytes(network)
    with Bundle(bundle) as opened:
        extra = report.stages_not_shipped(opened.manifest, known(), tmp_path)
    assert list(extra) == ["base.onnx"]  # model.onnx is shipped, model-int8.onnx is nowhere
    with Bundle(report.study(bundle, extra, tmp_path)) as opened:
        assert [one.file for one in opened.manifest.variants] == ["base.onnx", "model.onnx"]
        assert all(one.tolerance == {} for one in opened.manifest.golden)


def test_some_bundles_have_figures_beside_them() -> None:
    assert {"detect", "segment"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_figures_beside_a_committed_bundle_are_its_own(name: str) -> None:
    path = kit.MODELS / name
    found = msgspec.json.decode((path / "figures.json").read_bytes(), type=Figures)
    with Bundle(path / f"{name}.octo") as opened:
        assert opened.verify([kit.PROJECT_KEY], allow_unsigned=False).digest == found.bundle
        shipped = {one.file for one in opened.manifest.variants}
    assert shipped <= {one.file for one in found.figures} and found.split == "test" and found.headline


def test_figures_that_an_evaluation_left_go_beside_the_bundle_they_are_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, build = tmp_path / "models", tmp_path / "build"
    bundle = models / "press" / "press.octo"
    bundle.parent.mkdir(parents=True)
    bundles.make(bundle)
    with Bundle(bundle) as opened:
        digest = opened.verify((), allow_unsigned=True).digest
    monkeypatch.setattr(command, "MODELS", models)
    monkeypatch.setattr(kit, "BUILD", build)
    command.keep_figures("press")  # there are none
    known("another").write(build / "press")
    command.keep_figures("press")
    assert not (models / "press" / "figures.json").exists()
    known(digest).write(build / "press")
    command.keep_figures("press")
    assert (models / "press" / "figures.json").exists()


def test_every_variant_is_evaluated_on_every_runtime_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    found = kit.evaluated(SEGMENT, ("f1",), lambda model: {"f1": 0.5}, said.append)
    assert [(one.file, one.backend) for one in found.figures] == [("model.onnx", "onnx"), ("model.onnx", "openvino")]
    assert len(said) == 2 and all(one.macs > 0 and one.size > 0 and one.metrics == {"f1": 0.5} for one in found.figures)
    monkeypatch.setattr(kit, "trusted", list)
    with pytest.raises(ModelError):
        kit.evaluated(SEGMENT, ("f1",), lambda model: {"f1": 0.5}, said.append)


def test_the_list_is_a_table_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["list"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["model", "task", "version", "bundle", "variants"] and len(lines) >= len(command.names())
    assert command.main(["list", "--json"]) == 0
    found = msgspec.json.decode(capsys.readouterr().out)
    entry = next(one for one in found if one["name"] == "segment")
    assert entry["bundle"]["signed_by"] and entry["bundle"]["bytes"] > 0 and entry["licence"]
    assert next(one for one in found if one["name"] == "classify")["bundle"] is None
    assert command.main(["list", "press"]) == 2
    assert command.main(["report", "press"]) == 1
    assert "there is no model 'press'" in capsys.readouterr().err
