"""What makes a gateway of an image: its id, identity, network, time zone, config and models, as files of /data.

    provision = load(Path("line-1/provision.toml"))
    entries = files(provision)          # path below /data -> Entry; checked, nothing written yet
    changes(present, entries)           # what would change, for a person; no secret in it

The same entries go into an image (`firmware_tools.disk.provisioned`), or to a running gateway over SSH
(`sdk.provision_ssh`). Putting them twice changes nothing the second time. docs/provisioning.md has the file and the layout.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from gateway import config as gateway_config
from gateway import durable
from gateway.errors import ConfigError
from gateway.tables import Name, Port, Table
from sdk.networks import EthernetTable, WifiTable, check_zone, network_files

DATA = "/data"  # where the data partition is mounted on a gateway
CONFIG = "/etc/octogate.toml"
MAX_BYTES = 1 << 20  # of a provision file, and of each small file that it names
MAX_BUNDLE = 1 << 30
_SSH_KEY = re.compile(r"(ssh-ed25519|ecdsa-sha2-nistp\d+|ssh-rsa|sk-[a-z0-9@.-]+) [A-Za-z0-9+/=]+( [^\n]*)?")
_FILE_NAME = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9_.+-]{0,99}")
MODELS_KEY = "/usr/share/octogate/octogate-models.pub.pem"  # in the image: who signs the models that come with it
PUBLIC, GROUP, PRIVATE = 0o644, 0o640, 0o600  # GROUP: root's and the gateway's user's; the image sets the owners


@dataclass(frozen=True)
class Entry:
    """A file to be: its bytes and mode. A secret one is never shown."""

    data: bytes
    mode: int = PUBLIC
    secret: bool = False

    def stands(self, present: Present | None) -> bool:
        """Whether it is there already, with this content and not more open than this."""
        return present is not None and present.sha256 == digest(self.data) and not present.mode & ~self.mode

    def __repr__(self) -> str:
        return f"Entry({len(self.data)} bytes, {self.mode:o})"


@dataclass(frozen=True)
class Present:
    """A file that is there. `data` is None where only its digest was asked for."""

    sha256: str
    mode: int
    data: bytes | None = None

    def __repr__(self) -> str:
        return f"Present({self.sha256[:12]}, {self.mode:o})"


class IdentityTable(Table, frozen=True):
    """PEM files of the gateway's own key and certificate, and of the authority that made it."""

    key: str
    certificate: str
    authority: str = ""


class BrokerTable(Table, frozen=True):
    """Where the gateway sends to, for a config that is made. With `ca`, by TLS and with its own certificate."""

    host: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.:-]{1,253}$")]
    port: Port = 8883
    ca: str = ""


class Provision(Table, frozen=True):
    """A provision file. Paths in it are relative to it."""

    gateway: Name
    config: str = ""  # empty: one with id, broker and trusted keys is made
    timezone: str = ""  # as in the tz database: Europe/Berlin
    trust: tuple[str, ...] = ()  # public keys (PEM) that may sign model bundles
    bundles: tuple[str, ...] = ()  # model bundles, put into /data/bundles
    ssh_keys: tuple[str, ...] = ()  # public keys, or files of them; with one, SSH is turned on
    identity: IdentityTable | None = None
    broker: BrokerTable | None = None
    ethernet: EthernetTable | None = None  # without it: DHCP
    wifi: tuple[WifiTable, ...] = ()
    base: str = "."  # the file's folder; set by `load`

    def path(self, text: str) -> Path:
        return (Path(self.base) / Path(text).expanduser()).absolute()


def load(path: Path) -> Provision:
    """Read a provision file.

    Raises:
        ConfigError: unreadable, not TOML, or a key that is unknown, missing or of the wrong type.
    """
    text = _read(path, MAX_BYTES)
    try:
        raw = tomllib.loads(text.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}", hint="mend that line") from error
    if "base" in raw:
        raise ConfigError(f"{path}: base: unknown key", hint="delete the line")
    try:
        return msgspec.convert({**raw, "base": str(path.absolute().parent)}, Provision)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {error}", hint="docs/provisioning.md has every key") from error


def files(provision: Provision) -> dict[str, Entry]:
    """The files of the data partition, by their paths below `DATA`.

    Raises:
        ConfigError: a file that is named is missing or no such thing, or the config is wrong or of another gateway.
    """
    entries = {"/identity/id": Entry(f"{provision.gateway}\n".encode(), GROUP)}
    if provision.identity is not None:
        entries |= _identity(provision, provision.identity)
    if provision.broker is not None and provision.broker.ca:
        entries["/identity/broker-ca.pem"] = Entry(_pem(provision.path(provision.broker.ca), "CERTIFICATE"), GROUP)
    for text in provision.trust:
        path = provision.path(text)
        entries[f"/identity/trust-{_name(path)}"] = Entry(_pem(path, "PUBLIC KEY"), GROUP)
    for text in provision.bundles:
        path = provision.path(text)
        entries[f"/bundles/{_name(path)}"] = Entry(_read(path, MAX_BUNDLE))
    if provision.ssh_keys:
        lines = [line for text in provision.ssh_keys for line in _ssh_keys(provision, text)]
        entries["/ssh/authorized_keys"] = Entry(("\n".join(lines) + "\n").encode(), PRIVATE)
    if provision.timezone:
        check_zone(provision.timezone)
        entries["/etc/timezone"] = Entry(f"{provision.timezone}\n".encode())
    entries |= {
        path: Entry(data, PRIVATE if secret else PUBLIC, secret)
        for path, (data, secret) in network_files(provision.ethernet, provision.wifi, provision.path).items()
    }
    text = _config(provision, entries)
    _check_config(provision, text, entries)
    entries[CONFIG] = Entry(text.encode())
    return dict(sorted(entries.items()))


