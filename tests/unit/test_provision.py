"""Provisioning: which files a gateway gets, the authority that knows it, and that nothing secret is shown."""

import datetime
import os
import re
import ssl
import tomllib
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware_tools.provision import DONE, UNCHANGED, main
from gateway.errors import ConfigError
from sdk import authority, provision
from sdk.authority import Authority
from sdk.bundle import generate_key
from sdk.networks import WifiTable, network_files
from sdk.provision import Entry, Present, Provision, changes, digest, files, load

SSH_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFakeFakeFakeFake me@here"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A provision file with everything in it."""
    Authority(tmp_path / "ca").identity("press-4")
    generate_key(tmp_path / "fleet.key", tmp_path / "fleet.pub")
    (tmp_path / "state.octo").write_bytes(b"a bundle")
    (tmp_path / "wifi").write_text("correct horse battery\n")
    (tmp_path / "gateway.toml").write_text(
        '[gateway]\nid = "press-4"\ndata_dir = "/data/spool"\n'
        '[trust]\nkeys = ["/data/identity/trust-fleet.pub"]\n'
        '[[model]]\nname = "state"\nbundle = "/data/bundles/state.octo"\n'
        '[[model]]\nname = "detect"\nbundle = "/usr/share/octogate/bundles/detect.octo"\n'
    )
    (tmp_path / "provision.toml").write_text(
        f"""
gateway = "press-4"
config = "gateway.toml"
timezone = "Europe/Berlin"
trust = ["fleet.pub"]
bundles = ["state.octo"]
ssh_keys = ["{SSH_KEY}"]
[identity]
key = "ca/gateways/press-4.key"
certificate = "ca/gateways/press-4.pem"
authority = "ca/ca.pem"
[broker]
host = "broker.example"
ca = "ca/ca.pem"
[ethernet]
address = "192.168.7.20/24"
gateway = "192.168.7.1"
dns = ["192.168.7.1", "9.9.9.9"]
[[wifi]]
ssid = "Halle 3"
password_file = "wifi"
country = "DE"
"""
    )
    return tmp_path


def test_the_files_of_a_gateway(folder: Path) -> None:
    entries = files(load(folder / "provision.toml"))
    assert {path: oct(entry.mode)[2:] for path, entry in entries.items()} == {
        "/bundles/state.octo": "644",
        "/ssh/authorized_keys": "600",
        "/etc/octogate.toml": "644",
        "/etc/timezone": "644",
        "/identity/authority.pem": "640",
        "/identity/broker-ca.pem": "640",
        "/identity/cert.pem": "640",
        "/identity/id": "640",
        "/identity/key.pem": "640",
        "/identity/trust-fleet.pub": "640",
        "/network/20-wired.network": "644",
        "/network/25-wireless.network": "644",
        "/network/wpa_supplicant-wlan0.conf": "600",
    }
    assert [path for path, entry in entries.items() if entry.secret] == [
        "/identity/key.pem",
        "/network/wpa_supplicant-wlan0.conf",
    ]
    config = tomllib.loads(entries["/etc/octogate.toml"].data.decode())
    assert config["uplink"] == {
        "host": "broker.example",
        "port": 8883,
        "ca_file": "/data/identity/broker-ca.pem",
        "cert_file": "/data/identity/cert.pem",
        "key_file": "/data/identity/key.pem",
    }
    wired = entries["/network/20-wired.network"].data.decode()
    assert "Address=192.168.7.20/24\nGateway=192.168.7.1\nDNS=192.168.7.1\nDNS=9.9.9.9\n" in wired


def test_what_differs_is_shown_and_no_secret(folder: Path) -> None:
    entries = files(load(folder / "provision.toml"))
    present = {path: Present(digest(entry.data), entry.mode, entry.data) for path, entry in entries.items()}
    assert changes(present, entries) == []
    present["/identity/key.pem"] = Present(digest(b"old"), 0o640, b"old")
    present["/etc/timezone"] = Present(digest(b"UTC\n"), 0o644, b"UTC\n")
    present["/ssh/authorized_keys"] = Present(digest(entries["/ssh/authorized_keys"].data), 0o644)
    del present["/network/wpa_supplicant-wlan0.conf"]
    lines = changes(present, entries)
    assert lines == [
        "changed  /data/etc/timezone (14 bytes)",
        "    @@ -1 +1 @@",
        "    -UTC",
        "    +Europe/Berlin",
        "changed  /data/identity/key.pem (secret)",
        "new      /data/network/wpa_supplicant-wlan0.conf (secret)",
        "mode     /data/ssh/authorized_keys: 644 -> 600",
    ]
    assert "PRIVATE" not in repr((entries, present))


