"""Stages: what is run again and what is not, and that nothing half made is taken for a result."""

from pathlib import Path

import pytest
from rich.console import Console

from firmware_tools import board as boards
from firmware_tools import image
from firmware_tools.imaging import host, recipe, signing
from firmware_tools.imaging.host import BuildError
from firmware_tools.imaging.stages import Runner, Stage, cache_folder, digest, digest_files


class Made:
    """A stage that counts how often it is run."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, target: Path) -> None:
        self.count += 1
        target.write_text(str(self.count))


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    return Runner(tmp_path / "cache", Console(quiet=True))


def test_the_same_key_is_made_once(runner: Runner) -> None:
    made = Made()
    for _ in range(3):
        path = runner.run(Stage("base", "", "k1", made))
    assert made.count == 1 and path.read_text() == "1"
    runner.run(Stage("base", "", "k2", made))
    assert made.count == 2


def test_a_result_in_the_output_folder_is_made_again_when_its_key_changes(runner: Runner, tmp_path: Path) -> None:
    made, target = Made(), tmp_path / "out/x.img"
    for key in ("k1", "k1", "k2"):
        assert runner.run(Stage("disk", "", key, made, target)) == target
    assert made.count == 2 and target.read_text() == "2"


def test_what_failed_half_way_is_no_result(runner: Runner) -> None:
    def fails(target: Path) -> None:
        target.write_text("half")
        raise BuildError("the disk is full")

    with pytest.raises(BuildError, match="full"):
        runner.run(Stage("base", "", "k", fails))
    assert not runner.fresh(Stage("base", "", "k", fails))
    made = Made()
    assert runner.run(Stage("base", "", "k", made)).read_text() == "1"


def test_a_stage_that_shall_be_fresh_is_made_again(tmp_path: Path) -> None:
    made = Made()
    Runner(tmp_path, Console(quiet=True)).run(Stage("debian", "", "k", made))
    Runner(tmp_path, Console(quiet=True), frozenset({"debian"})).run(Stage("debian", "", "k", made))
    assert made.count == 2


def test_the_cache_keeps_the_newest_results(runner: Runner, tmp_path: Path) -> None:
    for number in range(6):
        runner.run(Stage("base", "", f"k{number}", Made()))
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_keys_follow_contents(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    first = digest_files([tmp_path / "a"], tmp_path)
    (tmp_path / "a").chmod(0o755)
    second = digest_files([tmp_path / "a"], tmp_path)
    (tmp_path / "a").write_text("2")
    assert len({first, second, digest_files([tmp_path / "a"], tmp_path)}) == 3
    assert digest("a", ["b"]) != digest("a", "b") and digest({"x": 1, "y": 2}) == digest({"y": 2, "x": 1})


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OCTOGATE_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("OCTOGATE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "octogate/image"


def test_only_the_last_stages_depend_on_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000")
    first = image.plan("qemu", "trixie", tmp_path)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "2000")
    second = image.plan("qemu", "trixie", tmp_path)
    changed = [a.name for a, b in zip(first.stages(), second.stages(), strict=True) if a.key != b.key]
    assert changed == ["root", "disk", "packed", "bmap", "bundle", "sbom", "manifest"]
    other = image.plan("qemu", "bookworm", tmp_path)
    assert all(a.key != b.key for a, b in zip(second.stages(), other.stages(), strict=True))


def test_dry_run_lists_the_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("OCTOGATE_CACHE", str(tmp_path / "cache"))
    assert image.main(["--board", "rpi4", "--dry-run", "--output", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines][:4] == ["debian", "kernel", "wheels", "compiler"]
    assert all("to do" in line for line in lines)
    assert not list(tmp_path.iterdir())  # no keys either
    assert image.main(["--board", "toaster", "--dry-run"]) == 1
    assert "there are: qemu" in capsys.readouterr().err


def test_a_time_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(BuildError, match="yesterday"):
        image.source_date_epoch()


def test_missing_programs_are_named_with_their_package() -> None:
    assert host.missing({"sh": "dash", "no-such-program": "nothing", "/no/such/file": "files"}) == ["files", "nothing"]
    with pytest.raises(BuildError, match="no-such-program"):
        host.run("no-such-program")
    with pytest.raises(BuildError, match="exit code 3: why"):
        host.run("sh", "-c", "echo why >&2; exit 3")


def test_the_version_tells_two_images_apart(tmp_path: Path) -> None:
    keys = [signing.update_keys(tmp_path / name) for name in "ab"]
    board = boards.load("qemu")
    versions = [recipe.Recipe(recipe.Choice(board, "trixie", 7, tmp_path, key), tmp_path).version for key in keys]
    assert versions[0] != versions[1]  # they trust different keys
