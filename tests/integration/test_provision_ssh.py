"""Provisioning a machine over SSH, by the real programs: what differs arrives, whole, once, and nothing is shown."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.errors import UplinkError
from sdk import provision_ssh
from sdk.authority import Authority
from sdk.provision import IdentityTable, Provision, files
from sdk.provision_ssh import Ssh, put
from tests.integration.sshd import sshd


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Ssh]:
    with sshd(tmp_path / "sshd") as options:
        yield Ssh("127.0.0.1", options)


@pytest.fixture
def wanted(tmp_path: Path) -> Provision:
    Authority(tmp_path / "ca").identity("line-1")
    mine = tmp_path / "ca/gateways/line-1"
    table = IdentityTable(key=f"{mine}.key", certificate=f"{mine}.pem", authority=str(tmp_path / "ca/ca.pem"))
    return Provision(gateway="line-1", timezone="UTC", identity=table)


def modes(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): oct(path.stat().st_mode)[-3:] for path in root.rglob("*") if path.is_file()}


def test_it_arrives_whole_and_once(host: Ssh, wanted: Provision, tmp_path: Path) -> None:
    root = tmp_path / "data of it"  # a blank is no reason to fail
    root.mkdir()
    entries = files(wanted)
    told = put(host, entries, root=str(root), dry_run=True, restart=False)
    assert "new      /data/identity/key.pem (secret)" in told
    assert list(root.iterdir()) == []
    assert put(host, entries, root=str(root), restart=False) == told
    assert {path: (root / path[1:]).read_bytes() for path in entries} == {p: e.data for p, e in entries.items()}
    assert modes(root) == {
        "etc/octogate.toml": "644", "etc/timezone": "644", "identity/authority.pem": "640",
        "identity/cert.pem": "640", "identity/id": "640", "identity/key.pem": "640",
    }  # fmt: skip
    stamps = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert put(host, entries, root=str(root), restart=False) == []
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == stamps
    assert put(host, entries, root=str(root)) == [], "without a difference nothing is started anew"


def test_only_what_differs_is_sent_and_shown(host: Ssh, wanted: Provision, tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    put(host, files(wanted), root=str(root), restart=False)
    (root / "etc/timezone").write_text("Europe/Berlin\n")
    (root / "identity/key.pem").chmod(0o666)
    inode = (root / "etc/octogate.toml").stat().st_ino
    told = put(host, files(wanted), root=str(root), restart=False)
    assert told == [
        "changed  /data/etc/timezone (4 bytes)", "    @@ -1 +1 @@", "    -Europe/Berlin", "    +UTC",
        "mode     /data/identity/key.pem: 666 -> 640",
    ]  # fmt: skip
    assert (root / "etc/octogate.toml").stat().st_ino == inode
    assert (root / "etc/timezone").read_text() == "UTC\n"


def test_a_host_that_refuses_is_told(host: Ssh, wanted: Provision, tmp_path: Path) -> None:
    with pytest.raises(UplinkError, match="mktemp"):
        put(host, files(wanted), root=str(tmp_path / "none"), restart=False)
    (tmp_path / "sshd/authorized_keys").write_text("")
    with pytest.raises(UplinkError, match=r"Permission denied.*is your key on the gateway"):
        put(host, files(wanted), root=str(tmp_path), restart=False)
    (tmp_path / "sshd/known_hosts").write_text("")
    with pytest.raises(UplinkError, match="log in once by hand"):
        put(Ssh("127.0.0.1", [*host.options, "-oStrictHostKeyChecking=yes"]), files(wanted), root=str(tmp_path))


def test_a_cut_between_two_renames_is_mended_by_the_next_run(
    host: Ssh, wanted: Provision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "data"
    root.mkdir()
    whole = provision_ssh._script

    def cut(*args: object) -> str:
        lines = whole(*args).splitlines()  # type: ignore[arg-type]
        first = next(i for i, line in enumerate(lines) if line.startswith("mv "))
        return "\n".join([*lines[: first + 2], "exit 1"])

    with monkeypatch.context() as patch:
        patch.setattr(provision_ssh, "_script", cut)
        with pytest.raises(UplinkError):
            put(host, files(wanted), root=str(root), restart=False)
    assert len(modes(root)) == 2, "two have their place, and no part of one is left"
    put(host, files(wanted), root=str(root), restart=False)
    assert put(host, files(wanted), root=str(root), restart=False) == []


def test_no_secret_is_on_a_command_line(
    host: Ssh, wanted: Provision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    seen: list[object] = []
    real = provision_ssh._run

    def noted(command: list[str], data: bytes = b"") -> object:
        seen.append((command, data.decode()))
        return real(command, data)

    monkeypatch.setattr(provision_ssh, "_run", noted)
    put(host, files(wanted), root=str(tmp_path / "data"), restart=False)
    key = (tmp_path / "ca/gateways/line-1.key").read_text().splitlines()[1]
    assert len(seen) >= 4
    assert key not in json.dumps(seen)