def test_a_file_that_is_less_open_is_right() -> None:
    assert Entry(b"x", 0o644).stands(Present(digest(b"x"), 0o600))
    assert not Entry(b"x", 0o600).stands(Present(digest(b"x"), 0o640))


def test_the_smallest_provision_makes_a_config_that_loads(tmp_path: Path) -> None:
    entries = files(Provision(gateway="line-1"))
    assert sorted(entries) == ["/etc/octogate.toml", "/identity/id"]
    assert tomllib.loads(entries["/etc/octogate.toml"].data.decode())["gateway"]["id"] == "line-1"


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        (
            'gateway = "press-4"',
            'gateway = "press-5"',
            "gateway.toml: gateway.id: 'press-4', but this is to be 'press-5'",
        ),
        ('"state.octo"', '"other.octo"', "other.octo: No such file"),
        ('["state.octo"]', "[]", "model[0].bundle: no file /data/bundles/state.octo"),
        ('["fleet.pub"]', '["fleet.key"]', "no public key in PEM"),
        ('"ca/gateways/press-4.key"', '"ca/ca.pem"', "no private key in PEM"),
        ("Europe/Berlin", "Europe/Nowhere", "there is no 'Europe/Nowhere'"),
        ("192.168.7.20/24", "192.168.7.20", "has no prefix length"),
        ("192.168.7.20/24", "192.168.7.2000/24", "ethernet:"),
        ('"9.9.9.9"', '"nine"', "'nine'"),
        ('"wifi"', '"fleet.pub"', "no password of a Wi-Fi network"),
        (SSH_KEY, "fleet.key", "not a public key of SSH"),
        ('"DE"', '"de"', "matching regex"),
        ("[broker]", "[broken]", "unknown field `broken`"),
        ('gateway = "press-4"', "gateway = 4", "Expected `str`"),
        ('gateway = "press-4"', 'gateway = "press-4"\nbase = "/"', "base: unknown key"),
        ('gateway = "press-4"', "gateway =", "not valid TOML"),
    ],
)
def test_what_is_wrong_is_said(folder: Path, old: str, new: str, complaint: str) -> None:
    file = folder / "provision.toml"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new, 1))
    with pytest.raises(ConfigError) as error:
        files(load(file))
    assert complaint in str(error.value)


def test_a_wrong_config_is_told_by_its_own_name(folder: Path) -> None:
    config = folder / "gateway.toml"
    config.write_text(config.read_text() + '[[rule]]\nkind = "class"\nname = "r"\npipeline = "p"\nlabels = []\n')
    with pytest.raises(ConfigError, match=r"^gateway\.toml: rule\[0\]\.pipeline: there is no 'p'"):
        files(load(folder / "provision.toml"))


@settings(deadline=None)
@given(ssid=st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=32))
def test_no_name_of_a_network_can_add_a_line(ssid: str) -> None:
    if len(ssid.encode()) > 32:
        return
    found = network_files(None, [WifiTable(ssid=ssid, country="DE")], Path)
    text = found["/network/wpa_supplicant-wlan0.conf"][0].decode()
    assert re.fullmatch(r"country=DE\n\nnetwork=\{\n    ssid=[0-9a-f]+\n    priority=1\n    key_mgmt=NONE\n\}\n", text)


def test_the_key_of_a_network_is_that_of_the_standard(tmp_path: Path) -> None:
    """IEEE 802.11, annex J.4.2, first test vector."""
    (tmp_path / "p").write_text("password\n")
    table = WifiTable(ssid="IEEE", country="DE", password_file="p")
    data, secret = network_files(None, [table], lambda text: tmp_path / text)["/network/wpa_supplicant-wlan0.conf"]
    assert b"psk=f42c6fc52df0ebef9ebb4b90b38a5f902e83fe1b135a70e23aed762e9710a12e\n" in data
    assert secret
    assert b"password" not in data


def test_a_saved_provision_file_gives_the_same_files(folder: Path) -> None:
    first = load(folder / "provision.toml")
    path, changed = provision.save(first, folder / "out")
    assert changed
    assert files(load(path)) == files(first)
    assert provision.save(first, folder / "out") == (path, False)
    assert {oct(item.stat().st_mode)[-3:] for item in (folder / "out").iterdir()} == {"600"}
    assert oct((folder / "out").stat().st_mode)[-3:] == "700"


# --- the authority --------------------------------------------------------------------------------------------------


