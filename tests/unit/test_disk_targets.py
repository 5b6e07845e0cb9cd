"""Which disks may be overwritten, by what lsblk says; and the command's questions."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware_tools.disk import targets
from firmware_tools.disk.__main__ import DONE, INCOMPLETE, UNCHANGED, main
from firmware_tools.disk.errors import DiskError
from tests.unit.disk_images import SIZE, make_image

GB = 10**9


def device(name: str = "sdb", **other: Any) -> dict[str, Any]:
    return {
        "name": name, "path": f"/dev/{name}", "type": "disk", "size": 32 * GB, "model": "Ultra Fit ",
        "vendor": "SanDisk ", "serial": "4C53", "tran": "usb", "rm": True, "hotplug": True, "ro": False,
        "mountpoints": [None], "fstype": None, **other,
    }  # fmt: skip


def part(name: str = "sdb1", **other: Any) -> dict[str, Any]:
    return device(name, **{"type": "part", "tran": None, "model": None, "vendor": None, "serial": None, **other})


def parsed(*found: dict[str, Any]) -> tuple[targets.Device, ...]:
    return targets.parse(json.dumps({"blockdevices": found}).encode())


def test_a_stick_can_be_used() -> None:
    (found,) = parsed(device(children=[part(fstype="vfat")]))
    assert (found.title, found.removable, targets.refusal(found, 4 * GB)) == ("SanDisk Ultra Fit", True, "")


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (device(mountpoints=["/mnt"]), "mounted: /dev/sdb on /mnt"),
        (device(children=[part(mountpoints=[None, "/media/me/USB"])]), "mounted: /dev/sdb1 on /media/me/USB"),
        (device(children=[part(mountpoints=["/"])]), "/dev/sdb1 holds the system (/)"),
        (device(children=[part(mountpoints=["/boot/efi"])]), "/dev/sdb1 holds the system (/boot/efi)"),
        (device(children=[part(mountpoints=["[SWAP]"])]), "/dev/sdb1 holds swap"),
        (device(children=[part(fstype="linux_raid_member")]), "/dev/sdb1 is part of RAID"),
        (device(children=[part(fstype="LVM2_member")]), "/dev/sdb1 is part of LVM"),
        (device(fstype="crypto_LUKS"), "/dev/sdb is part of encryption"),
        (device(children=[part(children=[part("vg-root", type="lvm", mountpoints=["/"])])]), "holds the system (/)"),
        (device(children=[part(children=[part("md0", type="raid1")])]), "/dev/md0 (raid1) is on it"),
        (device(ro=True), "write-protected"),
        (device(size=2 * GB), "2.0 GB, the image needs 4.0 GB"),
        (device("sda", tran="sata", rm=False, hotplug=False), "a built-in disk"),
        (device("nvme0n1", tran="nvme", rm=False, hotplug=False), "a built-in disk"),
        (part(), "of type part, not a whole disk"),
        (device("sr0", type="rom"), "of type rom, not a whole disk"),
    ],
)
def test_why_a_disk_is_refused(found: dict[str, Any], why: str) -> None:
    assert why in targets.refusal(parsed(found)[0], 4 * GB)


def test_a_card_in_a_built_in_reader_counts_as_removable() -> None:
    (found,) = parsed(device("mmcblk0", tran=None, rm=False, hotplug=False))
    assert targets.refusal(found) == ""


def test_the_list_has_removable_disks_only() -> None:
    found = parsed(device(), device("sda", tran="sata", rm=False, hotplug=False), device("sdc", size=0))
    assert [item.path for item, _ in targets.candidates(found, GB)] == ["/dev/sdb"]


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(DiskError, match="lsblk does not know it"):
        targets.check(Path("/dev/sdz"), parsed(device()), GB)
    with pytest.raises(DiskError, match="SanDisk Ultra Fit"):
        targets.check(Path("/dev/sdb"), parsed(device(ro=True)), GB)


@settings(deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_from_lsblk_are_refused_by_name(text: bytes) -> None:
    with pytest.raises(DiskError):
        targets.parse(text)


@pytest.mark.parametrize("text", ['{"blockdevices": [{"name": 5}]}', "[" * 100_000, '{"blockdevices": 1}'])
def test_json_of_another_kind_is_refused(text: str) -> None:
    with pytest.raises(DiskError, match="lsblk says something else"):
        targets.parse(text.encode())


# --- the command ----------------------------------------------------------------------------------------------------


def test_it_writes_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, data = make_image(tmp_path)
    target = tmp_path / "out.img"
    assert main(["--image", str(path), "--to", str(target)]) == DONE
    assert target.read_bytes() == data
    said = capsys.readouterr()
    assert "written and read back" in said.out
    assert "verifying: 50 % of" in said.err, "without a terminal a line now and then"


def test_a_file_that_exists_needs_a_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, data = make_image(tmp_path)
    target = tmp_path / "out.img"
    target.write_text("dear")
    assert main(["--image", str(path), "--to", str(target)]) == UNCHANGED
    assert "--yes" in capsys.readouterr().err
    assert target.read_text() == "dear"
    assert main(["--image", str(path), "--to", str(target), "--yes", "--json"]) == DONE
    assert json.loads(capsys.readouterr().out)["image_size"] == SIZE
    assert target.read_bytes() == data


def test_a_dry_run_touches_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, _ = make_image(tmp_path)
    assert main(["--image", str(path), "--to", str(tmp_path / "out.img"), "--dry-run"]) == DONE
    assert not (tmp_path / "out.img").exists()
    assert "16.8 MB, of which" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("target", "complaint"),
    [("/dev/octogate-none", "no such device"), ("{tmp}", "neither a disk nor a file"), ("{tmp}/a/b", "no such folder"),
     ("{tmp}/octogate-test.img.zst", "the image itself")],
)  # fmt: skip
def test_targets_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str], target: str, complaint: str) -> None:
    path, _ = make_image(tmp_path)
    assert main(["--image", str(path), "--to", target.format(tmp=tmp_path), "--yes"]) == UNCHANGED
    assert complaint in capsys.readouterr().err


def test_an_incomplete_target_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, data = make_image(tmp_path, compress=False)
    path.write_bytes(data[: 5 << 20] + b"!" + data[(5 << 20) + 1 :])
    assert main(["--image", str(path), "--to", str(tmp_path / "out.img")]) == INCOMPLETE
    assert "is not complete and has no partition table" in capsys.readouterr().err
