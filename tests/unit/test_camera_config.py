"""Tables of cameras in a config: what is wrong is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.config import load
from gateway.errors import ConfigError
from gateway.source_tables import CameraSource, VideoSource

HEAD = '[gateway]\nid = "line-1"\ndata_dir = "data"\n[[source]]\nname = "cam"\n'
CAMERA = HEAD + 'kind = "camera"\ndevice = "/dev/v4l/by-id/usb-x"\n'
VIDEO = HEAD + 'kind = "video"\nurl = "rtsp://cam/1"\n'


def test_good_ones(tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text(CAMERA + "controls = { exposure = 120, white_balance_temperature = 4600 }\n")
    [camera] = load(path).source
    assert isinstance(camera, CameraSource) and camera.controls["exposure"] == 120
    path.write_text(VIDEO)  # a network address is no file: it need not be there
    [video] = load(path).source
    assert isinstance(video, VideoSource) and video.transport == "tcp"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (CAMERA + "controls = { exposure = true }\n", "controls"),
        (CAMERA + 'format = "h264"\n', "format"),
        (CAMERA + "memory_mib = 0\n", "memory_mib"),
        (CAMERA + "silent_s = 0\n", "silent_s"),
        (VIDEO.replace("rtsp://cam/1", "film.mp4"), "source[0].url: no file"),
        (VIDEO + 'password_file = "secret"\n', "source[0].password_file: no file"),
        (VIDEO + 'transport = "pigeon"\n', "transport"),
        (VIDEO + "picture_kib = 1\n", "picture_kib"),
    ],
)
def test_bad_ones_are_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert words in str(caught.value)
