"""Names of the edge node and its devices, as the config allows them; and which parts of it the live plane is made of."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.config import Config, load
from gateway.errors import ConfigError
from gateway.sync.uplink import live_setup

TEXT = """
[gateway]
id = "line-1"
data_dir = "."
[[source]]
kind = "node"
name = "press"
port = "tty"
[[source]]
kind = "node"
name = "saw"
port = "tty2"
[[rule]]
kind = "threshold"
name = "too-hot"
stream = "press/power"
channel = "half"
above = 4
[uplink]
host = "fe80::1"
[uplink.live]
group = "Werk Süd"
"""


def loaded(folder: Path, old: str = "", new: str = "") -> Config:
    path = folder / "gateway.toml"
    assert old in TEXT
    path.write_text(TEXT.replace(old, new) if old else TEXT)
    return load(path)


@pytest.mark.tck(
    "tck-id-intro-device-id-chars",
    "tck-id-intro-edge-node-id-chars",
    "tck-id-intro-group-id-chars",
    "tck-id-topic-structure-namespace-unique-device-id",
    "tck-id-topic-structure-namespace-valid-device-id",
    "tck-id-topic-structure-namespace-valid-edge-node-id",
    "tck-id-topic-structure-namespace-valid-group-id",
)
@pytest.mark.parametrize(
    ("old", "new"),
    [
        *[('"Werk Süd"', f'"{bad}"') for bad in ("a/b", "a+", "#", "", "a\\u0000b", "a\\n", "x" * 65)],
        *[('"line-1"', f'"{bad}"') for bad in ("a/b", "a+", "#", "", "a\\u0000b", "x" * 49)],
        *[('name = "saw"', f'name = "{bad}"') for bad in ("a/b", "a+", "#", "", "a\\u0000b", "press")],
        ('group = "Werk Süd"', 'primary_host = "a/b"'),
        ('group = "Werk Süd"', 'primary_host = "+"'),
    ],
)
def test_names_that_are_no_level_of_a_topic_are_refused(tmp_path: Path, old: str, new: str) -> None:
    with pytest.raises(ConfigError):
        loaded(tmp_path, old, new)
    loaded(tmp_path)  # without the change it is fine


@pytest.mark.tck("tck-id-case-sensitivity-sparkplug-ids")
@pytest.mark.parametrize(("old", "new"), [('"line-1"', '"Line-1"'), ('name = "saw"', 'name = "Press"')])
def test_ids_of_nodes_and_devices_are_lower_case(tmp_path: Path, old: str, new: str) -> None:
    with pytest.raises(ConfigError):
        loaded(tmp_path, old, new)


def test_the_edge_node_is_what_the_config_says(tmp_path: Path) -> None:
    config = loaded(tmp_path, 'group = "Werk Süd"', 'primary_host = "SCADA 1"\nflush_historical = true')
    (uplink,) = config.uplink
    assert uplink.live is not None
    setup = live_setup(config, uplink, uplink.live)
    assert (setup.group, setup.node, setup.primary_host) == ("octogate", "line-1", "SCADA 1")
    assert (setup.devices, setup.alarms) == ({"press": (), "saw": ()}, ("too-hot",))
    assert setup.flush_historical and setup.interval_s == 1.0
    assert setup.bdseq_file == config.data_dir / "bdseq-fe80__1-1883"
