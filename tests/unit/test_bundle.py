"""Bundles: what is packed comes back, and what was changed, cut or made up is refused with a reason."""

import re
import zipfile
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import ModelError
from gateway.infer.bundle import ALIGNMENT, Bundle, read_manifest, valid_name, verify
from gateway.infer.manifest import Golden, decode, encode
from sdk.bundle import fingerprint, generate_key, load_key, pack
from tests.unit import bundles


@pytest.fixture
def key(tmp_path: Path) -> Ed25519PrivateKey:
    return generate_key(tmp_path / "key.pem", tmp_path / "key.pub")


def test_what_is_packed_comes_back(tmp_path: Path, key: Ed25519PrivateKey) -> None:
    digest = pack(tmp_path / "a.octo", bundles.manifest(), bundles.files(), key)
    with Bundle(tmp_path / "a.octo") as bundle:
        assert bundle.manifest == bundles.manifest()
        for name, data in bundles.files().items():
            assert bytes(bundle.member(name)) == data
        verified = bundle.verify([tmp_path / "key.pub"], allow_unsigned=False)
    assert (verified.digest, verified.signed_by) == (digest, fingerprint(key))
    assert read_manifest(tmp_path / "a.octo").name == "tiny"


def test_the_same_content_gives_the_same_bytes(tmp_path: Path, key: Ed25519PrivateKey) -> None:
    one, two = tmp_path / "1.octo", tmp_path / "2.octo"
    first = pack(one, bundles.manifest(), bundles.files(), key)
    again = pack(two, bundles.manifest(), dict(reversed(bundles.files().items())), key)
    assert one.read_bytes() == two.read_bytes() and first == again
    assert pack(two, bundles.manifest(), bundles.files()) == first, "the signature is no part of the digest"


def test_members_are_aligned_and_any_zip_tool_reads_them(tmp_path: Path) -> None:
    path = bundles.make(tmp_path / "a.octo")
    data = path.read_bytes()
    for content in bundles.files().values():
        assert data.index(content) % ALIGNMENT == 0
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None


def test_a_private_key_is_private_and_never_overwritten(tmp_path: Path, key: Ed25519PrivateKey) -> None:
    assert (tmp_path / "key.pem").stat().st_mode & 0o777 == 0o600
    assert load_key(tmp_path / "key.pem").private_bytes_raw() == key.private_bytes_raw()
    with pytest.raises(FileExistsError):
        generate_key(tmp_path / "key.pem", tmp_path / "other.pub")
    with pytest.raises(ModelError, match="cannot read the signing key"):
        load_key(tmp_path / "key.pub")


def test_unsigned_is_refused_unless_allowed(tmp_path: Path, key: Ed25519PrivateKey) -> None:
    path = bundles.make(tmp_path / "a.octo")
    with pytest.raises(ModelError, match="not signed"):
        verify(path, [tmp_path / "key.pub"])
    assert verify(path, [], allow_unsigned=True).signed_by == ""


def test_an_unknown_key_is_refused_unless_unsigned_is_allowed(tmp_path: Path, key: Ed25519PrivateKey) -> None:
    path = bundles.make(tmp_path / "a.octo", Ed25519PrivateKey.generate())
    with pytest.raises(ModelError, match=r"unknown key [0-9a-f]{16}.*trusted are"):
        verify(path, [tmp_path / "key.pub"])
    assert verify(path, [tmp_path / "key.pub"], allow_unsigned=True).signed_by == ""


def test_a_changed_member_is_refused_even_where_unsigned_is_allowed(tmp_path: Path, key: Ed25519PrivateKey) -> None:
    path = bundles.make(tmp_path / "a.octo", key)
    path.write_bytes(path.read_bytes().replace(b"# tiny", b"# tidy"))
    with pytest.raises(ModelError, match="changed since it was signed"):
        verify(path, [tmp_path / "key.pub"], allow_unsigned=True)


def test_a_key_of_another_kind_is_named(tmp_path: Path) -> None:
    path = bundles.make(tmp_path / "a.octo")
    (tmp_path / "bad.pub").write_text("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n")
    with pytest.raises(ModelError, match=r"bad\.pub: not an Ed25519 public key"):
        verify(path, [tmp_path / "bad.pub"], allow_unsigned=True)
    with pytest.raises(ModelError, match="cannot read the public key"):
        verify(path, [tmp_path / "none.pub"], allow_unsigned=True)


