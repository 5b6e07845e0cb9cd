"""A camera on a node, recorded as bytes of its line and played back through models: the same each time."""

from __future__ import annotations

import asyncio
import zipfile
from pathlib import Path

import pytest

from sdk.testing import MicroPythonNode
from tests.integration.harness import FIRMWARE, MODELS, Daemon
from tests.integration.test_node_camera import program
from tests.integration.test_record import octogate, replayed, rows

EYES = f"""
[gateway]
id = "desk"
data_dir = "data"
[trust]
keys = ["{MODELS / "keys" / "octogate-models.pub.pem"}"]
[[source]]
kind = "node"
name = "arm"
port = "tty"
[[model]]
name = "detect"
bundle = "{MODELS / "detect" / "detect.octo"}"
worker = "shared"
[[model]]
name = "closer"
bundle = "{MODELS / "detect" / "detect.octo"}"
worker = "shared"
[[pipeline]]
name = "eye"
source = "arm"
stream = "top"
model = "detect"
[[pipeline]]
name = "closer"
after = "eye"
model = "closer"
"""


@pytest.mark.timeout(120)
def test_a_camera_on_a_node_is_played_back_through_models(tmp_path: Path) -> None:
    with zipfile.ZipFile(MODELS / "detect" / "detect.octo") as bundle:
        picture = bundle.read("golden/1-astronaut.jpg")
    files = {"main.py": program(), "picture.jpg": picture}
    made, out = Daemon(tmp_path, EYES), tmp_path / "arm.octorec"

    async def story() -> None:
        async with MicroPythonNode(FIRMWARE, tmp_path / "node", tmp_path / "tty", files=files):
            await octogate("record", "--config", made.config, "--out", out, "--seconds", "3")
        first = await replayed(made, out, tmp_path / "one")
        second = await replayed(made, out, tmp_path / "two")
        print(f"\n{first}")
        assert first["whole"] and first["digest"] == second["digest"]
        assert first["streams"]["eye"] > 3 and first["streams"]["closer"] > 3

    asyncio.run(story())
    assert (tmp_path / "one" / "spool.db").read_bytes() == (tmp_path / "two" / "spool.db").read_bytes()
    counted = [value[0] for _, value in rows(tmp_path / "one" / "spool.db", "arm/count")]
    assert counted == list(range(len(counted))) and len(counted) > 100
