"""Fetching members of packages: pins, cache, errors; with archives made here instead of a network."""

import hashlib
import io
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from sdk import registry
from sdk.registry import Client, Member, Package, RegistryError, Say, fetch, locked

CONTENT = b"some readings\n" * 50
PYPI = Package("pypi", "some-data", "1.0")


def member(path: str = "data/a.ts", content: bytes = CONTENT) -> Member:
    return Member(path, len(content), hashlib.sha256(content).hexdigest())


def wheel(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def tarball(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def client(name: str, archive: bytes, calls: list[str]) -> Client:
    def download(package: Package, folder: Path, say: Say) -> None:
        calls.append(package.name)
        (folder / name).write_bytes(archive)

    return download


def test_members_are_cached_and_the_second_call_needs_no_client(tmp_path: Path) -> None:
    calls: list[str] = []
    clients = {"pypi": client("x.whl", wheel({"data/a.ts": CONTENT, "other": b"1"}), calls)}
    first = fetch(PYPI, [member()], cache=tmp_path, clients=clients)
    assert first == {"data/a.ts": tmp_path / "some-data-1.0" / "data/a.ts"}
    assert first["data/a.ts"].read_bytes() == CONTENT
    assert fetch(PYPI, [member()], cache=tmp_path, clients={}) == first
    assert calls == ["some-data"]
    # no archive, no scratch folder, no half-written file stays
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [first["data/a.ts"]]


def test_a_damaged_cache_is_fetched_again(tmp_path: Path) -> None:
    calls: list[str] = []
    clients = {"pypi": client("x.whl", wheel({"data/a.ts": CONTENT}), calls)}
    file = fetch(PYPI, [member()], cache=tmp_path, clients=clients)["data/a.ts"]
    file.write_bytes(CONTENT[:-1] + b"!")
    fetch(PYPI, [member()], cache=tmp_path, clients=clients)
    assert file.read_bytes() == CONTENT
    assert len(calls) == 2


def test_a_tarball_of_npm_with_its_pin(tmp_path: Path) -> None:
    archive = tarball({"package/model.bin": CONTENT})
    package = Package("npm", "@some/model", "2.0", hashlib.sha256(archive).hexdigest())
    clients = {"npm": client("some-model-2.0.tgz", archive, [])}
    files = fetch(package, [member("package/model.bin")], cache=tmp_path, clients=clients)
    assert files["package/model.bin"] == tmp_path / "some-model-2.0" / "package/model.bin"
    wrong = Package("npm", "@some/model", "2.1", "0" * 64)
    with pytest.raises(RegistryError, match="not the pinned 0000"):
        fetch(wrong, [member("package/model.bin")], cache=tmp_path, clients=clients)
    assert not (tmp_path / "some-model-2.1").exists()


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({"data/b.ts": CONTENT}, "cannot read data/a.ts"),
        ({"data/a.ts": CONTENT[:-1] + b"!"}, "not the pinned file"),
        ({"data/a.ts": CONTENT + b"more"}, "not the pinned file"),
        ({"data/a.ts": bytes(100 << 20)}, "not the pinned file"),  # a bomb is read no further than the pin
    ],
)
def test_what_does_not_fit_the_pin_is_refused(tmp_path: Path, files: dict[str, bytes], complaint: str) -> None:
    clients = {"pypi": client("x.whl", wheel(files), [])}
    with pytest.raises(RegistryError, match=complaint):
        fetch(PYPI, [member()], cache=tmp_path, clients=clients)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_no_archive_a_broken_archive_and_no_room_to_write(tmp_path: Path) -> None:
    def nothing(package: Package, folder: Path, say: Say) -> None:
        pass

    with pytest.raises(RegistryError, match="0 archives"):
        fetch(PYPI, [member()], cache=tmp_path, clients={"pypi": nothing})
    with pytest.raises(RegistryError, match=r"cannot read data/a\.ts"):
        fetch(PYPI, [member()], cache=tmp_path, clients={"pypi": client("x.whl", b"no zip", [])})
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RegistryError, match=r"cannot keep some-data 1\.0"):
        fetch(PYPI, [member()], cache=tmp_path / "file" / "below", clients={})


def test_a_client_that_fails_is_told_with_the_package_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # pip as it is without a network, only faster
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    package = Package("pypi", "sktime", "1.2.0")
    with pytest.raises(RegistryError, match=r"cannot fetch sktime 1\.2\.0 \(PyPI\).*reachable"):
        fetch(package, [member()], cache=tmp_path)


def test_npm_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RegistryError, match=r"needs npm.*apt-get install npm"):
        fetch(Package("npm", "@some/model", "2.0", "0" * 64), [member()], cache=tmp_path)


def test_the_lock_names_each_package_with_its_hash(tmp_path: Path) -> None:
    assert "--hash=sha256:" in locked(Package("pypi", "sktime", "1.2.0"))
    assert "scikit-image" not in locked(Package("pypi", "sktime", "1.2.0"))
    with pytest.raises(RegistryError, match="sktime==9 is not in"):
        locked(Package("pypi", "sktime", "9"))
    with pytest.raises(RegistryError, match="checkout"):
        locked(PYPI, tmp_path / "none.txt")
    assert "://" not in registry.LOCK.read_text()


def deb(files: dict[str, bytes], folder: Path) -> bytes:
    """A Debian package by Debian's own tool."""
    root = folder / "root"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN" / "control").write_text(
        "Package: some-doc\nVersion: 1\nArchitecture: all\nMaintainer: n <n@example.org>\nDescription: d\n"
    )
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    command = ["dpkg-deb", "--root-owner-group", "-b", str(root), str(folder / "x.deb")]
    subprocess.run(command, check=True, capture_output=True)
    return (folder / "x.deb").read_bytes()


@pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="no dpkg-deb")
def test_members_of_a_debian_package(tmp_path: Path) -> None:
    files = {"usr/share/doc/some/a.jpg": CONTENT, "usr/share/doc/some/b.jpg": CONTENT * 2}
    (tmp_path / "made").mkdir()
    archive = deb(files, tmp_path / "made")
    package = Package("debian", "some-doc", "1", hashlib.sha256(archive).hexdigest())
    clients = {"debian": client("some-doc_1_all.deb", archive, [])}
    wanted = [member(name, data) for name, data in files.items()]
    found = fetch(package, wanted, cache=tmp_path / "cache", clients=clients)
    assert {name: path.read_bytes() for name, path in found.items()} == files
    with pytest.raises(RegistryError, match=r"c\.jpg in it: it is not there"):
        fetch(package, [member("usr/share/doc/some/c.jpg")], cache=tmp_path / "cache", clients=clients)
    # a larger file than was pinned is not read to its end
    with pytest.raises(RegistryError, match="not the pinned file"):
        fetch(package, [member("usr/share/doc/some/b.jpg", CONTENT)], cache=tmp_path / "other", clients=clients)


@pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="no dpkg-deb")
def test_a_debian_package_that_is_none(tmp_path: Path) -> None:
    package = Package("debian", "some-doc", "1", hashlib.sha256(b"no package").hexdigest())
    with pytest.raises(RegistryError, match="cannot unpack it"):
        fetch(package, [member()], cache=tmp_path, clients={"debian": client("x.deb", b"no package", [])})
