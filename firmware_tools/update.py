"""`./inv update.bundle`, `update.push` and `update.usb`: a signed update of the whole machine, made and taken there.

Exit status: 0 done; 1 the gateway did not take it, or did not become healthy and went back; 2 nothing was begun: something
named is missing or wrong; 3 it was sent, and the gateway was not heard of again in time.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import ssl
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from rich.console import Console

from firmware_tools import update_bundle, update_ssh
from firmware_tools.disk import targets
from firmware_tools.disk.bar import Bar
from firmware_tools.disk.errors import DiskError
from gateway.errors import ControlError, OctogateError, UplinkError
from sdk.client import over_mqtt
from sdk.provision_ssh import Ssh

DONE, REFUSED, UNCHANGED, UNHEARD = 0, 1, 2, 3
STICK = "octogate/update.raucb"  # what a gateway looks for, on a partition labelled LABEL
LABEL = "OCTOGATE"
_err = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit status."""
    args = _parser().parse_args(argv)
    try:
        return int(args.run(args))
    except OctogateError as error:
        _err.print(f"octogate: {error}")
        if isinstance(error, update_ssh.Unheard):
            return UNHEARD
        return REFUSED if isinstance(error, UplinkError | ControlError) else UNCHANGED
    except KeyboardInterrupt:
        return REFUSED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="update", description=__doc__)
    commands = parser.add_subparsers(required=True)
    make = commands.add_parser("bundle", help="make a signed update of a built image")
    make.set_defaults(run=_bundle)
    make.add_argument("--board", default="", help="take build/image/BOARD/octogate-BOARD.img.zst")
    make.add_argument("--image", type=Path, help="take this image")
    make.add_argument("--models", action="append", type=Path, default=[], help="a model bundle to put into it")
    make.add_argument("--version", default="", help="what the update calls itself; without it the image's digest")
    make.add_argument("--keys", type=Path, default=update_bundle.default_keys(), help="folder of your keys for updates")
    make.add_argument("--out", type=Path, help="the file; octogate-BOARD.raucb beside the image without it")
    push = commands.add_parser("push", help="send an update to a gateway, by SSH or by its broker")
    push.set_defaults(run=_push)
    push.add_argument("bundle", type=Path)
    push.add_argument("--host", default="", help="by SSH: [USER@]HOST")
    push.add_argument("--ssh", action="append", default=[], help="an option for ssh, as in -oPort=2222")
    push.add_argument("--no-reboot", action="store_true", help="install it; it runs from the next start on")
    push.add_argument("--wait", type=float, default=900.0, help="seconds until it must be healthy")
    push.add_argument("--gateway", default="", help="by MQTT: the gateway's id")
    push.add_argument("--broker", default="", help="HOST or HOST:PORT")
    push.add_argument("--broker-ca", type=Path, help="PEM file of who signed the broker's certificate; turns TLS on")
    push.add_argument("--user", default="", help="your user name at the broker")
    push.add_argument("--password-file", type=Path)
    push.add_argument("--key", type=Path, help="key that signs commands, where the gateway asks for it")
    stick = commands.add_parser("usb", help="put an update on a stick that is mounted")
    stick.set_defaults(run=_usb)
    stick.add_argument("bundle", type=Path)
    stick.add_argument("--to", type=Path, required=True, help="where the stick is mounted")
    return parser


def _bundle(args: argparse.Namespace) -> int:
    image = update_bundle.find_image(args.board, args.image)
    with Bar(_err) as bar:
        made = update_bundle.make(
            image, args.keys, out=args.out, version=args.version, models=args.models, progress=bar.progress
        )
    print(
        f"wrote {made.path}: {targets.size_text(made.path.stat().st_size)} for {made.compatible}, version {made.version}"
    )
    if made.adaptive:
        print("a gateway that has most of it already reads only the blocks that differ")
    return DONE


