"""The daemon with every kind of camera: a film, a node's camera with a model that looks at it, and one that is not there."""

from __future__ import annotations

import asyncio
import base64
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import msgspec
import numpy as np

from gateway.contract import GatewayStatus, Result, SourceState
from gateway.control import Client
from gateway.infer.manifest import Fit, Golden, Picture, Tensor
from sdk.bundle import pack
from sdk.testing import MicroPythonNode
from tests.integration.harness import FIRMWARE, daemon
from tests.integration.test_node_camera import program
from tests.unit import bundles

CONFIG = """
[gateway]
id = "line-1"
data_dir = "data"
[trust]
allow_unsigned = true
[[source]]
kind = "video"
name = "film"
url = "film.mp4"
fps = 10.0
[[source]]
kind = "camera"
name = "usb"
device = "no-such-camera"
[[source]]
kind = "node"
name = "press"
port = "tty"
[[model]]
name = "means"
bundle = "means.octo"
deadline_ms = 20000
[[pipeline]]
name = "top-means"
source = "press"
stream = "top"
model = "means"
[[pipeline]]
name = "mistaken"
source = "press"
stream = "count"
model = "means"
"""


def make_bundle(path: Path) -> None:
    """A model that takes a picture of 2 x 1 pixels and sums it."""
    png = cv2.imencode(".png", np.full((1, 2, 3), 1, np.uint8))[1].tobytes()
    right = msgspec.json.encode(Result(values={"sum": 6.0, "first": 1.0}))
    golden = Golden(input="golden/0", media="image/png", expected="golden/0.json", tolerance={"fp32": 0.1})
    manifest = bundles.manifest(input=Picture(width=2, height=1), pre=(Fit(), Tensor(layout="nhwc")), golden=(golden,))
    members = {"golden/0": png, "golden/0.json": right, "model.onnx": bundles.onnx_model((1, 1, 2, 3))}
    pack(path, manifest, bundles.files(**members))


def make_film(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.time_base = 64, 48, "yuv420p", Fraction(1, 25)
        for _ in range(25):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode())


def test_pictures_of_all_kinds_reach_models_and_people(tmp_path: Path) -> None:
    make_bundle(tmp_path / "means.octo")
    make_film(tmp_path / "film.mp4")
    jpeg = cv2.imencode(".jpg", np.full((120, 160, 3), 100, np.uint8))[1].tobytes()
    files = {"main.py": program(), "picture.jpg": jpeg}

    def all_there(status: GatewayStatus) -> bool:
        film, usb, press = status.sources
        return (
            film.frames > 5
            and usb.state is SourceState.LOST
            and press.state is SourceState.OK
            and status.pipelines[0].inferences > 3
            and any(event.name == "pipeline.failing" for event in status.events)
        )

    async def story() -> None:
        async with MicroPythonNode(FIRMWARE, tmp_path / "node", tmp_path / "tty", files=files):
            async with daemon(tmp_path, CONFIG) as gateway:
                status = await gateway.until(all_there, "every camera is as it should be")
                newest = status.pipelines[0].newest
                assert newest is not None
                assert abs(newest.result.values["sum"] - 600) < 12
                assert "octogate cameras" in status.sources[1].detail
                async with Client.connect(tmp_path / "data" / "control.sock") as client:
                    for name in ("film", "press/top"):
                        answer = await client.ask("picture", dict[str, Any], source=name)
                        assert base64.b64decode(answer["data"])[:2] == b"\xff\xd8"
                [mistaken] = [event for event in status.events if event.name == "pipeline.failing"]
                assert "'press/count' gives readings" in mistaken.message
                assert await gateway.end() == 0

    asyncio.run(story())
