"""How checks are run and reported: what fails does not stop the rest, what cannot be done is not run and says why."""

import asyncio
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console as Screen

from firmware_tools import image_test
from firmware_tools.image_checks import report
from firmware_tools.image_checks.bench import Bench, FailedError
from firmware_tools.image_checks.run import CHECKS, LONG_CHECKS, Outcome, Word, named, run, title
from firmware_tools.image_checks.target import CannotError
from gateway.errors import OctogateError


class Scene:
    """A target that counts how often it was brought back."""

    def __init__(self, log: Path, comes_back: bool = True) -> None:
        self.console_log, self.comes_back, self.recovered = log, comes_back, 0

    async def recover(self) -> None:
        self.recovered += 1
        if not self.comes_back:
            raise TimeoutError


async def works(bench: Bench) -> str:
    """It works"""
    path = bench.target.console_log
    assert path is not None
    path.write_bytes(path.read_bytes() + b"new")
    return "fine"


async def fails(bench: Bench) -> str:
    """It fails"""
    raise FailedError("3 readings are missing")


async def cannot(bench: Bench) -> str:
    """It cannot be done"""
    raise CannotError("no plug to pull")


async def confused(bench: Bench) -> str:
    """It gets an answer of another form"""
    raise KeyError("streams")


def outcomes_of(scene: Scene, *checks: Any) -> list[Outcome]:
    async def collect() -> list[Outcome]:
        return [one async for one in run(cast(Bench, SimpleNamespace(target=scene, recover=scene.recover)), checks)]

    return asyncio.run(collect())


def test_a_failure_is_recovered_from_and_the_rest_runs(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"old")
    scene = Scene(tmp_path / "log")
    found = outcomes_of(scene, fails, cannot, confused, works)
    assert [one.word for one in found] == [Word.FAILED, Word.NOT_RUN, Word.FAILED, Word.PASSED]
    assert [one.detail for one in found] == ["3 readings are missing", "no plug to pull", "KeyError('streams')", "fine"]
    assert (found[3].what, found[3].console, found[0].console) == ("It works", "new", "")
    assert scene.recovered == 2


def test_somebody_is_told_what_begins(tmp_path: Path) -> None:
    (tmp_path / "log").touch()
    told: list[str] = []

    async def collect() -> None:
        scene = Scene(tmp_path / "log")
        bench = cast(Bench, SimpleNamespace(target=scene, recover=scene.recover))
        async for one in run(bench, [works, cannot], told.append):
            assert told[-1] == one.name

    asyncio.run(collect())
    assert told == ["works", "cannot"]


def test_what_does_not_come_back_is_not_asked_further(tmp_path: Path) -> None:
    found = outcomes_of(Scene(tmp_path / "log", comes_back=False), fails, works)
    assert [one.word for one in found] == [Word.FAILED, Word.NOT_RUN]
    assert "did not come back after fails" in found[1].detail


def test_checks_have_names_and_titles() -> None:
    assert all(title(check) and "\n" not in title(check) for check in LONG_CHECKS)
    names = [check.__name__ for check in LONG_CHECKS]
    assert len(set(names)) == len(names)
    assert named([], CHECKS) == list(CHECKS)
    assert [check.__name__ for check in named(["survives-cuts", "boots"], CHECKS)] == ["boots", "survives_cuts"]
    with pytest.raises(OctogateError, match=r"no check flies \(there are: boots, "):
        named(["flies"], CHECKS)


@settings(deadline=None)
@given(st.text(max_size=60), st.text(max_size=60), st.sampled_from(Word))
def test_reports_hold_whatever_a_console_says(detail: str, said: str, word: Word) -> None:
    outcomes = [Outcome("boots", "It boots <fast>", word, detail, 61.0, said)]
    suite = ElementTree.fromstring(report.junit("qemu", outcomes))
    assert (suite.get("tests"), suite.get("failures")) == ("1", str(int(word is Word.FAILED)))
    assert (suite.findtext("testcase/system-out") or "") == report.plain(said)
    page = report.page("qemu", outcomes, {"a": detail})
    assert "It boots &lt;fast&gt;" in page
    assert "<script" not in page
    Screen(width=100, quiet=True).print(report.table(outcomes))


def test_what_a_terminal_obeys_is_left_out() -> None:
    assert report.plain("\x1b[0;32m  OK  \x1b[0m done\r\nnext\x07") == "  OK   done\nnext"
    assert report.summary([Outcome("a", "", Word.PASSED, "", 90.0)]) == "1 passed in 1.5 min"


def test_an_image_becomes_a_sparse_drive(tmp_path: Path) -> None:
    import zstandard

    content = bytes(200_000) + random.Random(1).randbytes(70_000) + bytes(1 << 20)
    (tmp_path / "a.img.zst").write_bytes(zstandard.compress(content))
    image_test.make_drive(tmp_path / "a.img.zst", tmp_path / "drive", 4 << 20)
    assert (tmp_path / "drive").read_bytes() == content + bytes((4 << 20) - len(content))
    assert (tmp_path / "drive").stat().st_blocks * 512 < 1 << 20
    (tmp_path / "b.img.zst").write_bytes(b"no zstd")
    with pytest.raises(OctogateError, match=r"b\.img\.zst cannot be unpacked"):
        image_test.make_drive(tmp_path / "b.img.zst", tmp_path / "drive")


def test_what_is_missing_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert image_test.main(["run", "--board", "rpi4"]) == image_test.MISUSED
    assert "there is no emulator of rpi4 (--board qemu; a real board: --host ADDRESS)" in capsys.readouterr().err
    assert image_test.main(["list"]) == image_test.OK
    assert "survives-cuts" in capsys.readouterr().out
