"""The project's tasks. `./inv` lists them, `./inv --help TASK` explains one; they run from the repository's folder."""

import hashlib
import importlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from glob import glob
from pathlib import Path

from invoke.collection import Collection
from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import task

ROOT = Path(__file__).resolve().parent
# What the integration tests start or read -> the Debian package that has it.
SYSTEM_PROGRAMS = {
    "/usr/share/firmware-microbit-micropython/firmware.hex": "firmware-microbit-micropython",
    "faketime": "faketime",
    "mosquitto": "mosquitto",
    "node": "nodejs",
    "npm": "npm",
    "postgres": "postgresql",
    "qemu-system-arm": "qemu-system-arm",
    "strace": "strace",
    # an RTSP server has no program of its own: files, as patterns
    "/usr/lib/*/girepository-1.0/GstRtspServer-1.0.typelib": "gir1.2-gst-rtsp-server-1.0",
    "/usr/lib/python3/dist-packages/gi/__init__.py": "python3-gi",
    "/usr/lib/*/gstreamer-1.0/libgstvideotestsrc.so": "gstreamer1.0-plugins-base",
    "/usr/lib/*/gstreamer-1.0/libgstrtp.so": "gstreamer1.0-plugins-good",
}
LONG_PROGRAMS = {**SYSTEM_PROGRAMS, "rabbitmq-server": "rabbitmq-server"}
TFLITE_TESTS = [
    *(f"tests/unit/test_{name}.py" for name in ("backend", "device", "devices")),
    "tests/unit/test_models.py::test_it_runs_and_reproduces_its_golden_samples[detect]",
]
NOT_RUN = 77  # exit code of a test that cannot run here, as in other test harnesses
CACHES = [".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis", "build", "dist"]


@task(
    help={
        "integration": "run tests/integration instead; missing system programs are installed or named",
        "long": "run tests/long instead: a RabbitMQ cluster whose nodes are killed; not part of .ci/run",
        "tflite": "run the tests of the backends on tflite-runtime instead; needs a Python 3.11, exit code 77 without",
        "select": "only tests that match, as in pytest -k",
        "args": "anything else for pytest, in one string",
    }
)
def test(
    c: Context, integration: bool = False, long: bool = False, tflite: bool = False, select: str = "", args: str = ""
) -> None:
    """
    Run the tests: those in tests/unit, or with --integration those in tests/integration.

    Unit tests need no network, no root and no device.
    Integration tests start real programs, such as the mosquitto broker. What is missing is installed with apt-get
    where this user may; elsewhere the command to run is printed, and the exit code is 1.
    With CI=true a skipped integration test counts as failed.
    """
    if integration or long:
        require_programs(LONG_PROGRAMS if long else SYSTEM_PROGRAMS)
    folder = "tests/long" if long else "tests/integration" if integration else "tests/unit"
    options = [*(["-k", select] if select else []), *shlex.split(args)]
    if tflite:
        run([str(tflite_python()), "-m", "pytest", *TFLITE_TESTS, *options])
    else:
        run_python("pytest", folder, *options)


@task(help={"fix": "let ruff mend and format what it can first"})
def lint(c: Context, fix: bool = False) -> None:
    """Check style, format and types: ruff check, ruff format --check, mypy strict. All three run, then it fails."""
    if fix:
        call("ruff", "check", "--fix-only", "--quiet", ".")
        call("ruff", "format", "--quiet", ".")
    codes = [call("ruff", "check", "."), call("ruff", "format", "--check", "."), call("mypy")]
    if any(codes):
        raise Exit(code=1)


@task(help={"upgrade": "take the newest versions that fit, instead of keeping the pins that still do"})
def lock(c: Context, upgrade: bool = False) -> None:
    """
    Make requirements/*.txt anew from pyproject.toml, with hashes and without addresses.

    Needs the package index. The next ./inv brings .venv up to date by itself.
    """
    run([sys.executable, "requirements/lock.py", *(["--upgrade"] if upgrade else [])])


@task(help={"yes": "remove them; without it they are only listed"})
def clean(c: Context, yes: bool = False) -> None:
    """List the caches and builds that can be made again; remove them with --yes. Never touches .venv or data."""
    found = [ROOT / name for name in CACHES if (ROOT / name).exists()]
    compiled = sorted(ROOT.rglob("__pycache__"))
    found += [path for path in compiled if not path.relative_to(ROOT).parts[0].startswith(".venv")]
    for path in found:
        print(path.relative_to(ROOT))
        if yes:
            shutil.rmtree(path)
    done = "removed" if yes else "can be removed: ./inv clean --yes"
    print(f"{len(found)} folders {done}" if found else "nothing to remove")


@task(
    help={
        "seconds": "how long it runs; 0 means until Ctrl-C",
        "plain": "no live view: a line now and then, and the summary as one JSON line at the end",
        "port": "port of the local web page on 127.0.0.1",
    }
)
def demo(c: Context, seconds: float = 60.0, plain: bool = False, port: int = 8080) -> None:
    """
    Run a small factory without hardware: node, camera, models, gateway, broker and consumer.

    The broker is taken away for some seconds and comes back. The summary shows what was sent, stored and delivered;
    the exit code is 0 only if nothing was lost, repeated or out of order.
    """
    # Found only when it is asked for, so that the other tasks work while the SDK does not.
    code = importlib.import_module("sdk.demo").main(seconds=seconds, plain=plain, port=port)
    if code:
        raise Exit(code=int(code))


