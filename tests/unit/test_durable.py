"""Files that outlive a power cut are there whole, or as they were."""

import os
import stat
from pathlib import Path

import pytest

from gateway import durable


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    durable.write_whole(path, b"old")
    durable.write_whole(path, b"new", 0o644)
    assert path.read_bytes() == b"new" and stat.S_IMODE(path.stat().st_mode) == 0o644
    assert os.listdir(tmp_path) == ["state.json"]


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_disk_that_refuses_leaves_the_old_file_alone(
    tmp_path: Path, fails: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state.json"
    durable.write_whole(path, b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, fails, full)
        with pytest.raises(OSError, match="No space"):
            durable.write_whole(path, b"new")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["state.json"]


def test_every_step_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}")))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    path = tmp_path / "state.json"
    durable.write_whole(path, b"new")
    assert synced == ["state.json.part", tmp_path.name]
    durable.remove(path)
    assert synced[2:] == [tmp_path.name] and not path.exists()
    durable.remove(path)
    durable.remove(tmp_path / "no" / "folder")
    assert len(synced) == 3, "nothing was there"


def test_what_an_earlier_try_has_left_gives_a_secret_no_other_mode(tmp_path: Path) -> None:
    left = tmp_path / "ca.key.part"
    left.write_bytes(b"half")
    left.chmod(0o644)
    durable.write_whole(tmp_path / "ca.key", b"secret")
    assert (tmp_path / "ca.key").stat().st_mode & 0o777 == 0o600 and not left.exists()
