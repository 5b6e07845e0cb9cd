"""The configs of docs/sources.md and the commented tables of the example are what the gateway takes."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from functools import partial
from pathlib import Path

import pytest

from gateway.acquire.modbus_map import load_map
from gateway.config import load
from gateway.errors import ConfigError
from tests.unit.configs import assert_refused

ROOT = Path(__file__).parents[2]
HEAD = '[gateway]\nid = "g"\ndata_dir = "data"\n'
BLOCKS = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "sources.md").read_text(), re.DOTALL)
TABLES = [block for block in BLOCKS if block.startswith("[[source]]") and '"dice"' not in block]
MAPS = [block for block in BLOCKS if block.startswith("title =")]


def commented(text: str) -> list[str]:
    """The source tables of the example that are comments, without the signs."""
    found = re.findall(r"^#\[\[source\]\]\n(?:#.*\n)+", text, re.MULTILINE)
    return [re.sub(r"^#", "", block, flags=re.MULTILINE) for block in found]


def write(folder: Path, text: str) -> Path:
    path = folder / "gateway.toml"
    path.write_text(HEAD + text)
    return path


def kinds(text: str) -> set[str]:
    return set(re.findall(r'^kind = "(\w+)"', text, re.MULTILINE))


@pytest.mark.parametrize("table", TABLES, ids=lambda text: text.split("name = ")[1].split()[0])
def test_tables_of_the_docs_load(tmp_path: Path, table: str) -> None:
    assert len(load(write(tmp_path, table)).source) == table.count("[[source]]")


@pytest.mark.parametrize("text", MAPS)
def test_maps_of_the_docs_load(tmp_path: Path, text: str) -> None:
    (tmp_path / "press.toml").write_text(text)
    assert load_map("press.toml", tmp_path / "press.toml").schema.channels


def test_commented_tables_of_the_example_load(tmp_path: Path) -> None:
    tables = commented((ROOT / "gateway" / "example.toml").read_text())
    assert kinds("\n".join(tables)) >= {"modbus", "text"}
    for table in tables:
        assert len(load(write(tmp_path, table)).source) == 1


def test_the_docs_show_every_key(tmp_path: Path) -> None:
    """Each key of a table is in the example, each of a map's channel in the docs."""
    from gateway.acquire.modbus_map import ChannelTable, MapTable
    from gateway.source_tables import ModbusDevice, ModbusSource, TextLine, TextSource

    shown = "\n".join(commented((ROOT / "gateway" / "example.toml").read_text()))
    for struct in (ModbusSource, ModbusDevice, TextSource, TextLine):
        assert {f for f in struct.__struct_fields__ if not re.search(rf"^(\[\[source\.)?{f}\b", shown, re.M)} == set()
    keys = {key for text in MAPS for channel in tomllib.loads(text)["channel"] for key in channel}
    assert set(ChannelTable.__struct_fields__) - keys == {"offset"}  # in a comment
    assert set(MapTable.__struct_fields__) == {key for text in MAPS for key in tomllib.loads(text)}


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("unit = 17", "unit = 1", r"source\[0\]: device\.unit: 1 is there 2 times"),
        ('name = "fan"', 'name = "main"', r"source\[0\]: device\.name: 'main' is there 2 times"),
        ("unit = 17", "unit = 248", r"source\[0\]\.device\[1\]\.unit: Expected `int` <= 247"),
        ('"sdm630"', '"sdm63"', r"source\[0\]: there is no map 'sdm63' \(ours are"),
        ('"sdm630"', '"own.toml"', r"source\[0\]: map .*own\.toml: cannot read it"),
        ("0403:6001", "403:6001", r"source\[0\]: 'usb:403:6001:A50285BI' is no USB identity"),
        ("period_s = 0.5", "perod_s = 0.5", r"perod_s: unknown key \(did you mean 'period_s'"),
    ],
)
def test_a_wrong_bus_is_named(tmp_path: Path, old: str, new: str, says: str) -> None:
    [bus] = [table for table in TABLES if '"modbus"' in table]
    assert_refused(bus, old, new, says, partial(write, tmp_path))


def test_without_a_bus_and_a_model_nothing_of_them_is_imported() -> None:
    code = "import sys, gateway.app, gateway.sources; print(' '.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "gateway.sources" in loaded.split()
    heavy = (
        "pymodbus",
        "serial",
        "gateway.acquire.modbus",
        "gateway.acquire.text",
        "gateway.plugins",
        "importlib.metadata",
        "gateway.inference",
        "gateway.infer.engine",
        "gateway.infer.manifest",
    )
    assert [name for name in loaded.split() if name.startswith(heavy)] == []


def test_without_pymodbus_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gateway.clock import Clock
    from gateway.sources import make_source

    [bus] = [table for table in TABLES if '"modbus"' in table]
    config = load(write(tmp_path, bus))
    for name in [name for name in sys.modules if name.startswith(("pymodbus", "gateway.acquire.modbus"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pymodbus", None)
    with pytest.raises(ConfigError, match=r"source 'hall-2': cannot import pymodbus: .*octogate\[modbus\]"):
        make_source(config.source[0], config, None, Clock())
