"""What an image is made of: boards, partitions, counters, initrd, module lists, locks, parts. Nothing is built."""

import json
import stat
from pathlib import Path

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from firmware_tools import board as boards
from firmware_tools.imaging import cpio, debian, disk, kernel, papers, signing, wheels
from gateway.errors import ConfigError

SIZES = {"boot": 16, "ubootenv": 1, "rootA": 768, "rootB": 768, "data": 64}
TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters="="), min_size=1, max_size=20)
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", boards.names())
def test_every_board_of_the_repository(name: str) -> None:
    board = boards.load(name)
    assert board.name == name
    assert tuple(board.sizes_mib()) == ("boot", "ubootenv", "rootA", "rootB", "data")
    assert all((ROOT / "firmware_tools/rootfs" / overlay).is_dir() for overlay in board.overlays)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"title = 3", "title"),
        (b'title = "x"', "cmdline"),
        (b'title = "x"\ncmdline = "a"\nslot_mb = 3', "slot_mb"),
        (b'title = "x"\ncmdline = "a; reset"', "cmdline"),
        (b'title = "x"\ncmdline = "a"\nslot_mib = 0', "slot_mib"),
        (b'title = "x"\ncmdline = "a"\npackages = ["-o"]', "packages"),
        (b"title = ", "board 'mine'"),
        (b"\xff", "board 'mine'"),
        (b"#" * (boards.MAX_BYTES + 1), "larger"),
    ],
)
def test_a_board_that_is_wrong_is_named(content: bytes, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        boards.parse(content, "mine")


@given(st.binary(max_size=400))
def test_any_bytes_are_a_board_or_an_error(content: bytes) -> None:
    try:
        boards.parse(content, "any")
    except ConfigError:
        return
    raise AssertionError("hypothesis found a board by chance")


def test_a_board_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="there are: qemu"):
        boards.load("toaster")


@given(st.lists(st.integers(1, 4096), min_size=1, max_size=12))
def test_partitions_touch_but_do_not_overlap(sizes: list[int]) -> None:
    parts = disk.plan("qemu", {f"p{number}": size for number, size in enumerate(sizes)})
    at = disk.MIB
    for part, size in zip(parts, sizes, strict=True):
        assert (part.offset, part.size) == (at, size * disk.MIB)
        at += part.size
    assert disk.total(parts) == at + disk.MIB
    assert len({part.uuid for part in parts}) == len(parts)


def test_the_same_board_has_the_same_partitions_and_another_has_others() -> None:
    assert disk.plan("qemu", SIZES) == disk.plan("qemu", SIZES)
    assert disk.plan("qemu", SIZES)[0].uuid != disk.plan("rpi4", SIZES)[0].uuid
    with pytest.raises(ValueError, match="data"):
        disk.plan("qemu", {**SIZES, "data": 0})


def test_the_table_says_what_the_plan_says() -> None:
    lines = disk.table("qemu", disk.plan("qemu", SIZES)).splitlines()
    assert lines[0] == "label: gpt"
    assert 'name="rootB"' in lines[-2]
    assert lines[3].startswith("start=2048, size=32768, ")


def test_a_hybrid_mbr_keeps_gpt_first() -> None:
    protective = bytes(446) + b"\0\0\2\0\xee\xff\xff\xff\1\0\0\0\xff\xff\xff\xff" + bytes(48) + b"\x55\xaa"
    sector = disk.hybrid_mbr(protective, disk.plan("rpi3", SIZES)[0])
    assert len(sector) == 512
    assert sector[:462] == protective[:462]
    assert sector[466] == 0x0C
    assert int.from_bytes(sector[470:474], "little") == 2048
    assert int.from_bytes(sector[474:478], "little") == 32768
    with pytest.raises(ValueError, match="GPT"):
        disk.hybrid_mbr(bytes(512), disk.plan("rpi3", SIZES)[0])


@given(st.dictionaries(TEXT, TEXT, max_size=20))
def test_the_environment_comes_back(variables: dict[str, str]) -> None:
    raw = disk.environment(variables)
    assert len(raw) == disk.ENV_BYTES
    assert disk.parse_environment(raw) == variables


