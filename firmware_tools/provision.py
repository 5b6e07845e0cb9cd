"""`./inv provision.device NAME`: a gateway's id, key, certificate, config and network, put where they are wanted.

--image changes the data partition of a raw image, --host a gateway by SSH; without them a provision file is written,
for `./inv image.flash --provision`. Again it changes nothing and says so. Exit status: 0 done or nothing to do, 1 it
could not be put there, 2 nothing was changed: something named is wrong.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from firmware_tools.disk import provisioned
from firmware_tools.disk.errors import WriteError
from gateway.errors import ConfigError, OctogateError, UplinkError
from sdk import provision, provision_ssh
from sdk.authority import DAYS, Authority, default_folder
from sdk.provision import BrokerTable, Entry, IdentityTable, Provision

DONE, FAILED, UNCHANGED = 0, 1, 2
FOLDER = Path("build/provision")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit status."""
    args = _parser().parse_args(argv)
    try:
        wanted = _provision(args)
        entries = provision.files(wanted)
        if args.image:
            return _told(_into_image(args, entries), args, f"the data partition of {args.image}")
        if args.host:
            ssh = provision_ssh.Ssh(args.host, args.ssh)
            return _told(provision_ssh.put(ssh, entries, dry_run=args.dry_run), args, f"/data on {args.host}")
        return _into_folder(args, wanted)
    except OctogateError as error:
        print(f"octogate: {error}", file=sys.stderr)
        return FAILED if isinstance(error, WriteError | UplinkError) else UNCHANGED
    except KeyboardInterrupt:
        return FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="provision.device", description=__doc__)
    parser.add_argument("name", help="the gateway's id: lower-case letters, digits, - and _")
    parser.add_argument("--file", type=Path, help="a provision file to take the rest from")
    parser.add_argument("--config", help="the gateway's config; without one a small one is made")
    parser.add_argument("--broker", help="HOST or HOST:PORT, for a config without an uplink")
    parser.add_argument("--broker-ca", help="PEM file of who signed the broker's certificate; turns TLS on")
    parser.add_argument("--trust", action="append", default=[], help="public key (PEM) that may sign models")
    parser.add_argument("--bundle", action="append", default=[], help="a model bundle")
    parser.add_argument("--ssh-key", action="append", default=[], help="public key, or its file, that may log in")
    parser.add_argument("--timezone", default="")
    parser.add_argument("--ca", type=Path, default=default_folder(), help="folder of your certificate authority")
    parser.add_argument("--days", type=int, default=DAYS, help="how long a new certificate holds")
    parser.add_argument("--image", type=Path, help="put it into this raw image")
    parser.add_argument("--host", default="", help="put it onto this gateway by SSH: [USER@]HOST")
    parser.add_argument("--ssh", action="append", default=[], help="an option for ssh and scp, as in -oPort=2222")
    parser.add_argument("--out", type=Path, help=f"folder of the provision file; {FOLDER}/NAME without it")
    parser.add_argument("--dry-run", action="store_true", help="only show what would change")
    return parser


def _provision(args: argparse.Namespace) -> Provision:
    """What the file says, with what the command line says instead or besides."""
    try:
        named = msgspec.convert({"gateway": args.name}, Provision)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{args.name}: not a gateway's id", hint="lower-case letters, digits, - and _") from error
    base = provision.load(args.file) if args.file else named
    if base.gateway != args.name:
        raise ConfigError(f"{args.file}: it is for '{base.gateway}', not for '{args.name}'")

    def here(text: str) -> str:
        return str(Path(text).absolute()) if text else ""

    def keys(texts: list[str]) -> tuple[str, ...]:
        return tuple(text if " " in text else here(text) for text in texts)

    wanted = msgspec.structs.replace(
        base,
        config=here(args.config) if args.config else base.config,
        timezone=args.timezone or base.timezone,
        trust=(*base.trust, *map(here, args.trust)),
        bundles=(*base.bundles, *map(here, args.bundle)),
        ssh_keys=(*base.ssh_keys, *keys(args.ssh_key)),
        broker=_broker(args, base),
    )
    return wanted if wanted.identity else msgspec.structs.replace(wanted, identity=_identity(args))


def _broker(args: argparse.Namespace, base: Provision) -> BrokerTable | None:
    if not args.broker:
        return base.broker
    host, _, port = args.broker.rpartition(":") if args.broker.rpartition(":")[2].isdigit() else (args.broker, "", "")
    ca = str(Path(args.broker_ca).absolute()) if args.broker_ca else ""
    table = {"host": host, "port": int(port or (8883 if ca else 1883)), "ca": ca}
    try:
        return msgspec.convert(table, BrokerTable)
    except msgspec.ValidationError as error:
        raise ConfigError(f"--broker {args.broker}: {error}", hint="HOST or HOST:PORT") from error


def _identity(args: argparse.Namespace) -> IdentityTable | None:
    """From the developer's authority; a dry run makes nothing there, and leaves out what is not there yet."""
    authority = Authority(args.ca)
    if args.dry_run and authority.kept(args.name) is None:
        print(f"would make a key and certificate of '{args.name}' in {args.ca}")
        return None
    identity = authority.identity(args.name, args.days)
    print(f"{'made' if identity.new else 'kept'}  key and certificate of '{args.name}' in {args.ca}")
    folder = args.ca.absolute()
    mine = folder / "gateways" / args.name
    return IdentityTable(key=f"{mine}.key", certificate=f"{mine}.pem", authority=str(folder / "ca.pem"))


def _into_image(args: argparse.Namespace, entries: Mapping[str, Entry]) -> list[str]:
    with tempfile.TemporaryDirectory(prefix="octogate-") as folder:
        return provisioned.change(args.image, entries, Path(folder), dry_run=args.dry_run)


def _into_folder(args: argparse.Namespace, wanted: Provision) -> int:
    folder = args.out or FOLDER / args.name
    if args.dry_run:
        for path, entry in provision.files(wanted).items():
            print(f"would be  {provision.DATA}{path} ({'secret' if entry.secret else f'{len(entry.data)} bytes'})")
        return DONE
    saved, changed = provision.save(wanted, folder)
    print(f"wrote {saved}" if changed else f"nothing differs: {saved} is as it should be")
    print(f"next: ./inv image.flash --provision {saved} --to DEVICE")
    return DONE


def _told(lines: list[str], args: argparse.Namespace, where: str) -> int:
    for line in lines:
        print(line)
    if not lines:
        print(f"nothing differs: {where} is as it should be")
    elif args.dry_run:
        print("nothing was changed (--dry-run)")
    else:
        print(f"{where} is as it should be now")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
