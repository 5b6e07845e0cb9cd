"""The bootstrap script's decisions, with made-up Pythons and no network."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHELLS = [shell for shell in ("/bin/sh", "/bin/dash", "/bin/bash", "/bin/busybox") if Path(shell).exists()]
# What a made-up Python answers: in range, has venv, makes a .venv whose pip and invoke only report.
FAKE_PYTHON = """\
#!/bin/sh
case "$*" in
    *"-m venv"*)
        rm -rf .venv && mkdir -p .venv/bin && cp "$0" .venv/bin/python
        echo "version = 3.12.1" >.venv/pyvenv.cfg
        printf '#!/bin/sh\\necho "invoke in $(pwd): $*"\\n' >.venv/bin/invoke
        chmod +x .venv/bin/invoke
        echo venv >>calls ;;
    *"-m pip"*)
        echo pip >>calls
        if [ -f fail-pip ]; then echo "no route to the index"; exit 1; fi ;;
    *platform*) echo "Python 3.12.1" ;;
    *"(3, 11)"*) exit OUT_OF_RANGE ;;
    *ensurepip*) exit WITHOUT_VENV ;;
esac
"""


def make_python(path: Path, out_of_range: int = 0, without_venv: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = FAKE_PYTHON.replace("OUT_OF_RANGE", str(out_of_range)).replace("WITHOUT_VENV", str(without_venv))
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what the script reads, in a folder with spaces in its name, beside a Python that works."""
    folder = tmp_path / "a check out"
    (folder / "requirements").mkdir(parents=True)
    shutil.copy(ROOT / "inv", folder)
    (folder / "requirements/dev.txt").write_text("invoke==3.0.3\n")
    (folder / "pyproject.toml").write_text("[project]\n")
    make_python(tmp_path / "bin/python3.12")
    # Nothing but what a bare machine has: no Python of this machine may be found.
    for tool in ("cat", "cksum", "cp", "chmod", "date", "dirname", "env", "grep", "mkdir", "mv", "rm", "sh"):
        if found := shutil.which(tool):
            (tmp_path / "bin" / tool).symlink_to(found)
    return folder


