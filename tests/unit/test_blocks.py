"""Files in blocks: interrupted, resumed, out of turn, damaged, bounded."""

from __future__ import annotations

import hashlib
import os
import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.command import BlocksGetArgs, BundlePutArgs
from gateway.errors import ControlError
from gateway.sync import blocks
from gateway.sync.blocks import Blobs, Bundles

DATA = random.Random(5).randbytes(10_000)
SHA = hashlib.sha256(DATA).hexdigest()


def block(offset: int, size: int = 1000, data: bytes = DATA, sha: str = SHA) -> BundlePutArgs:
    return BundlePutArgs(sha, len(data), offset, data[offset : offset + size])


def test_a_transfer_that_was_interrupted_goes_on_where_it_was(tmp_path: Path) -> None:
    for offset in range(0, 4000, 1000):
        assert Bundles(tmp_path).put(block(offset)).have == offset + 1000
    again = Bundles(tmp_path)  # another process
    assert again.put(BundlePutArgs(SHA, len(DATA))).have == 4000
    assert again.put(block(0)).have == 4000  # sent again: not taken twice
    assert again.put(block(7000)).have == 4000  # not its turn
    for offset in range(4000, 9000, 1000):
        assert again.put(block(offset)).path == ""
    done = again.put(block(9000))
    assert Path(done.path).read_bytes() == DATA and Path(done.path).name == f"{SHA}.octo"
    assert again.put(BundlePutArgs(SHA, len(DATA))) == done
    assert [path.name for path in tmp_path.iterdir()] == [f"{SHA}.octo"]


@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(1, 4000)), max_size=40))
def test_blocks_in_any_order_give_the_right_file_or_none(order: list[tuple[int, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        bundles = Bundles(Path(folder))
        for offset, size in order:
            have = bundles.put(block(offset, size))
            assert bool(have.path) == bundles.path(SHA).exists()
        while not (have := bundles.put(BundlePutArgs(SHA, len(DATA)))).path:
            bundles.put(block(have.have, 4000))
        assert Path(have.path).read_bytes() == DATA


def test_a_damaged_transfer_is_begun_anew(tmp_path: Path) -> None:
    bundles = Bundles(tmp_path)
    bundles.put(block(0, 5000))
    (tmp_path / f"{SHA}.part").write_bytes(b"\0" * 5000)  # what a power cut may leave
    with pytest.raises(ControlError, match=r"what came has sha256 .* \(send it again from the start\)"):
        bundles.put(block(5000, 5000))
    assert bundles.put(BundlePutArgs(SHA, len(DATA))).have == 0
    assert not bundles.path(SHA).exists()


def test_more_than_was_told_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match="more than the size"):
        Bundles(tmp_path).put(BundlePutArgs(SHA, 10, 0, b"x" * 11))


def test_room_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundles = Bundles(tmp_path)
    for i in range(4):
        bundles.put(BundlePutArgs(f"{i}" * 64, 100, 0, b"x" * 10))
    assert len(list(tmp_path.glob("*.part"))) == blocks.MAX_PARTS
    monkeypatch.setattr(blocks, "MAX_BUNDLES", 115)
    with pytest.raises(ControlError, match=r"bundle\.drop"):
        bundles.put(block(0))
    monkeypatch.undo()
    monkeypatch.setattr(blocks, "MIN_FREE", 1 << 60)
    with pytest.raises(ControlError, match="disk has no room"):
        bundles.put(block(0))


def test_dropping(tmp_path: Path) -> None:
    bundles = Bundles(tmp_path)
    bundles.put(block(0, 10_000))
    bundles.drop(SHA)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ControlError, match="no bundle"):
        bundles.drop(SHA)


def test_blobs_are_read_in_blocks_and_the_oldest_goes(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    kept = blobs.keep(DATA, "image/jpeg", "cam", 7)
    assert (kept.blob, kept.size, kept.seq) == (SHA, len(DATA), 7)
    parts = [blobs.get(BlocksGetArgs(SHA, at, 4096)) for at in range(0, len(DATA), 4096)]
    assert b"".join(part.data for part in parts) == DATA and parts[0].size == len(DATA)
    assert blobs.get(BlocksGetArgs(SHA, 1 << 30, 10)).data == b""
    for i in range(blocks.MAX_BLOBS):
        blobs.keep(bytes([i]), "x/y")
    with pytest.raises(ControlError, match="not here any more"):
        blobs.get(BlocksGetArgs(SHA))
    assert len(list(tmp_path.iterdir())) == blocks.MAX_BLOBS
    with pytest.raises(ControlError, match="more than can be fetched"):
        blobs.keep(b"x" * (blocks.MAX_BLOB + 1), "x/y")


@pytest.mark.parametrize("years", [-20, 20])
def test_the_oldest_goes_first_whatever_the_clock_says(tmp_path: Path, years: int) -> None:
    """Each file is dated by a clock that steps by years before the next one comes."""
    bundles, kept = Bundles(tmp_path / "bundles"), Blobs(tmp_path / "blobs")

    def stepped(path: Path, i: int) -> None:
        at = 2_000_000_000 + i * years * 365 * 86_400 // 20
        os.utime(path, (at, at))

    shas = [hashlib.sha256(bytes([i])).hexdigest() for i in range(blocks.MAX_PARTS + 2)]
    for i, sha in enumerate(shas):
        bundles.put(block(0, sha=sha))
        stepped(tmp_path / "bundles" / f"{sha}.part", i)
    assert {path.stem for path in (tmp_path / "bundles").iterdir()} == set(shas[-blocks.MAX_PARTS :])
    made = []
    for i in range(blocks.MAX_BLOBS + 3):
        made.append(kept.keep(bytes([i]), "text/plain").blob)
        stepped(tmp_path / "blobs" / made[-1], i)
    assert {path.name for path in (tmp_path / "blobs").iterdir()} == set(made[-blocks.MAX_BLOBS :])


def test_what_is_remembered_of_the_order_is_bounded(tmp_path: Path) -> None:
    kept = Blobs(tmp_path)
    names = [kept.keep(i.to_bytes(4, "little"), "text/plain").blob for i in range(150)]
    assert len(kept._turns._turn) <= 100
    assert {path.name for path in tmp_path.iterdir()} == set(names[-blocks.MAX_BLOBS :])
