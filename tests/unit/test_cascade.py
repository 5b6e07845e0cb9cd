"""Settings of pipelines that look closer, the choice of regions, and the pace of pictures."""

import itertools
import re
import tomllib
from functools import partial
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import __main__
from gateway.cascade import choose, resolve, widened
from gateway.config import PipelineTable, load
from gateway.contract import Detection
from gateway.errors import ConfigError
from gateway.infer.media import split, with_regions
from gateway.pipeline import Pace
from gateway.plan import plan, plan_text
from tests.unit import bundles
from tests.unit.configs import PRESS_AND_DOCK, assert_refused

CONFIG = f"""{PRESS_AND_DOCK}[[model]]
name = "eye"
bundle = "eye.octo"
[[pipeline]]
name = "press-state"
source = "press"
stream = "power"
model = "eye"
[[pipeline]]
name = "objects"
source = "dock"
model = "eye"
max_fps = 5
[[pipeline]]
name = "plates"
after = "objects"
labels = ["car"]
min_score = 0.6
model = "eye"
[[pipeline]]
name = "digits"
after = "plates"
model = "eye"
"""


def write(folder: Path, text: str = CONFIG) -> Path:
    bundles.make(folder / "eye.octo")
    path = folder / "gateway.toml"
    path.write_text(text)
    return path


def test_children_take_the_source_at_the_top(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path)
    tables = load(path).pipeline
    assert [(p.name, p.source, p.after) for p in tables] == [
        ("press-state", "press", ""), ("objects", "dock", ""), ("plates", "dock", "objects"), ("digits", "dock", "plates"),
    ]  # fmt: skip
    assert __main__.main(["check", "--config", str(path)]) == 0
    said = capsys.readouterr().out
    assert "pipeline  objects: dock (up to 5 pictures a second) -> eye\n" in said
    assert "pipeline  plates: dock -> car of objects from 0.6, up to 8 regions -> eye\n" in said
    assert "pipeline  digits: dock -> everything of plates from 0.5, up to 8 regions -> eye\n" in said


def test_plan_tells_what_looks_closer(tmp_path: Path) -> None:
    old = load(write(tmp_path, CONFIG[: CONFIG.index('[[pipeline]]\nname = "digits"')]))
    new = load(write(tmp_path, CONFIG.replace("min_score = 0.6", "min_score = 0.7")))
    text = plan_text(plan(old, new))
    assert "+ pipeline digits" in text and "~ pipeline plates: min_score 0.6 -> 0.7" in text


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('after = "objects"', 'after = "digits"', r"pipeline\[2\]\.after: a ring: plates -> digits -> plates"),
        ('after = "plates"', 'after = "digits"', r"pipeline\[3\]\.after: a ring: digits -> digits"),
        ('after = "plates"', 'after = "plate"', r"pipeline\[3\]\.after: there is no 'plate' \(did you mean 'plates'\?"),
        ('after = "objects"', 'after = "objects"\nsource = "dock"', r"pipeline\[2\]\.source: .* takes what 'objects'"),
        ('after = "objects"', 'after = "objects"\nmax_fps = 2', r"pipeline\[2\]\.max_fps"),
        ('source = "dock"\nmodel', "model", r"pipeline\[1\]\.source: missing \(add source"),
        ("max_fps = 5", "margin = 0.5", r"pipeline\[1\]\.margin: only for a pipeline with `after`"),
        (
            'stream = "power"',
            'stream = "power"\nhop = 4\nmax_fps = 1',
            r"pipeline\[0\]\.max_fps: readings are never left out",
        ),
        ("min_score = 0.6", "max_regions = 33", r"pipeline\[2\]\.max_regions"),
        ('name = "digits"', 'name = "plates"', r"pipeline\[3\]\.name: 'plates' is there twice"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert_refused(CONFIG, old, new, says, partial(write, tmp_path))


def test_readings_have_no_regions(tmp_path: Path) -> None:
    text = CONFIG.replace('after = "objects"', 'after = "press-state"')
    assert load(write(tmp_path, text)).pipeline[2].source == "press", "it may be a camera of the node: the model says"
    with pytest.raises(ConfigError, match=r"pipeline\[2\]\.after: 'press-state' takes readings"):
        load(write(tmp_path, text.replace('stream = "power"', 'stream = "power"\nwindow = 8')))


def test_the_documented_example_is_a_config() -> None:
    text = (Path(__file__).parents[2] / "docs" / "pipelines.md").read_text()
    (example,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    tables = msgspec.convert(tomllib.loads(example)["pipeline"], tuple[PipelineTable, ...])
    assert [table.source for table in resolve("here", tables)] == ["press-4", "dock-cam", "dock-cam"]


TABLE = PipelineTable(name="plates", model="eye", after="objects", labels=("car", "bus"), max_regions=2)


def test_the_best_of_the_wanted_objects_are_looked_at() -> None:
    box = (0.25, 0.25, 0.5, 0.5)
    said = [("car", 0.6), ("cat", 0.99), ("bus", 0.9), ("car", 0.4), ("car", 0.7)]
    parents, more = choose(TABLE, [Detection(label, score, *box) for label, score in said])
    assert [(p.detection, p.label) for p in parents] == [(2, "bus"), (4, "car")] and more == 1
    assert parents[0].pipeline == "objects" and parents[0].box == box
    assert parents[0].region == pytest.approx((0.225, 0.225, 0.525, 0.525))
    assert choose(TABLE, []) == ([], 0)


@given(
    st.lists(st.floats(0, 1), min_size=4, max_size=4),
    st.floats(0, 2),
)
def test_every_region_can_be_asked_for(sides: list[float], margin: float) -> None:
    x0, x1, y0, y1 = min(sides[:2]), max(sides[:2]), min(sides[2:]), max(sides[2:])
    region = widened(Detection("car", 1.0, x0, y0, x1, y1), margin)
    assert split(with_regions("image/jpeg", [region])) == ("image/jpeg", (region,)), "what is told is what was seen"
    assert region[0] <= x0 + 1e-3 and region[2] >= x1 - 1e-3 and region[1] <= y0 + 1e-3 and region[3] >= y1 - 1e-3


def taken(fps: float, times_ms: list[float]) -> list[float]:
    pace = Pace(fps)
    return [t for t in times_ms if pace.due(int(t * 1e6))]


def test_every_third_of_a_fast_camera() -> None:
    assert taken(10, [i * 100 / 3 for i in range(10)]) == pytest.approx([0, 100, 200, 300])


def test_a_camera_of_this_very_rate_loses_none_to_its_jitter() -> None:
    times: list[float] = [i * 100 + jitter for i, jitter in enumerate([0, 4, -5, 6, -3, 2, 0, -6, 1])]
    assert taken(10, times) == times


def test_a_pause_is_not_made_up_for() -> None:
    assert taken(10, [0, 5000, 5010, 5020, 5100]) == [0, 5000, 5100]


@given(
    st.lists(st.integers(0, 300), min_size=1, max_size=200),
    st.integers(1, 60),
)
def test_no_more_pictures_than_the_limit(steps_ms: list[int], fps: int) -> None:
    times = [float(sum(steps_ms[: i + 1])) for i in range(len(steps_ms))]
    chosen = taken(fps, times)
    assert chosen[0] == times[0]
    assert len(chosen) <= (chosen[-1] - chosen[0]) * fps / 1000 + 2
    assert all(b - a >= 0.49 * 1000 / fps for a, b in itertools.pairwise(chosen))
