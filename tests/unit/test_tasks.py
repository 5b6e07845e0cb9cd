"""What runs where: a part that this machine cannot run is named, and is neither passed nor failed."""

import shutil
import subprocess
from pathlib import Path

import pytest
from invoke.exceptions import Exit

import tasks
from firmware_tools import environments

ROOT = Path(__file__).resolve().parents[2]


def test_without_a_python_311_the_old_runtime_is_named_as_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "python_311", lambda: None)
    with pytest.raises(Exit, match=r"NOT RUN: requirements/tflite\.txt is for Python 3\.11") as raised:
        environments.own_python("tflite")
    assert raised.value.code == environments.NOT_RUN


# What a made-up Python 3.11 does: makes a venv of itself, and a pip that reports as pip does.
FAKE_PYTHON = """\
#!/bin/sh
case "$*" in
    *"-m venv"*) for folder; do :; done; mkdir -p "$folder/bin" && cp "$0" "$folder/bin/python"; echo venv >>CALLS ;;
    *"-m pip"*)
        echo pip >>CALLS
        echo "WARNING: Location 'x' is ignored" >&2
        echo "Collecting torch==2.13.0+cpu (from -r train.txt (line 1))"
        if [ -f CALLS.fail ]; then echo "ERROR: No matching distribution found for torch==2.13.0+cpu"; exit 1; fi
        echo "Installing collected packages: torch" ;;
esac
"""


@pytest.fixture
def project(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder with a lock, and a Python that only notes in `calls` what it was asked."""
    python = tmp_path / "python3.11"
    python.write_text(FAKE_PYTHON.replace("CALLS", str(tmp_path / "calls")))
    python.chmod(0o755)
    monkeypatch.setattr(environments, "python_311", lambda: str(python))
    monkeypatch.setattr(environments, "NEEDS_GB", {})
    (tmp_path / "requirements").mkdir()
    (tmp_path / "requirements/train.txt").write_text("torch==2.13.0+cpu \\\n    --hash=sha256:0\n")
    return tmp_path


def test_an_environment_is_made_once_for_a_lock(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert environments.own_python("train", project) == project / ".venv-train/bin/python"
    assert (project / "calls").read_text().split() == ["venv", "pip"]
    said = capfd.readouterr().err
    assert "making .venv-train" in said and "is ready after" in said and "WARNING" not in said
    (project / "requirements/train.txt").write_text("torch==2.14.0\n")
    environments.own_python("train", project)
    assert (project / "calls").read_text().split() == ["venv", "pip"] * 2


def test_an_environment_that_fails_says_what_to_do_and_is_begun_anew(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (project / "calls.fail").touch()
    with pytest.raises(Exit, match=r"PyTorch's CPU build is not in the package index.*PIP_EXTRA_INDEX_URL") as raised:
        environments.own_python("train", project)
    assert raised.value.code == 1 and "No matching distribution" in capfd.readouterr().err
    (project / "calls.fail").unlink()
    assert environments.own_python("train", project).exists()


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("Collecting absl-py==2.5.1 (from -r requirements/train.txt (line 4))", "absl-py"),
        ("Processing /some/folder/torch-2.13.0+cpu-cp311-linux_x86_64.whl (from -r x)", "torch"),
        ("Processing ./tensorflow-cpu-2.21.0-cp311.whl", "tensorflow-cpu"),
        ("Downloading torch-2.13.0.whl (180 MB)", None),
    ],
)
def test_the_package_that_pip_speaks_of(line: str, name: str | None) -> None:
    found = environments.PACKAGE.match(line)
    assert (found and found[1]) == name


def test_a_full_disk_is_told_before_anything_is_made(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "NEEDS_GB", {"train": 1e9})
    with pytest.raises(Exit, match=r"\.venv-train needs 1e\+09 GB of disk"):
        environments.own_python("train", project)
    assert not (project / "calls").exists()


def test_a_model_that_is_not_there_is_told_before_gigabytes_are_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "own_python", lambda name: pytest.fail("it made an environment"))
    for task, word in ((tasks.models_build, "press"), (tasks.models_report, "segment,press")):
        with pytest.raises(Exit, match=r"there is no model 'press'.*machine_state") as raised:
            task.body(None, word)
        assert raised.value.code == 1


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
