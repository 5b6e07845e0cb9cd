"""Pipelines are made of a config and of what its bundles say, or the reason is named."""

from pathlib import Path
from typing import Any

import pytest

from gateway.clock import Clock
from gateway.config import load
from gateway.errors import ConfigError
from gateway.pipelines import Pipelines
from tests.unit import bundles
from tests.unit.configs import PRESS_AND_DOCK

DETECT = Path(__file__).parents[2] / "models" / "detect" / "detect.octo"
CONFIG = f"""{PRESS_AND_DOCK}[[model]]
name = "window"
bundle = "window.octo"
[[model]]
name = "colours"
bundle = "colours.octo"
[[model]]
name = "detect"
bundle = "{DETECT}"
[[pipeline]]
name = "jackets"
after = "objects"
labels = ["person"]
model = "colours"
[[pipeline]]
name = "state"
source = "press"
stream = "power"
model = "window"
[[pipeline]]
name = "objects"
source = "dock"
model = "detect"
"""


class Idle:
    async def run(self, data: bytes, media: str, of: tuple[str, int] = ("", -1)) -> Any:
        raise AssertionError("nothing runs here")


def made(folder: Path, text: str = CONFIG) -> Pipelines:
    bundles.make(folder / "window.octo")
    bundles.make_colours(folder / "colours.octo")
    (folder / "gateway.toml").write_text(text)
    config = load(folder / "gateway.toml")
    engines = {model.name: Idle() for model in config.model}

    def nothing(*said: object) -> None:
        raise AssertionError(said)

    return Pipelines(config, engines, Clock(), nothing, nothing, lambda name: nothing)


def test_a_child_may_stand_before_its_parent(tmp_path: Path) -> None:
    pipelines = made(tmp_path)
    assert [p.name for p in pipelines.all] == ["jackets", "state", "objects"]
    assert [p.name for p in pipelines.running] == ["state", "objects"], "a child is driven by its parent"
    assert [p.name for p in pipelines.by_stream["press/power"]] == ["state"]
    (objects,) = pipelines.by_source["dock"]
    assert [child.name for child in objects.children] == ["jackets"]
    assert objects.children[0].status().source == "dock"


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (
            'model = "colours"',
            'model = "window"',
            "'jackets': model 'window' takes readings, it would be given regions",
        ),
        ('model = "detect"', 'model = "colours"', "model 'colours' of 'objects' knows no 'person'"),
        ('labels = ["person"]', 'labels = ["unicorn"]', "model 'detect' of 'objects' knows no 'unicorn'"),
        (
            'stream = "power"\nmodel = "window"',
            'stream = "power"\nmodel = "detect"\nwindow = 8',
            "'state': model 'detect' takes pictures, 'window' and 'hop' are for readings",
        ),
        (
            'stream = "power"\nmodel = "window"',
            'stream = "power"\nmodel = "window"\nmax_fps = 2',
            "'state': max_fps, but readings are never left out",
        ),
        ('after = "objects"', 'after = "state"', "'jackets': 'state' takes readings, which have no regions"),
        (
            'kind = "node"\nname = "press"\nport = "/dev/null"',
            'kind = "text"\nname = "press"\nport = "/dev/null"\n[[source.line]]\nstream = "power"\npattern = "{w:float}"',
            "'state': model 'colours' takes pictures, 'press' gives readings",
        ),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert old in CONFIG
    text = CONFIG.replace(old, new, 1)
    if "text" in new:
        text = text.replace('model = "window"\n[[pipeline]]', 'model = "colours"\n[[pipeline]]')
    with pytest.raises(ConfigError, match=says):
        made(tmp_path, text)


def test_a_picture_model_on_a_nodes_stream_is_of_its_camera(tmp_path: Path) -> None:
    text = CONFIG.replace('stream = "power"\nmodel = "window"', 'stream = "top"\nmax_fps = 2\nmodel = "detect"')
    text = text.replace('after = "objects"', 'after = "state"')
    pipelines = made(tmp_path, text)
    assert not pipelines.by_stream
    (state,) = pipelines.by_source["press/top"]
    assert [child.name for child in state.children] == ["jackets"]
    assert state.of == "press/top" and pipelines.by_source["dock"][0].of == "dock"


def test_a_parent_that_detects_nothing(tmp_path: Path) -> None:
    text = CONFIG.replace('labels = ["person"]\n', "").replace('model = "detect"\n', 'model = "colours"\n')
    with pytest.raises(ConfigError, match="model 'colours' of 'objects' detects nothing to look closer at"):
        made(tmp_path, text)
