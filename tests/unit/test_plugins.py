"""Sources of other packages: found by entry point, checked by their own struct, named when they fail."""

from __future__ import annotations

import asyncio
import re
from array import array
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway import plugins
from gateway.__main__ import main
from gateway.clock import Clock
from gateway.config import load
from gateway.contract import SourceState
from gateway.errors import ConfigError
from gateway.plan import plan
from gateway.source_tables import PluginSource
from gateway.sources import make_source
from tests.unit.sinks import Collector

DOC = Path(__file__).parents[2] / "docs" / "sources.md"
[DICE] = re.findall(r"```python\n(.*?)```", DOC.read_text(), re.DOTALL)
[TABLE] = re.findall(r'```toml\n(\[\[source\]\]\nkind = "dice".*?)```', DOC.read_text(), re.DOTALL)
HEAD = '[gateway]\nid = "g"\ndata_dir = "data"\n'
Package = Callable[..., None]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    """Installs a package of one module into a folder of its own."""

    def install(name: str, code: str, *, module: str | None = None, target: str | None = None) -> None:
        folder = tmp_path / "site" / name
        info = folder / f"{name}-1.2.dist-info"
        info.mkdir(parents=True)
        module = module or f"{name}_{abs(hash(tmp_path))}".replace("-", "_")
        (folder / f"{module}.py").write_text(code)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[octogate.sources]\ndice = {target or module + ':Dice'}\n")
        monkeypatch.syspath_prepend(str(folder))

    return install


def write(folder: Path, text: str) -> Path:
    path = folder / "gateway.toml"
    path.write_text(HEAD + text)
    return path


def test_the_package_of_the_docs_runs(tmp_path: Path, package: Package) -> None:
    package("octogate-dice", DICE)
    config = load(write(tmp_path, TABLE))
    [table] = config.source
    assert table == PluginSource(name="table-1", of="dice", settings={"period_s": 0.1})

    async def story() -> None:
        sink = Collector()
        source = make_source(table, config, None, Clock())
        async with sink.running(source):
            await sink.has(3)
            assert source.status().state is SourceState.OK
        sample = sink.samples_of("table-1/throw")[0]
        assert set(sample.newest()) == {"pips"} and sample.counts == array("H", [1])

    asyncio.run(story())


def test_check_and_plan_name_the_kind(tmp_path: Path, package: Package, capsys: pytest.CaptureFixture[str]) -> None:
    package("octogate-dice", DICE)
    path = write(tmp_path, TABLE)
    assert main(["check", "--config", str(path)]) == 0
    assert "table-1: dice" in capsys.readouterr().out
    (tmp_path / "old").mkdir()
    told = plan(load(write(tmp_path / "old", "")), load(path))
    assert [(c.what, c.name, c.detail) for c in told.changes if c.table == "source"] == [("added", "table-1", "dice")]
    assert told.appear == ("dice (table-1)",)


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (TABLE + "sides = 20\n", r"source\[0\]: kind 'dice': package octogate-dice 1\.2: .*unknown field `sides`"),
        (
            TABLE.replace("0.1", '"fast"'),
            r"package octogate-dice 1\.2: Expected `float`, got `str` - at `\$\.period_s`",
        ),
        (TABLE.replace('name = "table-1"', ""), r"source\[0\]\.name: missing"),
        (TABLE.replace("dice", "dicee"), r"'dicee' is not a known kind"),
        ('[[source]]\nkind = "plugin"\nname = "x"\nof = "dice"\nsettings = {}\n', r"'plugin' is not a known kind"),
        ("source = [1]\n", r"source\[0\]: Expected `object`, got `int`"),
    ],
)
def test_wrong_tables_are_named(tmp_path: Path, package: Package, table: str, says: str) -> None:
    package("octogate-dice", DICE)
    path = write(tmp_path, table)
    if table.startswith("source ="):
        path.write_text(table + HEAD)
    with pytest.raises(ConfigError, match=says):
        load(path)


@pytest.mark.parametrize(
    ("code", "target", "says"),
    [
        ("import nothing_of_that_name", None, r"package octogate-dice 1\.2: cannot load .*nothing_of_that_name"),
        (DICE, "MODULE:Cards", r"package octogate-dice 1\.2: cannot load .*Cards"),
        (DICE, "MODULE:Settings", r"package octogate-dice 1\.2: .* is no source kind: needs settings and make"),
        (DICE, "MODULE:SCHEMA", r"is no source kind"),
    ],
)
def test_a_broken_package_is_named(tmp_path: Path, package: Package, code: str, target: str | None, says: str) -> None:
    module = f"dice_{abs(hash(tmp_path))}"
    package("octogate-dice", code, module=module, target=target and target.replace("MODULE", module))
    with pytest.raises(ConfigError, match=says):
        load(write(tmp_path, TABLE))


def test_two_packages_with_one_kind_are_refused(tmp_path: Path, package: Package) -> None:
    package("octogate-dice", DICE)
    package("other-dice", DICE)
    with pytest.raises(ConfigError, match=r"offered by octogate-dice 1\.2 and other-dice 1\.2 \(uninstall"):
        load(write(tmp_path, TABLE))


def test_what_is_made_must_be_a_source(tmp_path: Path, package: Package) -> None:
    package("octogate-dice", DICE.replace("async def run", "async def go"))
    config = load(write(tmp_path, TABLE))
    with pytest.raises(ConfigError, match=r"package octogate-dice 1\.2 made no source: no run"):
        make_source(config.source[0], config, None, Clock())


def test_nothing_is_looked_up_for_our_own_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("looked for packages")

    monkeypatch.setattr(plugins, "wrap", refuse)
    load(write(tmp_path, '[[source]]\nkind = "node"\nname = "n"\nport = "/dev/null"\n'))
    with pytest.raises(AssertionError, match="looked"):
        load(write(tmp_path, TABLE))