@given(st.binary(max_size=64), st.integers(0, disk.ENV_BYTES - 1), st.integers(1, 255))
def test_a_damaged_environment_is_refused(junk: bytes, at: int, flip: int) -> None:
    raw = bytearray(disk.environment({"BOOT_ORDER": "A B"}))
    raw[at] ^= flip
    for wrong in (bytes(raw), junk):
        with pytest.raises(ValueError, match="environment"):
            disk.parse_environment(wrong)


@pytest.mark.parametrize("variables", [{"a=b": "c"}, {"": "c"}, {"a": "b\0c"}, {"a": "b" * disk.ENV_BYTES}])
def test_what_does_not_fit_the_environment(variables: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="environment"):
        disk.environment(variables)


def test_holes_stay_holes(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"")
    with (tmp_path / "source").open("r+b") as source, (tmp_path / "out").open("w+b") as out:
        source.truncate(4 << 20)
        source.seek(2 << 20)
        source.write(b"x" * 4096)
        source.flush()
        out.truncate(8 << 20)
        disk.copy_sparse(source, out, 1 << 20)
        assert out.seek(3 << 20) and out.read(4096) == b"x" * 4096
    assert (tmp_path / "out").stat().st_blocks * 512 < 1 << 20


@given(st.dictionaries(st.from_regex(r"[a-z]{1,8}(/[a-z]{1,8})?", fullmatch=True), st.binary(max_size=300), max_size=8))
def test_an_archive_has_what_was_put_in(files: dict[str, bytes]) -> None:
    packed = cpio.archive([cpio.file(name, content) for name, content in files.items()])
    assert read_newc(packed) == [*files.items(), ("TRAILER!!!", b"")]


def read_newc(packed: bytes) -> list[tuple[str, bytes]]:
    """As the kernel reads it: thirteen numbers of eight hexadecimal digits after the magic."""
    found, at = [], 0
    while at < len(packed):
        assert packed[at : at + 6] == b"070701"
        fields = [int(packed[at + 6 + 8 * index : at + 14 + 8 * index], 16) for index in range(13)]
        size, name_size = fields[6], fields[11]
        name = packed[at + 110 : at + 110 + name_size]
        assert name[-1:] == b"\0"
        start = at + (110 + name_size + 3) // 4 * 4
        found.append((name[:-1].decode(), packed[start : start + size]))
        at = start + (size + 3) // 4 * 4
    return found


def test_what_cannot_be_in_an_archive() -> None:
    for name in ("/absolute", "", "a\0b", "x" * 5000):
        with pytest.raises(ValueError, match="cannot be a name"):
            cpio.archive([cpio.file(name, b"")])
    assert stat.S_ISLNK(cpio.link("bin/sh", "busybox").mode)


DEPENDENCIES = kernel.parse_dependencies(
    "kernel/fs/ext4/ext4.ko.xz: kernel/fs/jbd2/jbd2.ko.xz kernel/lib/crc16.ko.xz\n"
    "kernel/fs/jbd2/jbd2.ko.xz:\nkernel/lib/crc16.ko.xz:\nkernel/drivers/usb/serial/ftdi_sio.ko.xz:\n"
)


def test_modules_bring_what_they_need() -> None:
    assert kernel.select(DEPENDENCIES, ["fs/ext4/*"]) == (
        "kernel/fs/ext4/ext4.ko.xz",
        "kernel/fs/jbd2/jbd2.ko.xz",
        "kernel/lib/crc16.ko.xz",
    )
    assert kernel.select(DEPENDENCIES, ["ftdi_sio"]) == ("kernel/drivers/usb/serial/ftdi_sio.ko.xz",)
    assert [kernel.bare_name(name) for name in kernel.load_order(DEPENDENCIES, ["ext4", "built-in"])] == [
        "crc16",
        "jbd2",
        "ext4",
    ]


@given(st.text(max_size=200))
def test_any_text_is_a_list_of_modules_or_an_error(text: str) -> None:
    try:
        found = kernel.parse_dependencies(text)
    except ValueError:
        return
    assert all(found)


