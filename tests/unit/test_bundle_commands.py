"""octogate bundle: what it prints, its exit statuses, and that the published JSON Schema is this version's."""

import json
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gateway.__main__ import main
from gateway.infer import bundle_commands
from gateway.infer.manifest import json_schema
from sdk.bundle import fingerprint, generate_key, pack
from tests.unit import bundles

ROOT = Path(__file__).resolve().parents[2]
Output = pytest.CaptureFixture[str]


@pytest.fixture
def key(tmp_path: Path) -> Ed25519PrivateKey:
    return generate_key(tmp_path / "key.pem", tmp_path / "key.pub")


def test_inspect(tmp_path: Path, key: Ed25519PrivateKey, capsys: Output) -> None:
    path = bundles.make(tmp_path / "a.octo", key)
    assert main(["bundle", "inspect", str(path)]) == 0
    text = capsys.readouterr().out
    for part in (
        f"{path}: tiny 1.0, regress, ",
        f"signed    by key {fingerprint(key)[:16]}, not verified",
        "input     window channels p, length 8, rate_hz 10.0",
        "post      values names sum/first",
        "variant   model.onnx: onnx fp32, ",
        "golden    golden/0: fp32 0.0001",
        "member    card.md: 7 B",
    ):
        assert part in text, part
    assert main(["bundle", "inspect", str(path), "--json"]) == 0
    seen = msgspec.json.decode(capsys.readouterr().out, type=bundle_commands.Inspection)
    assert seen.manifest == bundles.manifest() and seen.members["card.md"] == 7
    assert seen.signed is not None and seen.signed.key == fingerprint(key)


def test_inspect_of_an_unsigned_one_says_so_and_steers_no_terminal(tmp_path: Path, capsys: Output) -> None:
    pack(tmp_path / "a.octo", bundles.manifest(source="fine\x1b[2J\nsigned by all"), bundles.files())
    assert main(["bundle", "inspect", str(tmp_path / "a.octo")]) == 0
    text = capsys.readouterr().out
    assert "signed    NOT SIGNED" in text and "source    fine?[2J?signed by all" in text


def test_verify(tmp_path: Path, key: Ed25519PrivateKey, capsys: Output) -> None:
    path, pub = bundles.make(tmp_path / "a.octo", key), str(tmp_path / "key.pub")
    command = ["bundle", "verify", str(path)]
    assert main([*command, "--key", pub]) == 0
    assert f"a.octo: fine: signed by {fingerprint(key)[:16]}, digest " in capsys.readouterr().out
    generate_key(tmp_path / "other.pem", tmp_path / "other.pub")
    other = str(tmp_path / "other.pub")
    for keys in (["--key", other, pub], ["--key", other, "--key", pub]):
        assert main([*command, *keys, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["signed_by"] == fingerprint(key)
    assert main([*command, "--key", other]) == 1
    assert f"signed by the unknown key {fingerprint(key)[:16]}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "why"), [(b"# tiny", b"# tidy", "changed since it was signed"), (b"PK\5\6", b"PK\5\7", "cut short")]
)
def test_verify_refuses(
    tmp_path: Path, key: Ed25519PrivateKey, capsys: Output, old: bytes, new: bytes, why: str
) -> None:
    path = bundles.make(tmp_path / "a.octo", key)
    path.write_bytes(path.read_bytes().replace(old, new))
    assert main(["bundle", "verify", str(path), "--key", str(tmp_path / "key.pub"), "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] is False and why in answer["error"] and answer["hint"]


def test_verify_refuses_an_unsigned_one(tmp_path: Path, key: Ed25519PrivateKey, capsys: Output) -> None:
    path = bundles.make(tmp_path / "a.octo")
    assert main(["bundle", "verify", str(path), "--key", str(tmp_path / "key.pub")]) == 1
    assert "the bundle is not signed" in capsys.readouterr().err


def test_misuse(tmp_path: Path, capsys: Output) -> None:
    path = bundles.make(tmp_path / "a.octo")
    assert main(["bundle", "verify", str(path), "--key", str(path)]) == 2
    assert "not an Ed25519 public key" in capsys.readouterr().err
    for argv in (["bundle"], ["bundle", "verify", str(path)], ["bundle", "inspect"]):
        with pytest.raises(SystemExit) as caught:
            main(argv)
        assert caught.value.code == 2
    assert main(["bundle", "inspect", str(tmp_path / "none.octo")]) == 1


def test_the_published_schema_is_this_versions(capsys: Output) -> None:
    published = (ROOT / "docs/manifest.schema.json").read_bytes()
    assert published == json_schema(), "octogate bundle schema > docs/manifest.schema.json"
    assert main(["bundle", "schema"]) == 0
    assert capsys.readouterr().out.encode() == published


def test_the_schema_names_every_key_of_a_manifest() -> None:
    schema = json.loads(json_schema())
    parts = schema["$defs"]
    written = msgspec.to_builtins(bundles.manifest())
    assert written.keys() == parts["Manifest"]["properties"].keys()
    assert parts["Manifest"]["additionalProperties"] is False
    assert written["variants"][0].keys() == parts["Variant"]["properties"].keys()