def inv(
    checkout: Path,
    *args: str,
    sh: str = "/bin/sh",
    cwd: Path | None = None,
    python: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    applet = ["sh"] if sh.endswith("busybox") else []
    command = [sh, *applet, str(checkout / "inv"), *args]
    environment = {"PATH": str(checkout.parent / "bin"), **({"PYTHON": str(python)} if python else {})}
    cwd = cwd or checkout
    return subprocess.run(
        command,
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def calls(checkout: Path) -> list[str]:
    log = checkout / "calls"
    return log.read_text().split() if log.exists() else []


@pytest.mark.parametrize("shell", SHELLS)
def test_first_start_sets_up_and_the_second_only_hands_over(checkout: Path, shell: str) -> None:
    first = inv(checkout, "test", "-s", "a b", sh=shell)
    assert (first.returncode, first.stdout) == (0, f"invoke in {checkout}: test -s a b\n"), first.stderr
    assert "making .venv with Python 3.12.1" in first.stderr
    assert calls(checkout) == ["venv", "pip", "pip"]
    # No Python on PATH any more: a second start must need none.
    (checkout.parent / "bin/python3.12").unlink()
    second = inv(checkout, "test", sh=shell, cwd=checkout.parent)
    assert (second.returncode, second.stdout, second.stderr) == (0, f"invoke in {checkout}: test\n", "")
    assert calls(checkout) == ["venv", "pip", "pip"]


@pytest.mark.parametrize("args", [[], ["--help"], ["-h"]])
def test_without_a_task_the_tasks_are_listed(checkout: Path, args: list[str]) -> None:
    assert inv(checkout, *args).stdout == f"invoke in {checkout}: --list\n"


def test_help_for_a_task_goes_to_invoke(checkout: Path) -> None:
    assert inv(checkout, "--help", "demo").stdout.endswith(": --help demo\n")


def test_a_python_out_of_range_is_refused_with_what_to_do(checkout: Path) -> None:
    old = make_python(checkout.parent / "old/python3.9", out_of_range=1)
    answer = inv(checkout, python=old)
    assert answer.returncode == 1
    assert f"PYTHON={old} is not a Python 3.11, 3.12 or 3.13 that runs." in answer.stderr
    assert "unset it" in answer.stderr
    assert not (checkout / ".venv").exists()


@pytest.mark.parametrize("broken", ["missing", "shim", "old"])
def test_no_python_that_fits_is_said_with_what_to_do(checkout: Path, broken: str) -> None:
    python = checkout.parent / "bin/python3.12"
    if broken == "missing":
        python.unlink()
    elif broken == "shim":  # on PATH, executable, and yet it only complains
        python.write_text("#!/bin/sh\necho 'command not found' >&2\nexit 127\n")
    else:
        make_python(python, out_of_range=1)
    answer = inv(checkout)
    assert answer.returncode == 1
    assert "no Python 3.11, 3.12 or 3.13 found" in answer.stderr
    assert "apt-get install python3 python3-venv" in answer.stderr
    assert "command not found" not in answer.stderr


def test_a_python_without_venv_names_the_package(checkout: Path) -> None:
    make_python(checkout.parent / "bin/python3.12", without_venv=1)
    answer = inv(checkout)
    assert answer.returncode == 1
    assert "python3.12 has no venv module" in answer.stderr
    assert "apt-get install python3-venv" in answer.stderr


def test_a_later_python_is_taken_when_the_first_does_not_run(checkout: Path) -> None:
    make_python(checkout.parent / "bin/python3.13", out_of_range=1)
    assert inv(checkout).returncode == 0


def test_a_failed_install_shows_what_pip_said_and_the_next_start_begins_anew(checkout: Path) -> None:
    (checkout / "fail-pip").touch()
    answer = inv(checkout, "test")
    assert answer.returncode == 1
    assert "no route to the index" in answer.stderr
    assert "Then start ./inv again" in answer.stderr
    assert answer.stdout == ""
    (checkout / "fail-pip").unlink()
    assert inv(checkout, "test").returncode == 0
    assert calls(checkout) == ["venv", "pip", "venv", "pip", "pip"]


def test_a_changed_lock_brings_venv_up_to_date(checkout: Path) -> None:
    inv(checkout)
    (checkout / "requirements/dev.txt").write_text("invoke==3.0.4\n")
    assert inv(checkout).returncode == 0
    assert calls(checkout) == ["venv", "pip", "pip", "pip", "pip"]


@pytest.mark.parametrize("harm", ["moved", "no invoke", "another python"])
def test_a_venv_that_no_longer_fits_is_made_anew(checkout: Path, harm: str) -> None:
    inv(checkout)
    asked: Path | None = None
    if harm == "moved":
        checkout = checkout.rename(checkout.parent / "elsewhere")
    elif harm == "no invoke":
        (checkout / ".venv/bin/invoke").unlink()
    else:
        asked = make_python(checkout.parent / "other/python3.11")
    for _ in range(2):
        assert inv(checkout, python=asked).returncode == 0
    assert calls(checkout) == ["venv", "pip", "pip"] * 2


def test_two_first_starts_at_once_set_up_once(checkout: Path, tmp_path: Path) -> None:
    # The made-up Python holds no lock; this one does it as the real one would.
    python = checkout.parent / "bin/python3.12"
    real = Path(sys.executable).resolve()
    locking = python.read_text().replace('case "$*" in', f'case "$*" in *fcntl*) exec "{real}" "$@" ;;')
    python.write_text(locking.replace("echo pip >>calls", "echo pip >>calls; sleep 0.3"))
    (tmp_path / "bin/sleep").symlink_to(str(shutil.which("sleep")))
    command = ["/bin/sh", str(checkout / "inv"), "test"]
    environment = {"PATH": str(tmp_path / "bin")}
    starts = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    answers = [start.communicate(timeout=30) for start in starts]
    assert [start.returncode for start in starts] == [0, 0, 0]
    assert all(out.endswith(": test\n") for out, _ in answers)
    assert sum("waiting for it" in err for _, err in answers) == 2
    assert calls(checkout) == ["venv", "pip", "pip"]


def test_the_real_locks_have_hashes_and_no_addresses() -> None:
    for name in ("core", "dev", "train", "tensorflow", "tflite"):
        text = (ROOT / f"requirements/{name}.txt").read_text()
        pins = re.findall(r"(?m)^[a-z0-9][\w.-]*==\S+", text)
        assert len(pins) > 10
        assert len(re.findall(r"(?m)^[a-z0-9].* \\\n    --hash=sha256:", text)) == len(pins)
        assert not re.search(r"https?:|file:|--(extra-)?index|--find-links|(?m:^-)", text), name
    train = (ROOT / "requirements/train.txt").read_text()
    assert "torch==2.13.0" in train
    assert not re.search(r"(?m)^(nvidia|cuda|triton)", train)