def test_a_missing_or_empty_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot read the bundle"):
        read_manifest(tmp_path / "none.octo")
    (tmp_path / "empty.octo").touch()
    with pytest.raises(ModelError, match="empty"):
        read_manifest(tmp_path / "empty.octo")


def test_compressed_members_and_foreign_names_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.octo"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", encode(bundles.manifest()))
    with pytest.raises(ModelError, match="compressed"):
        read_manifest(path)
    for name in ("../up", "/root", "a//b", "a/./b", "é"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, b"")
        with pytest.raises(ModelError, match="not allowed"):
            read_manifest(path)
        assert not valid_name(name)


def test_a_member_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.octo"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", b"1")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a", b"2")
    with pytest.raises(ModelError, match="there twice"):
        read_manifest(path)


def test_manifest_and_members_must_fit(tmp_path: Path) -> None:
    missing = bundles.files()
    del missing["card.md"]
    with pytest.raises(ModelError, match=r"names card\.md, which is not there"):
        pack(tmp_path / "a.octo", bundles.manifest(), missing)
    with pytest.raises(ModelError, match="stray is not named"):
        pack(tmp_path / "a.octo", bundles.manifest(), bundles.files(stray=b""))
    assert list(tmp_path.iterdir()) == [], "a bundle that cannot be read is not written"


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        (b'"schema": 1', b'"schema": 2', "Invalid enum value 2"),
        (b'"licence"', b'"license"', "unknown field `license`"),
        (b'"precision": "fp32"', b'"precision": "fp31"', "fp31"),
        (b'"length": 8', b'"length": 0', "length"),
        (b'"task"', b'"tusk"', "tusk"),
        (b",", b";", "JSON is malformed"),
    ],
)
def test_a_bad_manifest_is_explained(old: bytes, new: bytes, what: str) -> None:
    data = encode(bundles.manifest())
    assert decode(data, "a.octo") == bundles.manifest()
    with pytest.raises(ModelError, match=r"^a\.octo: manifest\.json: .*" + re.escape(what)):
        decode(data.replace(old, new, 1), "a.octo")


def test_a_manifest_writes_its_defaults_out() -> None:
    written = msgspec.json.decode(encode(bundles.manifest()))
    assert written["schema"] == 1 and written["limits"]["deadline_ms"] == 1000


def test_golden_members_are_members(tmp_path: Path) -> None:
    golden = Golden(input="elsewhere", media=bundles.MEDIA, expected="golden/0.json", tolerance={})
    with pytest.raises(ModelError, match="names elsewhere"):
        pack(tmp_path / "a.octo", bundles.manifest(golden=(golden,)), bundles.files())


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    folder = tmp_path_factory.mktemp("signed")
    key = generate_key(folder / "key.pem", folder / "key.pub")
    return folder, bundles.make(folder / "good.octo", key).read_bytes()


@given(edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4))
def test_damage_is_refused_or_changes_nothing(signed: tuple[Path, bytes], edits: list[tuple[float, int]]) -> None:
    folder, good = signed
    data = bytearray(good)
    for where, flip in edits:
        data[int(where * len(data))] ^= flip
    path = folder / "bad.octo"
    path.write_bytes(data)
    try:
        with Bundle(path) as bundle:
            bundle.verify([folder / "key.pub"], allow_unsigned=False)
            for name, content in bundles.files().items():  # only dates, padding and checksums may differ
                assert bytes(bundle.member(name)) == content
    except ModelError as error:
        assert "bad.octo" in str(error)


@given(share=st.floats(0, 1, exclude_max=True))
def test_a_bundle_cut_short_is_refused(signed: tuple[Path, bytes], share: float) -> None:
    folder, good = signed
    path = folder / "short.octo"
    path.write_bytes(good[: int(share * len(good))])
    with pytest.raises(ModelError):
        read_manifest(path)


@given(data=st.binary(max_size=200))
def test_any_bytes_are_refused(signed: tuple[Path, bytes], data: bytes) -> None:
    path = signed[0] / "any.octo"
    path.write_bytes(data + b"PK\5\6" + data[:18].ljust(18, b"\0"))
    with pytest.raises(ModelError):
        read_manifest(path)
