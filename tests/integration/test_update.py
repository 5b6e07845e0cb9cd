"""Updates by the real rauc and the real ssh. What RAUC does on a gateway is a script here, named so; tests/image has it real."""

import asyncio
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from firmware_tools import update, update_ssh
from firmware_tools.disk.source import open_image
from firmware_tools.update_bundle import make
from gateway.errors import UplinkError
from sdk.provision_ssh import Ssh
from tests.integration.harness import config, daemon, node
from tests.integration.mosquitto import SECRET
from tests.integration.real_images import LAYOUT, MIB, build, program, run
from tests.integration.sites import OPERATOR, site
from tests.integration.sshd import sshd


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("image"))


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_keys(tmp_path_factory.mktemp("keys"))


def make_keys(folder: Path) -> Path:
    """As ./inv image.build makes them: an authority, and a signer of its."""
    curve: list[str | Path] = ["-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    run(
        "openssl", "req", "-x509", "-newkey", "ec", *curve, "-keyout", folder / "ca.key", "-out", folder / "ca.pem",
        "-subj", "/CN=updates", "-days", "30",
    )  # fmt: skip
    request = folder / "request"
    run(
        "openssl",
        "req",
        "-new",
        "-newkey",
        "ec",
        *curve,
        "-keyout",
        folder / "signer.key",
        "-out",
        request,
        "-subj",
        "/CN=signer",
    )
    signed: list[str | Path] = ["-CA", folder / "ca.pem", "-CAkey", folder / "ca.key", "-CAcreateserial", "-days", "30"]
    run("openssl", "x509", "-req", "-in", request, *signed, "-out", folder / "signer.pem")
    return folder


def info(bundle: Path, keys: Path) -> dict[str, object]:
    said = run("rauc", f"--keyring={keys}/ca.pem", "info", "--output-format=json", bundle)
    found = json.loads(said)
    assert isinstance(found, dict)
    return found


def unpack(bundle: Path, keys: Path, folder: Path) -> Path:
    """The root file system in a bundle."""
    run("rauc", f"--keyring={keys}/ca.pem", "extract", bundle, folder)
    return folder / "rootfs.ext4"


def test_a_bundle_has_the_images_root(packed: Path, keys: Path, tmp_path: Path) -> None:
    made = make(open_image(packed), keys, out=tmp_path / "update.raucb")
    assert (made.compatible, made.version) == ("octogate-qemu", "v1")
    told = info(made.path, keys)
    assert (told["compatible"], told["version"]) == ("octogate-qemu", "v1")
    assert ("block-hash-index" in json.dumps(told)) == made.adaptive
    root = unpack(made.path, keys, tmp_path / "out").read_bytes()
    at, size = (MIB * number for number in LAYOUT["rootA"])
    assert root == packed.with_suffix("").read_bytes()[at : at + size]
    other = make_keys(tmp_path)
    refused = subprocess.run(
        [program("rauc"), f"--keyring={other}/ca.pem", "info", made.path], capture_output=True, check=False
    )
    assert refused.returncode != 0, "another authority does not know it"


def test_models_go_with_it_and_make_another_build_of_it(
    packed: Path, keys: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "state.octo"
    model.write_bytes(b"a model" * 1000)
    bundle = tmp_path / "new.raucb"
    arguments = ["bundle", "--image", str(packed), "--keys", str(keys), "--out", str(bundle), "--models", str(model)]
    assert update.main(arguments) == update.DONE
    assert "for octogate-qemu, version v1+" in capfd.readouterr().out
    root = unpack(bundle, keys, tmp_path / "out")
    run("e2fsck", "-fn", root)
    assert run("debugfs", "-R", "cat /usr/share/octogate/bundles/state.octo", root) == model.read_bytes()
    release = run("debugfs", "-R", "cat /usr/lib/os-release", root).decode()
    assert f"IMAGE_VERSION={info(bundle, keys)['version']}\n" in release, "the gate of health knows builds by it"
    assert "ID=debian\n" in release


@pytest.mark.parametrize(
    ("more", "complaint"),
    [(["--keys", "none"], "signer.key: missing"), (["--version", "a b"], "is no version"),
     (["--models", "none.octo"], "none.octo: No such file"), (["--image", "none.img"], "none.img.bmap: missing")],
)  # fmt: skip
def test_what_is_missing_is_said(
    packed: Path, keys: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], more: list[str], complaint: str
) -> None:
    arguments = ["bundle", "--image", str(packed), "--keys", str(keys), "--out", str(tmp_path / "out.raucb"), *more]
    assert update.main(arguments) == update.UNCHANGED
    assert complaint in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


