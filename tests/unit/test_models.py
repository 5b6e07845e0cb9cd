"""The committed bundles: signed by the project, in agreement with model.toml and with their cards, and running here."""

import re
from pathlib import Path

import msgspec
import numpy as np
import pytest

from gateway.errors import ModelError, OctogateError
from gateway.infer.bundle import Bundle
from gateway.infer.manifest import Manifest, Picture, Window
from models import __main__ as command
from models import kit
from models.machine_state import data, package

NAMES = ("detect", "machine_state", "segment")  # those whose bundles are committed


def folder(name: str) -> Path:
    return kit.MODELS / name


def bundle(name: str) -> Path:
    return folder(name) / f"{name}.octo"


@pytest.mark.parametrize("name", NAMES)
def test_signed_by_the_project_and_as_model_toml_says(name: str) -> None:
    with Bundle(bundle(name)) as opened:
        assert opened.verify([kit.PROJECT_KEY], allow_unsigned=False).signed_by
        stated = msgspec.to_builtins(opened.manifest)
    spec = kit.read_spec(folder(name) / "model.toml")
    assert spec["name"] == name
    again = {**spec, "golden": stated["golden"]}
    assert msgspec.to_builtins(msgspec.convert(again, Manifest)) == stated


@pytest.mark.parametrize("name", NAMES)
def test_the_cards_figures_are_of_this_bundle(name: str) -> None:
    text = (folder(name) / "README.md").read_text()
    figures = text.partition(kit.FIGURES_BEGIN)[2].partition(kit.FIGURES_END)[0]
    with Bundle(bundle(name)) as opened:
        digest = opened.verify([kit.PROJECT_KEY], allow_unsigned=False).digest
        card = bytes(opened.member("card.md")).decode()
    assert f"`{digest}`" in figures
    # the README may be improved without a new bundle; what travels must still be the card of this model
    assert card.startswith(f"# {name}\n")
    assert "Apache-2.0" in card
    assert kit.FIGURES_BEGIN not in card


def test_machine_state_reaches_its_bar() -> None:
    text = (folder("machine_state") / "README.md").read_text()
    for row in ("all test windows", "of kinds never trained on", "PLAID only, of kinds never trained on"):
        found = re.search(rf"\| {row} \| \d+ \| ([\d.]+) \|", text)
        assert found
        assert float(found[1]) >= 0.90
    for kind in ("arcing", "pulsation"):
        found = re.search(rf"\| {kind}: [^|]+ \| \d+ \| ([\d.]+) \|", text)
        assert found
        assert float(found[1]) >= 0.95
    assert bundle("machine_state").stat().st_size <= 150_000


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_and_reproduces_its_golden_samples(name: str) -> None:
    model = kit.load(bundle(name), [kit.PROJECT_KEY])
    assert isinstance(model.manifest.input, Window if name == "machine_state" else Picture)


@pytest.mark.parametrize("name", ["classify", "detect_coco"])
def test_models_that_are_built_have_a_manifest_and_a_card_with_figures(name: str) -> None:
    spec = kit.read_spec(folder(name) / "model.toml")
    assert kit.manifest(spec).name == name
    text = (folder(name) / "README.md").read_text()
    assert text.startswith(f"# {name}\n")
    assert re.search(r"Bundle digest: `[0-9a-f]{64}`", text)


def test_the_masks_of_segment_are_those_of_the_official_model() -> None:
    text = (folder("segment") / "README.md").read_text()
    least = re.search(r"Least of all: ([\d.]+)", text)
    assert least
    assert float(least[1]) >= 0.98


def test_machine_state_knows_its_own_golden_windows() -> None:
    model = kit.load(bundle("machine_state"), [kit.PROJECT_KEY])
    for name, records in package.golden_windows(data.RATED_A, data.RATED_W).items():
        result = model.answer(records, package.MEDIA)
        best = max(result.scores, key=lambda label: result.scores[label])
        assert best == {"start": "running"}.get(name, name)
        # the windows are made by formula, and the one-class head knows only real ones
        assert result.label == ("fault-like" if result.values["anomaly"] >= 1 else best)
        assert set(result.scores) == set(data.LABELS)


def test_another_rating_needs_no_training(tmp_path: Path) -> None:
    key, output = tmp_path / "own.key", tmp_path / "small.octo"
    package.refit(package.BUNDLE, output, key, amps=2.0, watts=460.0)
    assert key.stat().st_mode & 0o777 == 0o600
    with pytest.raises(ModelError, match="unknown key"):
        kit.load(output, [kit.PROJECT_KEY])
    model = kit.load(output, [tmp_path / "own.key.pub.pem"])
    window = np.tile(np.array([0.25, 50.0], "<f4"), (data.LENGTH, 1))  # idle at 2 A, nearly off at 10 A
    assert model.answer(window.tobytes(), package.MEDIA).label == "idle"


def test_the_same_input_gives_the_same_bundle(tmp_path: Path) -> None:
    key = tmp_path / "own.key"
    first, second = tmp_path / "a.octo", tmp_path / "b.octo"
    digests = {package.refit(package.BUNDLE, output, key, 4.0, 900.0) for output in (first, second)}
    assert len(digests) == 1
    assert first.read_bytes() == second.read_bytes()


def test_the_packed_network_tells_nothing_of_the_machine_it_was_made_on() -> None:
    words = (b"/root", b"/home", b"/tmp", b"site-packages", b"stack_trace")
    assert not [word for model in package.packed_files().values() for word in words if word in model]


def test_figures_need_their_place(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"# x\n{kit.FIGURES_BEGIN}\nold\n{kit.FIGURES_END}\nend\n")
    kit.write_figures(readme, kit.table(["a", "b"], [["1", "2"]]))
    assert readme.read_text().splitlines() == [
        "# x", kit.FIGURES_BEGIN, "", "| a | b |", "| --- | ---: |", "| 1 | 2 |", "", kit.FIGURES_END, "end",
    ]  # fmt: skip
    readme.write_text("# x\n")
    with pytest.raises(ModelError, match="no place for the figures"):
        kit.write_figures(readme, [])


def test_the_command_finds_the_scripts_and_names_what_it_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.names() == ["classify", "detect", "detect_coco", "machine_state", "segment", "workorder"]
    assert command.script("build", "detect") == "models.detect.fetch"
    assert command.script("build", "machine_state") == "models.machine_state.train"
    assert command.script("evaluate", "detect") == "models.detect.evaluate"
    with pytest.raises(OctogateError, match=r"no model 'press'.*classify, detect, "):
        command.script("build", "press")
    assert command.main(["paint", "detect"]) == 1
    assert command.main([]) == 2
    assert "usage:" in capsys.readouterr().err
