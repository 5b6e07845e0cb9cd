"""A wrong config is named: file, key, what is wrong, what to do."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from gateway.config import load
from gateway.errors import ConfigError
from tests.unit.configs import PRESS_AND_DOCK, assert_refused

GOOD = f"""{PRESS_AND_DOCK}[[model]]
name = "state"
bundle = "state.octo"

[[pipeline]]
name = "press-state"
source = "press"
stream = "power"
model = "state"

[[rule]]
kind = "class"
name = "running"
pipeline = "press-state"
labels = ["running"]
"""


def write(folder: Path, text: str) -> Path:
    (folder / "state.octo").touch()
    path = folder / "gateway.toml"
    path.write_text(text)
    return path


def test_a_good_config(tmp_path: Path) -> None:
    config = load(write(tmp_path, GOOD))
    assert config.gateway.id == "line-1"
    assert config.data_dir == tmp_path / "data"  # relative to the file, not to where the command was typed
    assert config.store.commit_ms == 20
    with pytest.raises(AttributeError):
        config.gateway.id = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("port =", "prt =", r"source\[0\]\.prt: unknown key \(did you mean 'port'\?\)"),
        ('id = "line-1"', 'id = "Line 1"', r"gateway\.id: not a valid name"),
        ('data_dir = "data"', "", r"gateway\.data_dir: missing"),
        ('id = "line-1"', "id = 5", r"gateway\.id: Expected `str`, got `int`"),
        ('kind = "node"', 'kind = "nod"', r"source\[0\]\.?\w*: 'nod' is not a known kind"),
        (
            'source = "press"',
            'source = "pres"',
            r"pipeline\[0\]\.source: there is no 'pres' \(did you mean 'press'\?\)",
        ),
        ('stream = "power"', "", r"pipeline\[0\]\.stream: 'press' needs stream"),
        (
            'pipeline = "press-state"',
            'pipeline = "x"',
            r"rule\[0\]\.pipeline: there is no 'x' \(declared are: press-st",
        ),
        ('name = "dock"', 'name = "press"', r"source\[1\]\.name: 'press' is there twice"),
        ('bundle = "state.octo"', 'bundle = "gone.octo"', r"model\[0\]\.bundle: no file .*gone\.octo"),
        ('folder = "."', 'folder = "gone"', r"source\[1\]\.folder: no folder .*gone"),
        ("[[model]]", "[[model]", r"not valid TOML: .*line"),
        ('data_dir = "data"', f'data_dir = "{"x" * 120}"', r"gateway\.data_dir: too long"),
        ("labels =", 'severity = "loud"\nlabels =', r"rule\[0\]\.severity: 'loud' \(info, warning or alarm\)"),
        ('stream = "power"', 'stream = "power"\nwindow = 10\nhop = 11', r"pipeline\[0\]\.hop: longer than its window"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert_refused(GOOD, old, new, says, partial(write, tmp_path))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('providers = ["CUDA Execution"]', r"inference\.providers\[0\]: 'CUDA Execution' is not an execution provider"),
        ('delegates = ["libedgetpu.so.1", "lib/x.so"]', r"inference\.delegates\[1\]: 'lib/x\.so' is not a delegate's"),
        ('openvino_devices = ["NPU,CPU"]', r"inference\.openvino_devices\[0\]: 'NPU,CPU' is not a device"),
        ('delegates = [""]', r"inference\.delegates\[0\]: Expected `str` of length >= 1"),
    ],
)
def test_a_wrong_device_is_named(tmp_path: Path, line: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load(write(tmp_path, f"{GOOD}\n[inference]\n{line}\n"))


def test_devices_by_backend(tmp_path: Path) -> None:
    words = (
        'providers = ["CUDAExecutionProvider"]\ndelegates = ["libedgetpu.so.1"]\nopenvino_devices = ["HETERO:NPU,CPU"]'
    )
    table = load(write(tmp_path, f"{GOOD}\n[inference]\n{words}\n")).inference
    assert [table.devices(name) for name in ("onnx", "litert", "openvino")] == [
        ("CUDAExecutionProvider",),
        ("libedgetpu.so.1",),
        ("HETERO:NPU,CPU",),
    ]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read it: No such file"):
        load(tmp_path / "none.toml")


@pytest.mark.parametrize("content", [b"\xff\xfe", b"\0" * 10, b"x" * (2 << 20)])
def test_a_file_that_is_no_text(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "gateway.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError):
        load(path)


def test_one_uplink_or_several(tmp_path: Path) -> None:
    assert load(write(tmp_path, GOOD)).uplink == ()
    (one,) = load(write(tmp_path, GOOD + '[uplink]\nhost = "a"\n')).uplink
    assert (one.name, one.prefix, one.protocol) == ("main", "octo/v1", "3.1.1")
    several = (
        '[[uplink]]\nhost = "a"\n[[uplink]]\nname = "cloud"\nhost = "b"\nprotocol = "5"\nprefix = "acme/plant-7"\n'
    )
    assert [(u.name, u.prefix) for u in load(write(tmp_path, GOOD + several)).uplink] == [
        ("main", "octo/v1"),
        ("cloud", "acme/plant-7"),
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[uplink]\nhost = "a"\nport = 0\n', "uplink.port: "),
        ('[[uplink]]\nhost = "a"\nport = 0\n', "uplink[0].port: "),
        ('[[uplink]]\nhost = "a"\n[[uplink]]\nhost = "b"\n', "uplink[1].name: 'main' is there twice"),
        ('[uplink]\nhost = "a"\nprefix = "a/+/b"\n', "uplink.prefix: "),
        ('[uplink]\nhost = "a"\nprefix = "$share/x"\n', "uplink.prefix: "),
        ('[uplink]\nhost = "a"\nprefix = "a//b"\n', "uplink.prefix: "),
        ('[uplink]\nhost = "a"\nprotocol = "4"\n', "uplink.protocol: "),
        ('[uplink]\nhost = "a"\npictures = "all"\n', "uplink.pictures: "),
        ('[uplink]\nhost = "a"\ncert_file = "state.octo"\nkey_file = "state.octo"\n', "uplink.ca_file: missing"),
    ],
)
def test_a_wrong_uplink_is_named(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(write(tmp_path, GOOD + text))
    assert says in str(error.value)