# --- over SSH -------------------------------------------------------------------------------------------------------


class Simulated:
    """A host whose `rauc`, `systemctl` and boot id are scripts; its files and its sshd are real."""

    def __init__(self, ssh: Ssh, folder: Path) -> None:
        self.folder, self.state = folder, folder / "state"
        self.state.mkdir()
        (folder / "bin").mkdir()
        self.set(boot="1", booted="A", good="good")
        status = '{"booted":"%s","slots":[{"rootfs.0":{"state":"booted","boot_status":"%s"}},{"rootfs.1":{"state":"inactive"}}]}'
        self.script("rauc", (
            'case "$1" in\n'
            f'status) printf \'{status}\' "$(cat {self.state}/booted)" "$(cat {self.state}/good)" ;;\n'
            f'install) echo "  0% Installing"; echo " 40% Checking bundle"; cp "$2" {self.state}/installed;\n'
            f'  if [ -e {self.state}/refuse ]; then echo "LastError: signature verification failed"; exit 1; fi;\n'
            '  echo "100% Installing done."; echo "Installing succeeded" ;;\nesac\n'
        ))  # fmt: skip
        self.script("systemctl", f"cp {self.state}/after/* {self.state}/\n")
        self.script("cat", f'case "$1" in /proc/*) exec /bin/cat {self.state}/boot ;; *) exec /bin/cat "$@" ;; esac\n')
        self.gateway = update_ssh.Gateway(_Prefixed(ssh, folder / "bin"), str(folder / "incoming"), poll_s=0.05)

    def script(self, name: str, text: str) -> None:
        (self.folder / "bin" / name).write_text("#!/bin/sh\n" + text)
        (self.folder / "bin" / name).chmod(0o755)

    def set(self, *, then: bool = False, **files: str) -> None:
        folder = self.state / "after" if then else self.state
        folder.mkdir(exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text)


class _Prefixed(Ssh):
    """Finds the simulated programs first."""

    def __init__(self, ssh: Ssh, folder: Path) -> None:
        super().__init__(ssh.host, ssh.options[2:])
        self._folder = folder

    def command(self, *command: str) -> list[str]:
        return super().command("env", f"PATH={self._folder}:/usr/sbin:/usr/bin:/sbin:/bin", *command)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Simulated]:
    with sshd(tmp_path / "sshd") as options:
        yield Simulated(Ssh("127.0.0.1", options), tmp_path)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    path = tmp_path / "update.raucb"
    path.write_bytes(bytes(range(256)) * 40_000)
    return path


def test_a_transfer_goes_on_where_it_ended(host: Simulated, bundle: Path) -> None:
    whole = Path(host.gateway.send(bundle))
    assert whole.read_bytes() == bundle.read_bytes()
    part = whole.with_suffix(".part")
    whole.rename(part)
    with part.open("r+b") as file:
        file.truncate(7_000_001)
    (whole.parent / "older.raucb").write_text("of an earlier update")
    shown: list[int] = []
    host.gateway.send(bundle, lambda _, done, __: shown.append(done))
    assert shown[0] == 7_000_001 + update_ssh.CHUNK, "not from the beginning"
    assert whole.read_bytes() == bundle.read_bytes()
    assert list(whole.parent.iterdir()) == [whole]
    shown.clear()
    host.gateway.send(bundle, lambda _, done, __: shown.append(done))
    assert shown == [bundle.stat().st_size], "nothing is sent twice"


def test_what_has_arrived_and_is_something_else_is_sent_anew(host: Simulated, bundle: Path) -> None:
    whole = Path(host.gateway.send(bundle))
    part = whole.with_suffix(".part")
    whole.rename(part)
    part.write_bytes(b"x" * 5000)
    host.gateway.send(bundle)
    assert whole.read_bytes() == bundle.read_bytes()


def test_an_update_is_installed_and_waited_for(host: Simulated, bundle: Path) -> None:
    host.set(then=True, boot="2", booted="B", good="good")
    shown: list[tuple[str, int]] = []
    booted = host.gateway.install(host.gateway.send(bundle), lambda stage, done, _: shown.append((stage, done)))
    assert (host.state / "installed").read_bytes() == bundle.read_bytes()
    assert shown[-2:] == [("installing", 40), ("installing", 100)]
    assert host.gateway.restart(booted, 60) == "B"
    assert list((host.folder / "incoming").iterdir()) == []