def test_a_certificate_is_the_gateways_own(tmp_path: Path) -> None:
    made = Authority(tmp_path / "ca").identity("press-4")
    certificate, root = (x509.load_pem_x509_certificate(pem) for pem in (made.certificate, made.authority))
    certificate.verify_directly_issued_by(root)
    assert certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "press-4"
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["press-4"]
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert certificate.public_key() == load_pem_private_key(made.key, None).public_key()
    left = certificate.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    assert abs(left - datetime.timedelta(days=730)) < datetime.timedelta(hours=1)
    assert f"{certificate.serial_number:x}" in (tmp_path / "ca" / "issued.jsonl").read_text()
    secrets = [path for path in (tmp_path / "ca").rglob("*") if path.is_file()]
    assert {oct(path.stat().st_mode)[-3:] for path in secrets} == {"600"}
    assert {oct(path.stat().st_mode)[-3:] for path in (tmp_path / "ca", tmp_path / "ca" / "gateways")} == {"700"}


def test_it_is_kept_while_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = Authority(tmp_path / "ca")
    first = mine.identity("a")
    assert (first.new, mine.identity("a").new, mine.identity("a").certificate) == (True, False, first.certificate)
    assert mine.identity("b").certificate != first.certificate
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=500)
    monkeypatch.setattr(authority, "_now", lambda: later)
    again = mine.identity("a")
    assert again.new, "a third of its time is left"
    assert again.key != first.key
    assert len((tmp_path / "ca" / "issued.jsonl").read_text().splitlines()) == 3


def test_a_key_of_another_authority_is_not_kept(tmp_path: Path) -> None:
    Authority(tmp_path / "one").identity("a")
    Authority(tmp_path / "two").identity("b")
    for name in ("a.key", "a.pem"):
        (tmp_path / "two/gateways" / name).write_bytes((tmp_path / "one/gateways" / name).read_bytes())
    assert Authority(tmp_path / "two").kept("a") is None
    assert Authority(tmp_path / "two").identity("a").new
    (tmp_path / "one/ca.pem").write_bytes((tmp_path / "two/ca.pem").read_bytes())
    with pytest.raises(ConfigError, match=r"ca\.key is not the key of ca\.pem"):
        Authority(tmp_path / "one").identity("a")


def test_openssl_believes_it(tmp_path: Path) -> None:
    """Python's ssl loads the chain as paho does in the gateway."""
    Authority(tmp_path / "ca").identity("press-4")
    context = ssl.create_default_context(cafile=tmp_path / "ca/ca.pem")
    context.load_cert_chain(tmp_path / "ca/gateways/press-4.pem", tmp_path / "ca/gateways/press-4.key")
    assert context.cert_store_stats()["x509_ca"] == 1


# --- the command ----------------------------------------------------------------------------------------------------


def test_twice_is_as_good_as_once(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    arguments = ["line-1", "--ca", "authority", "--broker", "broker.example:8884", "--broker-ca", "ca/ca.pem"]
    arguments += ["--trust", "fleet.pub", "--ssh-key", SSH_KEY, "--timezone", "UTC", "--out", "out"]
    assert main([*arguments, "--dry-run"]) == DONE
    assert not (folder / "authority").exists()
    assert "would be  /data/ssh/authorized_keys" in capfd.readouterr().out
    assert main(arguments) == DONE
    first = capfd.readouterr().out
    assert "made  key and certificate of 'line-1'" in first
    stamps = {path: path.stat().st_mtime_ns for path in (folder / "out").iterdir()}
    assert main(arguments) == DONE
    second = capfd.readouterr().out
    assert "nothing differs" in second
    assert {path: path.stat().st_mtime_ns for path in (folder / "out").iterdir()} == stamps
    key = (folder / "authority/gateways/line-1.key").read_text()
    assert key.splitlines()[1] not in first + second
    uplink = tomllib.loads(files(load(folder / "out/provision.toml"))["/etc/octogate.toml"].data.decode())["uplink"]
    assert (uplink["host"], uplink["port"]) == ("broker.example", 8884)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["Press 4"], "not a gateway's id"),
        (["line-1", "--file", "provision.toml"], "it is for 'press-4'"),
        (["press-4", "--file", "none.toml"], "none.toml: No such file"),
        (["press-4", "--broker", "a b"], "--broker a b"),
        (["press-4", "--host=-oProxyCommand=x"], "is no host"),
        (["press-4", "--image", "fleet.pub"], "no GPT"),
    ],
)
def test_wrong_arguments_change_nothing(
    folder: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    complaint: str,
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
    assert main(arguments) == UNCHANGED
    assert complaint in capfd.readouterr().err
    assert not os.path.lexists("build")