def changes(present: Mapping[str, Present], wanted: Mapping[str, Entry]) -> list[str]:
    """What differs, as lines for a person: a diff where both are texts and no secrets. Empty: nothing would change."""
    lines: list[str] = []
    for path, entry in wanted.items():
        old = present.get(path)
        if entry.stands(old):
            continue
        what = "secret" if entry.secret else f"{len(entry.data)} bytes"
        if old is None:
            lines.append(f"new      {DATA}{path} ({what})")
        elif old.sha256 == digest(entry.data):
            lines.append(f"mode     {DATA}{path}: {old.mode:o} -> {entry.mode:o}")
        else:
            lines.append(f"changed  {DATA}{path} ({what})")
            lines += _diff(old, entry)
    return lines


def differing(present: Mapping[str, Present], wanted: Mapping[str, Entry]) -> dict[str, Entry]:
    """The entries that are not there as they should be."""
    return {path: entry for path, entry in wanted.items() if not entry.stands(present.get(path))}


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def save(provision: Provision, folder: Path) -> tuple[Path, bool]:
    """Write a provision file with copies of all that it names beside it (0600, the folder 0700).

    What is the same already is left alone. Gives the file's path, and whether anything differed.
    """
    changed = False
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def copied(text: str, kind: str) -> str:
        nonlocal changed
        if not text:
            return ""
        source = provision.path(text)
        name = f"{kind}-{_name(source)}" if kind else _name(source)
        changed |= write_if_other(folder / name, _read(source, MAX_BUNDLE))
        return name

    def keys(text: str) -> str:
        return text if _SSH_KEY.fullmatch(text.strip()) else copied(text, "")

    kept = msgspec.structs.replace(
        provision,
        config=copied(provision.config, ""),
        trust=tuple(copied(text, "") for text in provision.trust),
        bundles=tuple(copied(text, "") for text in provision.bundles),
        ssh_keys=tuple(keys(text) for text in provision.ssh_keys),
        identity=provision.identity
        and IdentityTable(**{k: copied(v, k) for k, v in msgspec.structs.asdict(provision.identity).items()}),
        broker=provision.broker and msgspec.structs.replace(provision.broker, ca=copied(provision.broker.ca, "broker")),
        wifi=tuple(msgspec.structs.replace(w, password_file=copied(w.password_file, "wifi")) for w in provision.wifi),
    )
    path = folder / "provision.toml"
    changed |= write_if_other(path, _toml(kept).encode())
    return path, changed


def write_if_other(path: Path, data: bytes) -> bool:
    """A file of 0600 with this content; whether it was another before."""
    if path.exists() and path.read_bytes() == data and path.stat().st_mode & 0o777 == PRIVATE:
        return False
    durable.write_whole(path, data, PRIVATE)
    return True


def _toml(table: Provision) -> str:
    """The table as TOML, without what is as it would be anyway. Strings of JSON are strings of TOML."""
    lines: list[str] = []
    for key, value in msgspec.structs.asdict(table).items():
        if key != "base" and value and isinstance(value, str | tuple) and not _tables(value):
            lines.append(f"{key} = {_value(value)}")
    for key, value in msgspec.structs.asdict(table).items():
        for item in value if _tables(value) else (value,):
            if isinstance(item, Table):
                lines += ["", f"[[{key}]]" if _tables(value) else f"[{key}]"]
                plain = msgspec.structs.asdict(item).items()
                lines += [f"{k} = {_value(v)}" for k, v in plain if v not in ("", ())]
    return "\n".join(lines) + "\n"


def _tables(value: Any) -> bool:
    return isinstance(value, tuple) and bool(value) and isinstance(value[0], Table)


def _value(value: Any) -> str:
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False).replace("\x7f", "\\u007f")


# --- parts ----------------------------------------------------------------------------------------------------------


def _identity(provision: Provision, table: IdentityTable) -> dict[str, Entry]:
    found = {
        "/identity/key.pem": Entry(_pem(provision.path(table.key), "PRIVATE KEY"), GROUP, secret=True),
        "/identity/cert.pem": Entry(_pem(provision.path(table.certificate), "CERTIFICATE"), GROUP),
    }
    if table.authority:
        found["/identity/authority.pem"] = Entry(_pem(provision.path(table.authority), "CERTIFICATE"), GROUP)
    return found