@task(help={"name": "the script's name without .py, or 'list'", "args": "its arguments, in one string"})
def bench(c: Context, name: str, args: str = "") -> None:
    """Run one measurement, bench/NAME.py: ./inv bench burst --args "--seconds 5". ./inv bench list names them."""
    names = [path.stem for path in sorted((ROOT / "bench").glob("*.py")) if path.stem != "__init__"]
    if name == "list":
        print("\n".join(names) or "there is no script in bench/")
        return
    if name not in names:
        raise Exit(f"octogate: no bench/{name}.py; there are: {', '.join(names) or 'none'}", code=1)
    run_python(f"bench.{name}", *shlex.split(args))


@task(name="list")
def models_list(c: Context) -> None:
    """Name the models of the repository, with their bundles."""
    run_python("models", "list")


@task(name="build", help={"name": "a folder of models/", "args": "its options, in one string; see --args --help"})
def models_build(c: Context, name: str, args: str = "") -> None:
    """
    Build a model's bundle from its data or package, and sign it with your key.

    Needs the network once, for the data. machine_state is trained, which needs the extra `train`.
    """
    run_python("models", "build", name, *shlex.split(args))


@task(name="evaluate", help={"name": "a folder of models/", "args": "its options, in one string; see --args --help"})
def models_evaluate(c: Context, name: str, args: str = "") -> None:
    """Measure a model on its test data and write the figures, with the bundle's digest, into its card."""
    run_python("models", "evaluate", name, *shlex.split(args))


def tflite_python() -> Path:
    """The Python of .venv-tflite, made from requirements/tflite.txt when it is not there or not from this file.

    tflite-runtime has no wheels for later Pythons, and needs NumPy 1, so it cannot be in .venv.
    """
    base = python_311()
    if base is None:
        raise Exit("octogate: NOT RUN: the tests on tflite-runtime 2.14 need a Python 3.11 with venv", code=NOT_RUN)
    folder, lock = ROOT / ".venv-tflite", ROOT / "requirements/tflite.txt"
    python, stamp = folder / "bin/python", folder / "octogate.stamp"
    made_from = f"{ROOT}\n{hashlib.sha256(lock.read_bytes()).hexdigest()}\n"
    if not stamp.exists() or stamp.read_text() != made_from:
        print("octogate: making .venv-tflite from requirements/tflite.txt", file=sys.stderr)
        run([base, "-m", "venv", "--clear", str(folder)])
        run([str(python), "-m", "pip", "install", "--quiet", "--require-hashes", "-r", str(lock)])
        stamp.write_text(made_from)
    return python


def python_311() -> str | None:
    """A Python 3.11 that can make a venv; one on PATH may be a wrapper that only complains."""
    base = sys.executable if sys.version_info[:2] == (3, 11) else shutil.which("python3.11")
    works = (
        base and not subprocess.run([base, "-c", "import ensurepip, venv"], capture_output=True, check=False).returncode
    )
    return base if works else None


@task(
    name="build",
    help={
        "board": "a name in firmware_tools/boards/gateway: qemu, rpi3, rpi4, rpi5",
        "suite": "of Debian: trixie or bookworm",
        "output": "folder of the results; build/image/BOARD without it",
        "refresh": "take Debian's newest packages, instead of those of the build before",
        "dry-run": "only list the stages, and which would have to be run",
    },
)
def image_build(
    c: Context, board: str, suite: str = "trixie", output: str = "", refresh: bool = False, dry_run: bool = False
) -> None:
    """
    Build the image of a gateway: disk image, block map, manifest, list of parts, and the signed update.

    Needs root, as the image has files of several users. Missing programs are installed with apt-get, or named.
    """
    if not dry_run:
        require_programs(importlib.import_module("firmware_tools.image").PROGRAMS)
    given = [
        word
        for key, value in (("board", board), ("suite", suite), ("output", output))
        if value
        for word in option(key, value)
    ]
    switches = [name for name, wanted in (("--refresh", refresh), ("--dry-run", dry_run)) if wanted]
    run_python("firmware_tools.image", *given, *switches)


BOARD = "a name in firmware_tools/boards; without it the port's USB identity says which"
PORT = "a path, or the USB identity as in the gateway's config: usb:VID:PID[:SERIAL]"


@task(
    name="deploy",
    help={
        "port": PORT,
        "board": BOARD,
        "firmware": "a folder with main.py; firmware_tools/node_firmware without it",
        "config": "the node's config.json; without it the node keeps its own",
        "dry-run": "only say what would be written (the node's program is restarted all the same)",
    },
)
def node_deploy(
    c: Context, port: str, board: str = "", firmware: str = "", config: str = "", dry_run: bool = False
) -> None:
    """
    Put the node's firmware on its board: what differs, checked there, taken back if it does not say HELLO.

    Exit code: 0 it runs; 1 the firmware from before runs again; 2 nothing was changed; 3 neither runs.
    """
    run_node("deploy", port=port, board=board, firmware=firmware, config=config, dry_run=dry_run)


