"""`octogate cameras`, with a simulation of the kernel and a /dev made of empty files and links."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from gateway import cameras
from gateway.__main__ import main
from gateway.acquire import v4l2
from gateway.errors import SourceError
from tests.unit.simulated_camera import JPEG, USUAL, SimulatedCamera


class Twins(SimulatedCamera):
    """Two nodes as UVC cameras have them: the second one gives metadata and no pictures."""

    def open(self, path: str) -> int:
        self.caps = v4l2.CAP_STREAMING if path.endswith("video1") else v4l2.CAP_CAPTURE | v4l2.CAP_STREAMING
        return super().open(path)


class Snapping(SimulatedCamera):
    """Fills a buffer as soon as it gets one."""

    picture = JPEG

    def ioctl(self, fd: int, request: int, argument: bytearray) -> None:
        super().ioctl(fd, request, argument)
        if self.streaming and request in (v4l2.STREAMON, v4l2.QBUF):
            self.deliver(self.picture)


@pytest.fixture
def dev(tmp_path: Path) -> Path:
    for folder in ("v4l/by-id", "v4l/by-path"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "usb-Sim-video-index0").symlink_to("../../video0")
    for node in ("video0", "video1", "video10"):
        (tmp_path / node).touch()
    return tmp_path


def arguments(**changes: Any) -> argparse.Namespace:
    return argparse.Namespace(**{"json": False, "device": "", "picture": None, "size": "640x480", **changes})


def test_cameras_are_listed_under_the_names_that_last(dev: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kernel = Twins()
    assert cameras.run(arguments(json=True), kernel, dev) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert first["device"] == f"{dev}/v4l/by-id/usb-Sim-video-index0"
    assert first["names"] == [first["device"], f"{dev}/v4l/by-path/usb-Sim-video-index0", f"{dev}/video0"]
    assert second["names"] == [f"{dev}/video10"]
    assert (first["card"], first["driver"], first["bus"]) == ("Simulated: Camera", "uvcvideo", "usb-sim-1")
    mjpg, yuyv = first["formats"]
    assert mjpg == {
        "name": "MJPG",
        "sizes": [
            {"width": 640, "height": 480, "fps": [30.0, 15.0, 5.0]},
            {"width": 1280, "height": 720, "fps": [30.0]},
        ],
    }
    assert yuyv["name"] == "YUYV"
    assert [control["name"] for control in first["controls"]] == ["gain", "auto_exposure", "exposure_time_absolute"]
    assert kernel.held == 0
    assert cameras.run(arguments(), kernel, dev) == 0
    shown = capsys.readouterr().out
    for part in ("640x480 at 30 15 5, 1280x720 at 30", "gain = 0 to 100, 50 at first, now 50", "  also  "):
        assert part in shown


def test_no_camera_is_said_with_the_next_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cameras.run(arguments(), SimulatedCamera(), tmp_path) == 1
    assert "is one plugged in?" in capsys.readouterr().out


@pytest.mark.parametrize("code", [v4l2.MJPG, v4l2.YUYV])
def test_a_test_picture_is_taken_once_the_camera_has_settled(
    dev: Path, capsys: pytest.CaptureFixture[str], code: int
) -> None:
    size, file = (320, 240), dev / "test.jpg"
    kernel = Snapping({code: {size: (30.0,)}}, picture_bytes=320 * 240 * 2)
    kernel.picture = JPEG if code == v4l2.MJPG else bytes((126, 128)) * 320 * 240
    assert cameras.run(arguments(picture=file, size="320x240"), kernel, dev) == 0
    assert kernel.chosen[1:] == size and kernel.held == 0
    assert f"{file}: {file.stat().st_size} bytes from {dev}/v4l/by-id" in capsys.readouterr().out
    if code == v4l2.YUYV:
        picture = cv2.imdecode(np.frombuffer(file.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
        assert picture is not None and picture.shape == (240, 320, 3)
    else:
        assert file.read_bytes() == JPEG


def test_a_camera_that_gives_nothing_and_a_size_that_is_none(dev: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cameras, "PICTURE_S", 0.05)
    kernel = SimulatedCamera(USUAL)
    with pytest.raises(SourceError, match=r"no whole picture in 0\.05 s"):
        cameras.run(arguments(picture=dev / "x.jpg"), kernel, dev)
    assert kernel.held == 0
    with pytest.raises(SourceError, match="--size large: not a size"):
        cameras.run(arguments(picture=dev / "x.jpg", size="large"), kernel, dev)


def test_a_device_by_name_that_is_no_camera(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cameras", "--device", "/dev/null"]) == 1
    assert "/dev/null cannot say what it is" in capsys.readouterr().err