def _push(args: argparse.Namespace) -> int:
    if bool(args.host) == bool(args.gateway and args.broker):
        raise DiskError("where to?", hint="--host [USER@]HOST, or --gateway NAME --broker HOST")
    if not args.bundle.is_file():
        raise DiskError(f"{args.bundle}: no such file", hint="./inv update.bundle makes it")
    if args.gateway:
        return asyncio.run(_by_mqtt(args))
    with Bar(_err) as bar:
        gateway = update_ssh.Gateway(Ssh(args.host, args.ssh))
        path = gateway.send(args.bundle, bar.progress)
        booted = gateway.install(path, bar.progress)
    if args.no_reboot:
        print(f"installed; {args.host} runs it from its next start on")
        return DONE
    print(f"installed; {args.host} starts anew")
    slot = gateway.restart(booted, args.wait)
    print(f"{args.host} runs it from slot {slot}, healthy and marked good")
    return DONE


async def _by_mqtt(args: argparse.Namespace) -> int:
    """The gateway receives it in blocks; the image's own service installs it and starts the machine anew."""
    host, _, port = args.broker.rpartition(":")
    if not port.isdigit() or not host:
        host, port = args.broker, "8883" if args.broker_ca else "1883"
    try:
        tls = ssl.create_default_context(cafile=str(args.broker_ca)) if args.broker_ca else None
        password = args.password_file.read_text().rstrip("\r\n") if args.password_file else ""
    except (OSError, UnicodeDecodeError) as error:  # ssl's errors are of this kind, too
        raise DiskError(f"--broker-ca or --password-file: {error}") from error
    account = over_mqtt(args.gateway, host, int(port), username=args.user, password=password, tls=tls, key=args.key)
    async with account as gateway:
        with Bar(_err) as bar:
            state = await gateway.update(args.bundle, lambda have, size: bar.progress("sending", have, size))
    print(
        f"{args.gateway}: {state.state}; it starts anew by itself when that is done (update.status says if it does not)"
    )
    return DONE


def _usb(args: argparse.Namespace) -> int:
    """Under another name until all of it is on the stick and was read back."""
    size = args.bundle.stat().st_size if args.bundle.is_file() else 0
    if not size:
        raise DiskError(f"{args.bundle}: no such file", hint="./inv update.bundle makes it")
    _check_stick(args.to)
    target = args.to / STICK
    new = target.with_suffix(".new")
    try:
        target.parent.mkdir(exist_ok=True)
        with ExitStack() as stack:
            bar = stack.enter_context(Bar(_err))
            source, there = stack.enter_context(args.bundle.open("rb")), stack.enter_context(new.open("w+b"))
            while data := source.read(1 << 20):
                there.write(data)
                there.flush()
                os.fdatasync(there.fileno())  # a stick takes its time, which the bar is to show
                bar.progress("copying", there.tell(), size)
            os.posix_fadvise(there.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            _compare(source, there, args.to, bar, size)
        os.replace(new, target)
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise DiskError(f"{args.to}: {error.strerror}", hint="is it full, or write-protected?") from error
    print(f"wrote {target}; unmount the stick, and plug it into the gateway")
    return DONE


def _compare(source: BinaryIO, there: BinaryIO, stick: Path, bar: Bar, size: int) -> None:
    """What the stick gives back against the file; DiskError when it is something else."""
    source.seek(0)
    there.seek(0)
    while data := source.read(1 << 20):
        at = there.tell()
        if there.read(len(data)) != data:
            raise DiskError(f"{stick}: bytes {at} to {at + len(data)} read back differ", hint="take another stick")
        bar.progress("verifying", there.tell(), size)


def _check_stick(folder: Path) -> None:
    """That a gateway would look at it: the label is what it goes by."""
    if not folder.is_mount():
        raise DiskError(f"{folder}: nothing is mounted there", hint="mount the stick, and name the folder")
    parts = [part for device in targets.devices() for part in device.parts()]
    found = next((part for part in parts if str(folder.resolve()) in part.mountpoints), None)
    if found is not None and (label := found.label or targets.label_of(found.path)) != LABEL:
        hint = f"fatlabel {found.path} {LABEL}, with the stick unmounted"
        raise DiskError(f"{folder}: its label is '{label}', a gateway looks for {LABEL}", hint=hint)


if __name__ == "__main__":
    sys.exit(main())