@task(name="monitor", help={"port": PORT, "board": BOARD, "seconds": "how long; 0 means until Ctrl-C"})
def node_monitor(c: Context, port: str, board: str = "", seconds: float = 0.0) -> None:
    """Show what a node says, text and frames. It forgets nothing by it: the gateway gets its readings later."""
    run_node("monitor", port=port, board=board, seconds=str(seconds))


@task(
    name="list",
    help={
        "port": "ask what is on this port, too",
        "ask-all": "ask every port on USB, not only known boards: a line of text may mean something to what is there",
        "json": "one JSON array",
    },
)
def node_list(c: Context, port: str = "", ask_all: bool = False, json: bool = False) -> None:
    """Say which board is on which port, and which node it is if it speaks."""
    run_node("list", port=port, ask_all=ask_all, json=json)


@task(
    name="flash",
    help={
        "file": "MicroPython for the board: .uf2 or .bin",
        "drive": "for .uf2: the boot loader's drive",
        "port": "for .bin: " + PORT,
        "board": BOARD,
        "dry-run": "check the file and show what would be done",
        "yes": "do not ask",
    },
)
def node_flash(
    c: Context, file: str, drive: str = "", port: str = "", board: str = "", dry_run: bool = False, yes: bool = False
) -> None:
    """Put MicroPython itself on a board: .uf2 files are checked and copied, .bin images are given to esptool."""
    run_node("flash", file, drive=drive, port=port, board=board, dry_run=dry_run, yes=yes)


def run_node(*args: str, **options: str | bool) -> None:
    """One command of firmware_tools/node.py; its exit code is ours."""
    given = [part for key, value in options.items() if value for part in option(key, value)]
    run_python("firmware_tools.node", *args, *given)


def option(key: str, value: str | bool) -> list[str]:
    name = "--" + key.replace("_", "-")
    return [name] if value is True else [f"{name}={value}"]


def call(module: str, *args: str) -> int:
    """Run a Python module of this environment and give its exit code."""
    command = [sys.executable, "-m", module, *args]
    return subprocess.run(command, cwd=ROOT, env=environment(), check=False).returncode


def run_python(module: str, *args: str) -> None:
    run([sys.executable, "-m", module, *args])


def run(command: list[str]) -> None:
    """Run a command in the foreground; its exit code becomes ours."""
    code = subprocess.run(command, cwd=ROOT, env=environment(), check=False).returncode
    if code:
        raise Exit(code=code if code > 0 else 128 - code)


def environment() -> dict[str, str]:
    return {**os.environ, "PATH": system_path()}


def system_path() -> str:
    """PATH, and where servers live that are not on everyone's: sbin, and Debian's folders of PostgreSQL, newest first."""
    postgres = sorted(
        Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: path.parent.name.zfill(4), reverse=True
    )
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin", *map(str, postgres)])


def missing_packages(programs: dict[str, str]) -> list[str]:
    missing = [name for name in programs if not (glob(name) if "/" in name else shutil.which(name, path=system_path()))]
    return sorted({programs[name] for name in missing})


def require_programs(programs: dict[str, str]) -> None:
    """Install the packages of missing programs, or name the command that does. Returns only if all are there."""
    packages = missing_packages(programs)
    if not packages:
        return
    print(f"octogate: this needs: {' '.join(packages)}", file=sys.stderr)
    install = ["apt-get", "install", "--yes", "--no-install-recommends", *packages]
    prefix = apt_prefix()
    if prefix is not None:
        print("octogate: installing with apt-get", file=sys.stderr)
        quiet_apt([*prefix, "apt-get", "update", "--quiet"])
        quiet_apt([*prefix, *install])
        packages = missing_packages(programs)
    if packages:
        raise Exit(f"octogate: still missing. Run this, then again: sudo {shlex.join(install)}", code=1)


def apt_prefix() -> list[str] | None:
    """What to put before apt-get to run it without a question; None where that is not allowed."""
    if not shutil.which("apt-get"):
        return None
    if os.geteuid() == 0:
        return ["env", "DEBIAN_FRONTEND=noninteractive"]
    if (
        shutil.which("sudo")
        and subprocess.run(["sudo", "-n", "true"], capture_output=True, check=False).returncode == 0
    ):
        return ["sudo", "-n", "env", "DEBIAN_FRONTEND=noninteractive"]
    return None


def quiet_apt(command: list[str]) -> None:
    """Run apt-get in silence; when it fails show what it said. Whether it helped is seen by looking for the program."""
    with tempfile.TemporaryFile() as log:
        if subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode:
            log.seek(0)
            sys.stderr.write(log.read().decode(errors="replace"))


namespace = Collection(test, lint, lock, clean, demo, bench)
namespace.add_collection(Collection("models", models_list, models_build, models_evaluate))
namespace.add_collection(Collection("node", node_deploy, node_monitor, node_list, node_flash))
namespace.add_collection(Collection("image", image_build))
