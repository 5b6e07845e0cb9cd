"""image.flash with real partition tables, file systems, loop devices and signals; bmap-tools as the other side."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from firmware_tools.disk import bmap
from firmware_tools.disk.__main__ import DONE, INCOMPLETE, UNCHANGED
from firmware_tools.provision import main as provision_device
from tests.integration.real_images import LAYOUT, MIB, SIZE, build, program, run, take

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("image"))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A loop device that is larger than the image and full of other bytes; its file where none can be had."""
    backing = tmp_path / "disk"
    backing.write_bytes(b"\xaa" * (SIZE + 16 * MIB))
    done = subprocess.run([program("losetup"), "--find", "--show", backing], capture_output=True, check=False)
    if done.returncode:
        print(f"no loop device on this machine: {done.stderr.decode().strip()}; a file stands for it")
        yield backing
        return
    device = Path(done.stdout.decode().strip())
    yield device
    run("losetup", "--detach", device)


def flash(*args: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "firmware_tools.disk", *map(str, args)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def test_a_disk_gets_the_image(packed: Path, disk: Path, tmp_path: Path) -> None:
    done = flash("--image", packed, "--to", disk, "--yes", "--json")
    assert done.returncode == DONE, done.stderr
    assert json.loads(done.stdout)["image_size"] == SIZE
    raw = packed.with_suffix("").read_bytes()
    with disk.open("rb") as file:
        there = file.read(SIZE)
        rest = file.read()
    made = bmap.parse(packed.with_name(f"{packed.stem}.bmap").read_bytes())
    for item in made.ranges:
        start, end = made.span(item)
        assert there[start:end] == raw[start:end]
    for name in ("ubootenv", "data"):
        at, size = (MIB * number for number in LAYOUT[name])
        assert there[at : at + size] == raw[at : at + size], f"{name} is whole, its free blocks too"
    table = json.loads(run("sfdisk", "--json", disk))["partitiontable"]
    assert [part["name"] for part in table["partitions"]] == list(LAYOUT)
    run("e2fsck", "-fn", take(disk, "rootA", tmp_path / "a"))
    run("e2fsck", "-fn", take(disk, "data", tmp_path / "d"))
    if disk.is_block_device():
        assert rest[15 * MIB :] == bytes(MIB), "a copy of an older table at the disk's end is gone"


def test_a_disk_that_is_too_small_is_refused(packed: Path, tmp_path: Path) -> None:
    backing = tmp_path / "small"
    backing.write_bytes(b"\xaa" * (SIZE - MIB))
    done = subprocess.run([program("losetup"), "--find", "--show", backing], capture_output=True, check=False)
    if done.returncode:
        print("no loop device on this machine: a file cannot be too small")
        return
    device = done.stdout.decode().strip()
    try:
        refused = flash("--image", packed, "--to", device, "--yes")
    finally:
        run("losetup", "--detach", device)
    assert refused.returncode == UNCHANGED
    assert "the image needs 109.1 MB" in refused.stderr
    assert backing.read_bytes() == b"\xaa" * (SIZE - MIB)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_ended_in_the_middle_it_is_no_disk(packed: Path, disk: Path, number: signal.Signals) -> None:
    # a test run in the background of a script ignores SIGINT, and so would its children
    command = ["env", "--default-signal=INT", sys.executable, "-m", "firmware_tools.disk", "--image", str(packed)]
    with subprocess.Popen(
        [*command, "--to", str(disk), "--yes"], cwd=ROOT, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("writing"):
                process.send_signal(number)
                break
        said = process.stderr.read()
    assert process.returncode == (-number if number == signal.SIGKILL else INCOMPLETE)
    assert ("not complete" in said) == (number != signal.SIGKILL)
    with disk.open("rb") as file:
        assert file.read(MIB) == bytes(MIB)
    done = subprocess.run([program("sfdisk"), "--json", disk], capture_output=True, check=False)
    assert done.returncode != 0, "nothing finds a table, nor a copy of one"


def test_a_place_that_is_full_is_told(packed: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.img"
    module = [sys.executable, "-m", "firmware_tools.disk", "--image", str(packed), "--to", str(target)]
    limited = [program("prlimit"), f"--fsize={50 * MIB}", *module]
    done = subprocess.run(limited, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == INCOMPLETE
    assert "File too large" in done.stderr


def test_bmap_tools_reads_our_maps_and_we_read_theirs(packed: Path, tmp_path: Path) -> None:
    raw = packed.with_suffix("")
    ours = raw.with_name(f"{raw.name}.bmap")
    theirs = tmp_path / "theirs.bmap"
    run("bmaptool", "create", "-o", theirs, raw)
    assert bmap.parse(theirs.read_bytes()).image_size == SIZE
    run("bmaptool", "copy", "--bmap", ours, raw, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == raw.read_bytes()
    other = tmp_path / raw.name
    other.write_bytes(raw.read_bytes())
    other.with_name(f"{raw.name}.bmap").write_bytes(theirs.read_bytes())
    assert flash("--image", other, "--to", tmp_path / "out").returncode == DONE
    assert (tmp_path / "out").read_bytes() == raw.read_bytes()


def provision_file(tmp_path: Path) -> Path:
    arguments = ["line-1", "--ca", str(tmp_path / "ca"), "--timezone", "Europe/Berlin", "--out", str(tmp_path / "out")]
    assert provision_device(arguments) == DONE
    return tmp_path / "out" / "provision.toml"


def test_a_gateway_is_provisioned_while_it_is_flashed(packed: Path, disk: Path, tmp_path: Path) -> None:
    file = provision_file(tmp_path)
    done = flash("--image", packed, "--to", disk, "--yes", "--provision", file)
    assert done.returncode == DONE, done.stderr
    assert "new      /data/identity/key.pem (secret)" in done.stdout
    data = take(disk, "data", tmp_path / "data")
    run("e2fsck", "-fn", data)
    key = (tmp_path / "ca/gateways/line-1.key").read_bytes()
    assert run("debugfs", "-R", "cat /identity/key.pem", data) == key
    assert run("debugfs", "-R", "cat /etc/hostname", data) == b"octogate\n", "what the build put there stays"
    assert b"User:     0   Group:     0" in run("debugfs", "-R", "stat /identity/key.pem", data)
    assert b"Mode:  0640" in run("debugfs", "-R", "stat /identity/key.pem", data)
    assert key.splitlines()[1].decode() not in done.stdout + done.stderr
    raw = packed.with_suffix("").read_bytes()
    at = LAYOUT["rootA"][0] * MIB
    assert take(disk, "rootA", tmp_path / "a").read_bytes()[: 1 << 16] == raw[at : at + (1 << 16)]


def test_an_image_is_provisioned_in_place_and_once(
    packed: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "mine.img"
    image.write_bytes(packed.with_suffix("").read_bytes())
    before = image.read_bytes()
    arguments = ["line-1", "--ca", str(tmp_path / "ca"), "--timezone", "UTC", "--image", str(image)]
    assert provision_device([*arguments, "--dry-run"]) == DONE
    assert image.read_bytes() == before
    assert provision_device(arguments) == DONE
    assert "new      /data/etc/timezone (4 bytes)" in capfd.readouterr().out
    after = image.read_bytes()
    at, size = (MIB * number for number in LAYOUT["data"])
    assert before[:at] == after[:at] and before[at + size :] == after[at + size :]
    run("e2fsck", "-fn", take(image, "data", tmp_path / "data"))
    assert provision_device(arguments) == DONE
    assert "nothing differs" in capfd.readouterr().out
    assert image.read_bytes() == after
    arguments[4] = "Europe/Berlin"
    assert provision_device(arguments) == DONE
    assert "    -UTC\n    +Europe/Berlin\n" in capfd.readouterr().out


def test_a_data_partition_without_room_is_told(packed: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    image = tmp_path / "mine.img"
    image.write_bytes(packed.with_suffix("").read_bytes())
    before = image.read_bytes()
    (tmp_path / "large.octo").write_bytes(os.urandom(20 * MIB))
    arguments = [
        "line-1",
        "--ca",
        str(tmp_path / "ca"),
        "--bundle",
        str(tmp_path / "large.octo"),
        "--image",
        str(image),
    ]
    assert provision_device(arguments) == UNCHANGED
    assert "does not stand in the data partition" in capfd.readouterr().err
    assert image.read_bytes() == before