def test_a_rollback_is_told(host: Simulated, bundle: Path) -> None:
    host.set(then=True, boot="2", booted="A", good="good")
    booted = host.gateway.install(host.gateway.send(bundle))
    with pytest.raises(update_ssh.RolledBack, match="runs slot A again: the update did not become healthy"):
        host.gateway.restart(booted, 60)


@pytest.mark.parametrize(
    ("after", "why"),
    [({"boot": "1"}, "it has not gone down yet"), ({"boot": "2", "booted": "B", "good": "bad"}, "not marked good yet")],
)
def test_who_is_not_heard_of_is_told(host: Simulated, bundle: Path, after: dict[str, str], why: str) -> None:
    host.set(then=True, **after)
    booted = host.gateway.install(host.gateway.send(bundle))
    with pytest.raises(update_ssh.Unheard, match=why):
        host.gateway.restart(booted, 3)


def test_what_rauc_refuses_is_told(host: Simulated, bundle: Path) -> None:
    host.set(refuse="")
    with pytest.raises(UplinkError, match="rauc install: LastError: signature verification failed"):
        host.gateway.install(host.gateway.send(bundle))


def test_the_command_says_where_it_is(host: Simulated, bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert update.main(["push", str(bundle)]) == update.UNCHANGED
    assert "--host [USER@]HOST, or --gateway" in capfd.readouterr().err
    assert update.main(["push", str(bundle), "--host", "127.0.0.1", "--ssh=-oPort=1"]) == update.REFUSED
    assert "Connection refused" in capfd.readouterr().err


# --- by the broker --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["iotcore", "mosquitto"])  # the latter by TLS, with an access list
def test_an_update_comes_by_the_broker(
    tmp_path: Path, bundle: Path, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """A real daemon and broker; that the machine has the image's installer is simulated by a file."""
    (tmp_path / "password").write_text(f"{SECRET}\n")

    async def scenario() -> None:
        with site(kind, tmp_path) as at:
            where = ["--gateway", "test", "--broker", f"127.0.0.1:{at.port}"]
            where += (
                ["--user", OPERATOR, "--password-file", f"{tmp_path}/password", "--broker-ca", str(at.ca)]
                if at.ca
                else []
            )
            async with node(tmp_path), daemon(tmp_path, config(tmp_path, more=at.table)) as gateway:
                await gateway.until(lambda s: s.uplink.state == "up", "up")
                assert await asyncio.to_thread(update.main, ["push", str(bundle), *where]) == update.REFUSED
                assert "does not run Octogate's image" in capfd.readouterr().err
                await gateway.end()
                gateway.module = "tests.integration.installing"
                await gateway.start()
                await gateway.until(lambda s: s.uplink.state == "up", "up")
                assert await asyncio.to_thread(update.main, ["push", str(bundle), *where]) == update.DONE
                assert (tmp_path / "data/updates/install.raucb").read_bytes() == bundle.read_bytes()
                async with at.remote() as remote:
                    assert (await remote.update_state()).state == "installing"

    asyncio.run(scenario())
    assert "test: installing; it starts anew by itself" in capfd.readouterr().out


# --- on a stick -----------------------------------------------------------------------------------------------------


def test_a_stick_is_known_by_its_label(bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "folder").mkdir()
    assert update.main(["usb", str(bundle), "--to", str(tmp_path / "folder")]) == update.UNCHANGED
    assert "nothing is mounted there" in capfd.readouterr().err
    for label, code in (("OTHER", update.UNCHANGED), ("OCTOGATE", update.DONE)):
        if not (folder := mounted(tmp_path, label)):
            print("this machine mounts no loop devices: nothing more was tested of the stick")
            return
        try:
            assert update.main(["usb", str(bundle), "--to", str(folder)]) == code, capfd.readouterr().err
            there = folder / "octogate/update.raucb"
            assert there.exists() == (code == update.DONE)
            assert not there.exists() or there.read_bytes() == bundle.read_bytes()
        finally:
            run("umount", folder)
    assert "fatlabel" in capfd.readouterr().err


def mounted(tmp_path: Path, label: str) -> Path | None:
    """A file system with this label, mounted by a loop device."""
    image, folder = tmp_path / f"{label}.img", tmp_path / label
    with image.open("wb") as file:
        file.truncate(32 * MIB)
    run("mkfs.ext4", "-q", "-F", "-L", label, image)
    folder.mkdir()
    done = subprocess.run(["mount", "-o", "loop", image, folder], capture_output=True, check=False)
    return None if done.returncode else folder
