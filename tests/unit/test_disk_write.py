"""Writing an image: what ends where, what is never taken for complete, and what is noticed when it is read back."""

import os
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware_tools.disk import gpt, write
from firmware_tools.disk.errors import DiskError, VerifyError, WriteError
from firmware_tools.disk.source import Image, copy_out, open_image
from firmware_tools.disk.spans import Span, union, within, without
from tests.unit.disk_images import LAYOUT, MIB, SIZE, make_image


@pytest.fixture
def made(tmp_path: Path) -> tuple[Image, bytes]:
    path, data = make_image(tmp_path)
    return open_image(path), data


def is_a_disk(path: Path) -> bool:
    """Whether anything would take it for one: a table at its beginning, or its copy at its end."""
    data = path.read_bytes()
    return any(data[: write.EDGE]) or any(data[-write.EDGE :])


@pytest.mark.parametrize("compress", [True, False])
def test_a_file_gets_the_image(tmp_path: Path, compress: bool) -> None:
    path, data = make_image(tmp_path, compress=compress)
    shown: list[tuple[str, int, int]] = []
    target = tmp_path / "target"
    write.write(open_image(path), target, replaced={}, progress=lambda *args: shown.append(args))
    assert target.read_bytes() == data
    assert [stage for stage, *_ in shown if stage == "verifying"]
    assert shown[-1][1] == shown[-1][2], "the bar ends full"
    assert all(done <= total for _, done, total in shown)


def test_what_is_not_written_is_what_may_be_old(tmp_path: Path, made: tuple[Image, bytes]) -> None:
    image, data = made
    spans = write.plan(image)
    free = list(without([(0, image.size)], spans))
    assert free, "the image has holes"
    assert not any(any(data[start:end]) for start, end in free)
    sparse = [(LAYOUT[name][0] * MIB, sum(LAYOUT[name]) * MIB) for name in ("ubootenv", "data")]
    assert not [span for start, end in sparse for span in within(free, start, end)], "journal and environment are whole"


def test_a_partition_is_replaced(tmp_path: Path, made: tuple[Image, bytes]) -> None:
    image, data = made
    mine = tmp_path / "mine"
    at, size = (MIB * number for number in LAYOUT["data"])
    mine.write_bytes(os.urandom(size))
    write.write(image, tmp_path / "target", replaced={"data": mine})
    assert (tmp_path / "target").read_bytes() == data[:at] + mine.read_bytes() + data[at + size :]


def test_a_replaced_partition_may_lie_in_the_edges(tmp_path: Path) -> None:
    path, data = make_image(tmp_path, compress=False)
    image = open_image(path)
    ends = Image(path, image.bmap, (gpt.Partition("data", MIB // 2, SIZE - MIB // 2),))
    mine = tmp_path / "mine"
    mine.write_bytes(os.urandom(SIZE - MIB // 2))
    write.write(ends, tmp_path / "target", replaced={"data": mine})
    assert (tmp_path / "target").read_bytes() == data[: MIB // 2] + mine.read_bytes()


def test_a_damaged_image_never_becomes_a_disk(tmp_path: Path) -> None:
    path, data = make_image(tmp_path, compress=False)
    image = open_image(path)
    path.write_bytes(data[: 5 * MIB] + b"!" + data[5 * MIB + 1 :])
    with pytest.raises(WriteError, match="not those of its block map"):
        write.write(image, tmp_path / "target", replaced={})
    assert not is_a_disk(tmp_path / "target")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [(lambda data: data[:-5], "ends at byte"), (lambda data: data + b"\0", "longer than its block map")],
)
def test_an_image_of_another_length_never_becomes_a_disk(tmp_path: Path, change: object, complaint: str) -> None:
    path, data = make_image(tmp_path, compress=False)
    image = open_image(path)
    assert callable(change)
    path.write_bytes(change(data))
    with pytest.raises(WriteError, match=complaint):
        write.write(image, tmp_path / "target", replaced={})
    assert not is_a_disk(tmp_path / "target")


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_cut_off_download_is_no_image(tmp_path: Path, keep: float) -> None:
    folder = tmp_path
    path, _ = make_image(folder)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(DiskError):
        write.write(open_image(path), folder / "target", replaced={})
    assert not (folder / "target").exists() or not is_a_disk(folder / "target")


def test_what_reads_back_as_something_else_is_told(
    tmp_path: Path, made: tuple[Image, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A simulation: the target forgets one byte between the writing and the reading."""
    image, _ = made
    target = tmp_path / "target"
    real = os.posix_fadvise

    def forget(fd: int, *args: int) -> None:
        real(fd, *args)
        os.pwrite(fd, b"\xa5\x5a", 5 * MIB + 77)

    monkeypatch.setattr(os, "posix_fadvise", forget)
    with pytest.raises(VerifyError, match=rf"bytes {5 * MIB} to {6 * MIB - 262144} read back differ"):
        write.write(image, target, replaced={})
    assert not is_a_disk(target)


@pytest.mark.parametrize("number", [*range(1, 15)])
def test_a_write_that_fails_anywhere_leaves_no_disk(
    tmp_path: Path, made: tuple[Image, bytes], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The n-th write and all after it are refused, as by a full or unplugged disk."""
    real, count = os.pwrite, 0

    def refused(fd: int, data: bytes, at: int) -> int:
        nonlocal count
        count += 1
        if count >= number:
            raise OSError(28, "No space left on device")
        return real(fd, data, at)

    monkeypatch.setattr(os, "pwrite", refused)
    with pytest.raises(WriteError, match="No space left"):
        write.write(made[0], tmp_path / "target", replaced={})
    assert not any((tmp_path / "target").read_bytes()[: write.EDGE])


def test_a_short_write_goes_on(tmp_path: Path, made: tuple[Image, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[:100_000], at))
    write.write(made[0], tmp_path / "target", replaced={})
    assert (tmp_path / "target").read_bytes() == made[1]


def test_an_image_without_its_map_or_table_is_refused(tmp_path: Path) -> None:
    path, _ = make_image(tmp_path)
    beside = tmp_path / "octogate-test.img.bmap"
    text = beside.read_bytes()
    beside.unlink()
    with pytest.raises(DiskError, match="bmap: missing"):
        open_image(path)
    beside.write_bytes(text)
    with pytest.raises(DiskError, match="No such file"):
        open_image(tmp_path / "octogate-test.img")
    path.write_bytes(b"not zstd")
    with pytest.raises(DiskError, match="damaged"):
        open_image(path)


def test_a_partition_is_copied_out(tmp_path: Path, made: tuple[Image, bytes]) -> None:
    image, data = made
    for part in image.partitions:
        copy_out(image, part, tmp_path / part.name)
        assert (tmp_path / part.name).read_bytes() == data[part.offset : part.end]
    with pytest.raises(DiskError, match="no partition 'home'"):
        image.partition("home")


spans = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)).map(lambda p: (min(p), max(p))), max_size=8)


@settings(deadline=None)
@given(spans, spans)
def test_spans_are_sets_of_bytes(one: list[Span], two: list[Span]) -> None:
    def numbers(some: list[Span]) -> set[int]:
        return {number for start, end in some for number in range(start, end)}

    joined = union(one)
    assert numbers(joined) == numbers(one)
    assert all(a[1] < b[0] for a, b in pairwise(joined))
    assert numbers(list(without(joined, union(two)))) == numbers(one) - numbers(two)
    assert numbers(list(within(joined, 10, 30))) == numbers(one) & set(range(10, 30))
