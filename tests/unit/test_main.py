"""The command line: help worth reading, one clear line for each fault, exit statuses that mean something."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gateway import __version__
from gateway.__main__ import main
from gateway.report import status_text
from tests.unit.status_samples import status

GOOD = '[gateway]\nid = "line-1"\ndata_dir = "data"\n'


def test_check_of_a_good_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text(GOOD + '[[source]]\nkind = "node"\nname = "press"\nport = "/dev/null"\n')
    assert main(["check", "--config", str(path)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{path}: fine\n") and "press: node" in out
    assert main(["check", "--config", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"ok": True, "gateway": "line-1"}


def test_check_of_a_bad_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text(GOOD + "colour = 1\n")
    assert main(["check", "--config", str(path)]) == 2
    captured = capsys.readouterr()
    assert captured.err == f"octogate: {path}: gateway.colour: unknown key (delete the line)\n"
    assert main(["check", "--config", str(path), "--json"]) == 2
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] is False and "colour" in answer["error"]


def test_unsafe_settings_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text(GOOD + "[trust]\nallow_unsigned = true\n")
    assert main(["check", "--config", str(path)]) == 0
    assert "WARNING   trust.allow_unsigned" in capsys.readouterr().out


def test_status_without_a_daemon(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text(GOOD)
    assert main(["status", "--config", str(path)]) == 1
    assert "no gateway answers" in capsys.readouterr().err


def test_run_waits_for_no_module_of_other_commands() -> None:
    code = "import sys; from gateway.__main__ import main\ntry: main(['run', '-h'])\nfinally: print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "gateway.config" in loaded
    assert [name for name in loaded if name.startswith("gateway.infer.") or name.endswith("commands")] == [
        "gateway.infer.device"  # a word of the config
    ]


@pytest.mark.parametrize("argv", [[], ["dance"], ["run", "--nope"]])
def test_misuse(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2


@pytest.mark.parametrize(
    "argv",
    [
        ["--help"],
        ["run", "--help"],
        ["check", "--help"],
        ["plan", "--help"],
        ["status", "--help"],
        ["cameras", "--help"],
    ],
)
def test_help_is_worth_reading(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert "example.toml" in out and "Exit status" in out


def test_the_version_is_that_of_the_distribution(capsys: pytest.CaptureFixture[str]) -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["version"] == __version__
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"octogate {__version__}\n"


def test_status_text_shows_every_part() -> None:
    shown = status()
    text = status_text(shown)
    for name in (
        *(s.name for s in shown.sources),
        *(s.name for s in shown.streams),
        *(m.name for m in shown.models),
        *(p.name for p in shown.pipelines),
    ):
        assert name in text
    assert "backlog" in text and shown.uplink.broker in text
