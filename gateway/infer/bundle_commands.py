"""`octogate bundle inspect | verify | schema`: what a bundle says of itself, and whether it may be believed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from gateway.errors import ModelError
from gateway.infer.bundle import Bundle, Verified, read_public_key
from gateway.infer.manifest import SIGNATURE, Manifest, Variant, json_schema

OK, REFUSED, MISUSED = 0, 1, 2
INSPECT = """\
What is in a bundle: its model, variants, steps, limits and members, and who says to have signed it. Nothing that it says
is verified. Exit status: 0 it can be read, 1 it is damaged or no bundle, 2 misused.
"""
VERIFY = """\
Hash every member of a bundle and check its signature, as a gateway does before it loads any of it. Runs no model: a
worker checks the golden samples. Exit status: 0 signed by one of the keys and unchanged, 1 refused (not signed, by
another key, changed or damaged), 2 misused, or a key that cannot be read.
"""
SCHEMA = "The JSON Schema of manifest.json, of this version; docs/manifest.schema.json is this command's output."


class Signed(msgspec.Struct, frozen=True):
    """What `signature.json` says: nothing is verified by that."""

    key: str  # sha256 of the raw public key, hex


class Inspection(msgspec.Struct, frozen=True):
    """The answer of `inspect --json`."""

    file: str
    bytes: int
    digest: str
    signed: Signed | None
    manifest: Manifest
    members: dict[str, int]  # name -> bytes


class Verdict(msgspec.Struct, frozen=True):
    """The answer of `verify --json`."""

    ok: bool
    file: str
    digest: str = ""
    signed_by: str = ""
    error: str = ""
    hint: str = ""


def add_commands(commands: Any, epilog: str) -> None:
    """`octogate bundle` with its subcommands."""
    what = "What a model bundle says of itself, and whether it may be believed"
    bundle = commands.add_parser("bundle", help=what, description=f"{what}.", epilog=epilog)
    actions = bundle.add_subparsers(required=True, metavar="ACTION")

    def add(name: str, text: str, command: Callable[[argparse.Namespace], int]) -> Any:
        sub = actions.add_parser(name, help=text.partition(":")[0].partition(".")[0], description=text)
        sub.set_defaults(command=command)
        return sub

    inspect, verify = add("inspect", INSPECT, _inspect), add("verify", VERIFY, _verify)
    add("schema", SCHEMA, _schema)
    for sub in (inspect, verify):
        sub.add_argument("file", type=Path, metavar="FILE", help="a .octo file")
        sub.add_argument("--json", action="store_true", help="as JSON instead of text")
    verify.add_argument(
        "--key", type=Path, nargs="+", action="extend", required=True, metavar="PEM", help="public keys that may sign"
    )


def inspect_bundle(path: Path) -> Inspection:
    """Raises `ModelError`: not a bundle, or damaged."""
    with Bundle(path) as bundle:
        digest = bundle.verify((), allow_unsigned=True).digest
        signed = Signed(bundle.signature().key) if SIGNATURE in bundle.names() else None
        members = {name: len(bundle.member(name)) for name in bundle.names()}
        return Inspection(str(path), path.stat().st_size, digest, signed, bundle.manifest, members)


def inspection_text(seen: Inspection) -> str:
    """For people."""
    manifest = seen.manifest
    signed = f"by key {seen.signed.key[:16]}, not verified" if seen.signed else "NOT SIGNED"
    limits = manifest.limits
    lines = [
        f"{seen.file}: {manifest.name} {manifest.version}, {manifest.task}, {_size(seen.bytes)}",
        f"  digest    {seen.digest}",
        f"  signed    {signed}",
        f"  licence   {manifest.licence}",
        f"  source    {manifest.source}",
        f"  input     {_fields(manifest.input)}",
    ]
    lines += [f"  pre       {_fields(step)}" for step in manifest.pre]
    lines += [f"  post      {_fields(step)}" for step in manifest.post]
    lines += [f"  variant   {_variant(one, seen.members)}" for one in manifest.variants]
    tolerances = [", ".join(f"{k} {v:g}" for k, v in one.tolerance.items()) for one in manifest.golden]
    lines += [f"  golden    {g.input}: {t or 'no tolerance'}" for g, t in zip(manifest.golden, tolerances, strict=True)]
    if manifest.labels:
        more = f" and {len(manifest.labels) - 8} more" if len(manifest.labels) > 8 else ""
        lines.append(f"  labels    {', '.join(manifest.labels[:8])}{more}")
    lines.append(f"  limits    {limits.deadline_ms} ms, {limits.memory_mib} MiB")
    lines += [f"  member    {name}: {_size(size)}" for name, size in seen.members.items()]
    # what nobody has verified must not steer a terminal
    return "\n".join("".join(c if c.isprintable() else "?" for c in line) for line in lines)


def verdict(path: Path, keys: Sequence[Path]) -> Verdict:
    """What a gateway that trusts these keys would say of a bundle."""
    try:
        with Bundle(path) as bundle:
            found: Verified = bundle.verify(keys, allow_unsigned=False)
    except ModelError as error:
        return Verdict(False, str(path), error=error.what, hint=error.hint)
    return Verdict(True, str(path), found.digest, found.signed_by)


def _inspect(args: argparse.Namespace) -> int:
    seen = inspect_bundle(args.file)
    print(msgspec.json.encode(seen).decode() if args.json else inspection_text(seen))
    return OK


def _verify(args: argparse.Namespace) -> int:
    try:
        for key in args.key:
            read_public_key(key)
    except ModelError as error:
        print(f"octogate: {error}", file=sys.stderr)
        return MISUSED
    found = verdict(args.file, args.key)
    if args.json:
        print(msgspec.json.encode(found).decode())
    elif found.ok:
        print(f"{found.file}: fine: signed by {found.signed_by[:16]}, digest {found.digest}")
    else:
        print(f"octogate: {ModelError(found.error, hint=found.hint)}", file=sys.stderr)
    return OK if found.ok else REFUSED


def _schema(_: argparse.Namespace) -> int:
    print(json_schema().decode(), end="")
    return OK


def _variant(variant: Variant, members: dict[str, int]) -> str:
    size = members[variant.file] + (members[variant.weights] if variant.weights else 0)
    return f"{variant.file}: {variant.format} {variant.precision}, {_size(size)}"


def _fields(part: msgspec.Struct) -> str:
    """One object of the manifest in a line, the settings that are not the default."""
    plain = msgspec.to_builtins(part)
    usual = {f.encode_name: f.default for f in msgspec.structs.fields(part)}
    kind = plain.pop("kind", None) or plain.pop("step", "")
    told = [f"{key} {_value(value)}" for key, value in plain.items() if getattr(part, key) != usual.get(key)]
    return " ".join([kind, ", ".join(told)]).strip()


def _value(value: object) -> str:
    return "/".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _size(size: int) -> str:
    return (
        f"{size / (1 << 20):.1f} MiB" if size >= 1 << 20 else f"{size / 1024:.1f} KiB" if size >= 1024 else f"{size} B"
    )
