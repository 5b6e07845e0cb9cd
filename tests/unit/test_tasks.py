"""What runs where: a part that this machine cannot run is named, and is neither passed nor failed."""

import shutil
import subprocess
from pathlib import Path

import pytest
from invoke.exceptions import Exit

import tasks

ROOT = Path(__file__).resolve().parents[2]


def test_without_a_python_311_the_old_runtime_is_named_as_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "python_311", lambda: None)
    with pytest.raises(Exit, match=r"NOT RUN: requirements/tflite\.txt is for Python 3\.11") as raised:
        tasks.own_python("tflite")
    assert raised.value.code == tasks.NOT_RUN


def test_its_environment_is_made_once_for_a_lock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made: list[list[str]] = []

    def run(command: list[str]) -> None:
        made.append(command[1:3])
        (tmp_path / ".venv-tflite").mkdir(exist_ok=True)

    monkeypatch.setattr(tasks, "ROOT", tmp_path)
    monkeypatch.setattr(tasks, "python_311", lambda: "python3.11")
    monkeypatch.setattr(tasks, "run", run)
    (tmp_path / "requirements").mkdir()
    lock = tmp_path / "requirements/tflite.txt"
    lock.write_text("one")
    for _ in range(2):
        assert tasks.own_python("tflite") == tmp_path / ".venv-tflite/bin/python"
    assert made == [["-m", "venv"], ["-m", "pip"]]
    lock.write_text("two")
    tasks.own_python("tflite")
    assert len(made) == 4


@pytest.mark.parametrize(("code", "outcome", "ci"), [(0, "passed", 0), (77, "NOT RUN", 0), (1, "FAILED (1)", 1)])
def test_ci_tells_what_it_did_not_run(tmp_path: Path, code: int, outcome: str, ci: int) -> None:
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/run", tmp_path / ".ci/run")
    inv = tmp_path / "inv"
    inv.write_text(f'#!/bin/sh\ncase "$*" in *--tflite) exit {code} ;; esac\n')
    inv.chmod(0o755)
    answer = subprocess.run([tmp_path / ".ci/run"], capture_output=True, text=True, check=False)
    assert answer.returncode == ci
    assert f"=== ./inv test --tflite: {outcome}" in answer.stdout
    assert ("=== ./inv lint: passed" in answer.stdout) == (ci == 0)