def _config(provision: Provision, entries: Mapping[str, Entry]) -> str:
    """The config that was given, with the broker if it has none; or the smallest one that works."""
    broker, trust = provision.broker, [path for path in entries if path.startswith("/identity/trust-")]
    if provision.config:
        try:
            text = _read(provision.path(provision.config), MAX_BYTES).decode()
            has_uplink = "uplink" in tomllib.loads(text)
        except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"{provision.config}: not valid TOML: {error}", hint="mend that line") from error
        return text if broker is None or has_uplink else f"{text.rstrip()}\n\n{_uplink(broker, entries)}"
    text = f'[gateway]\nid = "{provision.gateway}"\ndata_dir = "{DATA}/spool"\n'
    if broker is not None:
        text += "\n" + _uplink(broker, entries)
    keys = json.dumps([MODELS_KEY, *(DATA + path for path in trust)])
    return f"{text}\n[trust]\nkeys = {keys}\n\n[panel]\nport = 8080\n"


def _uplink(broker: BrokerTable, entries: Mapping[str, Entry]) -> str:
    text = f'[uplink]\nhost = "{broker.host}"\nport = {broker.port}\n'
    if broker.ca:
        text += f'ca_file = "{DATA}/identity/broker-ca.pem"\n'
        if "/identity/key.pem" in entries:
            text += f'cert_file = "{DATA}/identity/cert.pem"\nkey_file = "{DATA}/identity/key.pem"\n'
    return text


def _check_config(provision: Provision, text: str, entries: Mapping[str, Entry]) -> None:
    """Load the config as the gateway would, in a folder that stands for /data: what it names must come with it.

    Files outside of /data belong to the image, which is not here; empty ones stand for them.
    """
    with tempfile.TemporaryDirectory(prefix="octogate-") as name:
        root = Path(name).resolve()
        for path in [*entries, *_of_image(text)]:
            stand_in = root / path.lstrip("/") if path in entries else root / "image" / path.lstrip("/")
            stand_in.parent.mkdir(parents=True, exist_ok=True)
            stand_in.write_bytes(b"")
        here = text.replace(f'"{DATA}/', f'"{root}/')
        for path in _of_image(text):
            here = here.replace(f'"{path}"', f'"{root}/image{path}"')
        file = root / CONFIG.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(here)
        try:
            loaded = gateway_config.load(file)
        except ConfigError as error:
            shown = provision.config or "the config"
            what = error.what.replace(str(file), shown).replace(str(root / "image"), "").replace(str(root), DATA)
            raise ConfigError(what, hint=error.hint) from None
        if loaded.gateway.id != provision.gateway:
            raise ConfigError(
                f"{provision.config}: gateway.id: '{loaded.gateway.id}', but this is to be '{provision.gateway}'",
                hint="one config a gateway: mend the id",
            )


def _of_image(text: str) -> list[str]:
    """Absolute paths outside of /data that a config may take from the image: models and keys."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return []  # told by the loader
    models, trust = raw.get("model"), raw.get("trust")
    named = [item.get("bundle") for item in models if isinstance(item, dict)] if isinstance(models, list) else []
    keys = trust.get("keys") if isinstance(trust, dict) else []
    named += keys if isinstance(keys, list) else []
    return [
        path
        for path in named
        if isinstance(path, str) and path.startswith("/") and not path.startswith(f"{DATA}/") and ".." not in path
    ]


def _ssh_keys(provision: Provision, text: str) -> list[str]:
    """One public key, or the lines of a file of them."""
    if _SSH_KEY.fullmatch(text.strip()):
        return [text.strip()]
    path = provision.path(text)
    lines = [line.strip() for line in _read(path, MAX_BYTES).decode(errors="replace").splitlines()]
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys or not all(_SSH_KEY.fullmatch(line) for line in keys):
        raise ConfigError(f"{path}: not a public key of SSH", hint="name the file that ends in .pub")
    return keys


def _pem(path: Path, kind: str) -> bytes:
    data = _read(path, MAX_BYTES)
    if f"{kind}-----".encode() not in data or b"-----BEGIN " not in data:
        raise ConfigError(f"{path}: no {kind.lower()} in PEM", hint="is it the right file?")
    return data


def _name(path: Path) -> str:
    if not _FILE_NAME.fullmatch(path.name):
        raise ConfigError(f"{path}: such a name cannot be kept on the gateway", hint="letters, digits, - _ + and .")
    return path.name


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", hint="make it or mend the path") from error
    if len(data) > limit:
        raise ConfigError(f"{path}: larger than {limit >> 20} MiB", hint="is this the right file?")
    return data


def _diff(old: Present, entry: Entry) -> list[str]:
    if old.data is None or entry.secret:
        return []
    try:
        before, after = old.data.decode().splitlines(), entry.data.decode().splitlines()
    except UnicodeDecodeError:
        return []
    return [f"    {line}" for line in list(difflib.unified_diff(before, after, lineterm="", n=1))[2:]]
