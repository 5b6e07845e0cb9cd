"""What the documents tell people to type and to open is there."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from gateway.__main__ import main

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def texts(pattern: str) -> set[str]:
    return {found for document in DOCUMENTS for found in re.findall(pattern, document.read_text())}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text())
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (document.parent / target).exists()] == []


def test_tasks_exist() -> None:
    listed = subprocess.run(
        [sys.executable, "-m", "invoke", "--list"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    tasks = set(re.findall(r"^  ([a-z][\w.]*)", listed, re.MULTILINE))
    assert tasks > {"demo", "test"}
    assert texts(r"\./inv ([a-z][a-z.]*)") <= tasks


def test_commands_exist(capsys: pytest.CaptureFixture[str]) -> None:
    commands = texts(r"`octogate ([a-z]+)\b") | texts(r"\.venv/bin/octogate ([a-z]+)\b")
    assert "run" in commands
    for command in commands:
        with pytest.raises(SystemExit) as caught:
            main([command, "--help"])
        assert caught.value.code == 0, command
    capsys.readouterr()


def test_paths_exist() -> None:
    named = texts(r"`((?:gateway|sdk|firmware_tools|models|tests|bench|docs)/[\w./-]+)`")
    assert "gateway/example.toml" in named
    assert {path for path in named if not (ROOT / path).exists() and "<" not in path} == set()


def test_scripts_exist() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    for target in scripts.values():
        module, _, function = target.partition(":")
        assert f"def {function}(" in (ROOT / (module.replace(".", "/") + ".py")).read_text()