@given(st.text(max_size=300))
def test_any_text_is_dpkg_status_or_an_error(text: str) -> None:
    try:
        found = debian.parse_status(text)
    except ValueError:
        return
    assert all(stanza for stanza in found)


def test_the_status_of_dpkg() -> None:
    text = "Package: a\nStatus: install ok installed\nVersion: 1:2-3\nDescription: x\n more\n\nPackage: b\nVersion: 1\nStatus: deinstall ok config-files\n"
    parts = papers.debian_parts(debian.parse_status(text))
    assert parts == [papers.Part("deb", "a", "1:2-3")]
    assert papers.purl(parts[0], "trixie") == "pkg:deb/debian/a@1%3A2-3?arch=arm64&distro=trixie"


def test_the_list_of_parts_names_each_once_and_is_always_the_same() -> None:
    parts = [papers.Part("pypi", "numpy", "2.0", "BSD-3-Clause"), papers.Part("deb", "a+b", "1")]
    first = papers.sbom(parts, image="octogate-qemu", version="1", suite="trixie", epoch=0)
    again = papers.sbom([*reversed(parts), parts[0]], image="octogate-qemu", version="1", suite="trixie", epoch=0)
    assert papers.dumps(first) == papers.dumps(again)
    identities = [package["SPDXID"] for package in first["packages"]]
    assert len(identities) == len(set(identities)) == 3
    assert {item["relatedSpdxElement"] for item in first["relationships"]} == set(identities)
    assert first["creationInfo"]["created"] == "1970-01-01T00:00:00Z"


def test_the_manifest_knows_the_image_again(tmp_path: Path) -> None:
    image = tmp_path / "x.img"
    image.write_bytes(b"abc")
    parts = disk.plan("qemu", SIZES)
    said = papers.manifest(
        *(image, parts), board="qemu", suite="trixie", version="1", gateway="0.1.0", epoch=7, versions={}, root_bytes=1
    )
    assert said["digest"] == "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert [part["name"] for part in said["partitions"]] == list(SIZES)
    assert list(json.loads(papers.dumps(said))) == sorted(said)


@pytest.mark.parametrize("suite", sorted(debian.SUITES))
def test_the_locks_have_hashes_and_no_markers(suite: str) -> None:
    text = (ROOT / f"requirements/image-{suite}.txt").read_text()
    binary, source = wheels.split_lock(text)
    assert source.startswith("cobs==")
    assert "\ncobs==" not in binary and "numpy==" in binary
    pins = [line for line in text.splitlines() if "==" in line]
    assert all(line.endswith("\\") and ";" not in line for line in pins)  # pip would ask its own Python for a marker
    assert text.count("--hash=sha256:") >= len(pins)


def test_the_keys_for_updates_are_made_once(tmp_path: Path) -> None:
    keys = signing.update_keys(tmp_path / "update")
    first = keys.key.read_bytes()
    assert signing.update_keys(tmp_path / "update") == keys and keys.key.read_bytes() == first
    assert stat.S_IMODE(keys.key.stat().st_mode) == 0o600
    ca, signer = (x509.load_pem_x509_certificate(path.read_bytes()) for path in (keys.ca, keys.certificate))
    signer.verify_directly_issued_by(ca)
    assert not signer.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_classes_of_devices_that_are_plugged_in_later_have_their_driver_at_boot() -> None:
    system = ROOT / "firmware_tools/rootfs/all/usr/lib"
    service = (system / "systemd/system/octogate.service").read_text()
    loaded = kernel.parse_patterns((system / "modules-load.d/octogate.conf").read_text())
    for name, module in (("char-ttyUSB", "usbserial"), ("char-ttyACM", "cdc-acm"), ("char-video4linux", "videodev")):
        assert f"DeviceAllow={name} rw\n" in service and module in loaded


def test_data_ranges_of_a_file_without_holes() -> None:
    with open("/proc/self/exe", "rb") as file:
        ranges = list(disk.data_ranges(file))
    assert ranges and ranges[0][0] == 0
