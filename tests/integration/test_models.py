"""The committed bundles on real recordings and pictures, fetched from the registries, through the real runtimes."""

from pathlib import Path

import numpy as np
import pytest

from gateway.contract import Detection
from models import kit
from models.detect import fetch
from models.machine_state import data, evaluate, package
from sdk import demo_data, recordings


def test_machine_state_on_recordings_it_has_not_learned() -> None:
    model = kit.load(package.BUNDLE, [kit.PROJECT_KEY])
    unlearned = data.select(recordings.load(), "validation")
    windows = data.windows(unlearned, seed=11)
    said = evaluate.answers(model, windows.x).said
    assert len(windows) > 500
    assert data.f1(data.confusion(windows.y, said)).mean() >= 0.90


def test_every_recording_of_acsf1_turns_out_to_be_of_the_mains() -> None:
    found = [recording for recording in recordings.load() if recording.archive == "acsf1"]
    assert len(found) == 100
    assert all(205 < recording.volts < 245 for recording in found)
    heaters = [r.power.max() for r in found if r.kind == "coffee machine" and r.power is not None]
    assert all(800 < watts < 1600 for watts in heaters)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> demo_data.DemoData:
    return demo_data.prepare(tmp_path_factory.mktemp("demo"))


def test_the_demos_machine_shows_every_state(demo: demo_data.DemoData) -> None:
    model = kit.load(package.BUNDLE, [kit.PROJECT_KEY])
    records = np.fromfile(demo.shape, "<f4").reshape(-1, 2)
    assert len(records) == demo.meta.readings
    assert 30 <= demo.seconds <= 60
    starts = range(0, len(records) - data.LENGTH + 1, data.HOP)
    answers = [model.answer(records[at : at + data.LENGTH].tobytes(), package.MEDIA) for at in starts]
    said = [max(answer.scores, key=lambda label: answer.scores[label]) for answer in answers]
    # the washing machine's current swings by half of its level, which is what the model knows as pulsation
    odd = [i for i, answer in enumerate(answers) if answer.label == "fault-like"]
    first_run = range(said.index("running"), said.index("idle"))
    assert odd and set(odd) <= set(first_run)
    runs = [label for i, label in enumerate(said) if i == 0 or said[i - 1] != label]
    assert runs == ["off", "running", "idle", "running", "idle", "running", "off"]
    # all of them within the first ten seconds, for a short demo
    assert set(said[: int(10 * data.RATE_HZ) // data.HOP]) == set(data.LABELS)
    # it loops: the end is where the beginning was
    assert abs(records[:100].mean(axis=0) - records[-100:].mean(axis=0)).max() < 5


def test_the_demos_data_is_made_once(demo: demo_data.DemoData, tmp_path: Path) -> None:
    before = demo.shape.stat().st_mtime_ns
    again = demo_data.prepare(demo.shape.parent, cache=tmp_path / "no cache")
    assert again == demo
    assert demo.shape.stat().st_mtime_ns == before


def objects(model: kit.Loaded, picture: Path) -> dict[str, Detection]:
    found = model.answer(picture.read_bytes(), "image/jpeg").detections
    return {detection.label: detection for detection in found}


def test_detect_finds_person_and_cat(demo: demo_data.DemoData) -> None:
    model = kit.load(fetch.BUNDLE, [kit.PROJECT_KEY], backend="litert")
    assert model.runner.description.startswith("litert fp32")
    person = objects(model, demo.pictures / "1-astronaut.jpg")
    cat = objects(model, demo.pictures / "2-chelsea.jpg")
    assert set(person) == {"person"}
    assert set(cat) == {"cat"}
    # the astronaut's face is well inside the box, the cat fills its picture
    assert person["person"].x0 < 0.35 < 0.6 < person["person"].x1
    assert cat["cat"].x1 - cat["cat"].x0 > 0.8


def test_the_model_tomls_labels_are_the_packages() -> None:
    _, names = fetch.weights(say=lambda line: None)
    with_background = ["background", *(name.lower() for name in names[1:])]
    assert kit.read_spec(fetch.FOLDER / "model.toml")["labels"] == with_background
