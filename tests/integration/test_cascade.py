"""detect -> crop -> classify, declared in config alone: the repository's detector and a classifier made here."""

from __future__ import annotations

import asyncio
from pathlib import Path

import cv2
import numpy as np
import pytest

from gateway.infer.bundle import Bundle
from gateway.report import status_text
from tests.integration.harness import MODELS, daemon, stored
from tests.unit import bundles

PICTURES = 6
CONFIG = """
[gateway]
id = "line-1"
data_dir = "data"
[trust]
allow_unsigned = true
[[source]]
kind = "pictures"
name = "dock"
folder = "pictures"
fps = 2
loop = false
[[model]]
name = "detect"
bundle = "{detect}"
deadline_ms = 20000
[[model]]
name = "colours"
bundle = "colours.octo"
deadline_ms = 20000
[[pipeline]]
name = "objects"
source = "dock"
model = "detect"
[[pipeline]]
name = "jackets"
after = "objects"
labels = ["person"]
margin = 0.05
model = "colours"
[[rule]]
kind = "class"
name = "red-jacket"
pipeline = "jackets"
labels = ["red"]
min_score = 0.0
"""


@pytest.mark.timeout(120)
def test_detections_are_looked_at_by_a_second_model(tmp_path: Path) -> None:
    with Bundle(MODELS / "detect" / "detect.octo") as bundle:
        astronaut = bytes(bundle.member(bundle.manifest.golden[0].input))
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(PICTURES):
        (folder / f"{i}.jpg").write_bytes(astronaut)
    bundles.make_colours(tmp_path / "colours.octo")
    config = CONFIG.format(detect=MODELS / "detect" / "detect.octo")

    async def scenario() -> None:
        async with daemon(tmp_path, config) as gateway:
            status = await gateway.until(
                lambda s: (
                    s.pipelines[0].inferences + s.pipelines[0].skipped == PICTURES
                    and s.pipelines[1].inferences == s.pipelines[0].inferences
                ),
                "every picture is looked at, and the person on it",
            )
            objects, jackets = status.pipelines
            assert jackets.after == "objects" and jackets.source == "dock" and jackets.skipped == 0
            assert "after objects" in status_text(status)
            assert objects.newest is not None and jackets.newest is not None and objects.inferences >= 1
            parent = jackets.newest.parent
            assert parent is not None and (parent.pipeline, parent.label) == ("objects", "person")
            assert jackets.newest.input_seq == objects.newest.input_seq
            seen = objects.newest.result.detections[parent.detection]
            assert (seen.x0, seen.y0, seen.x1, seen.y1) == pytest.approx(parent.box)
            assert jackets.newest.result.label == colour_of(astronaut, parent.region)
            assert status.models[1].runs == jackets.inferences, "one job a picture"
            assert ("red-jacket" in {event.name for event in status.events}) == (jackets.newest.result.label == "red")
            assert await gateway.end() == 0
            rows = stored(gateway.spool)
            assert rows["objects"] == rows["jackets"] == objects.inferences

    asyncio.run(scenario())


def colour_of(picture: bytes, region: tuple[float, float, float, float]) -> str:
    """The prevailing colour of a region, computed here."""
    array = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR)
    assert array is not None
    height, width = array.shape[:2]
    part = array[int(region[1] * height) : int(region[3] * height), int(region[0] * width) : int(region[2] * width)]
    return ("blue", "green", "red")[int(part.reshape(-1, 3).mean(axis=0).argmax())]
