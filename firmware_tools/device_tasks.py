"""The tasks of a gateway's image: image.*, provision.device, update.*. Each starts one program."""

import importlib
import shlex

from invoke.context import Context
from invoke.tasks import task

from firmware_tools.programs import given, require_programs, run_python

EMULATOR_PROGRAMS = {
    "qemu-system-aarch64": "qemu-system-arm",
    "/usr/lib/u-boot/qemu_arm64/u-boot.bin": "u-boot-qemu",
    "mkfs.ext4": "e2fsprogs",
    "rauc": "rauc",
}
BUNDLE_PROGRAMS = {"debugfs": "e2fsprogs", "mksquashfs": "squashfs-tools", "rauc": "rauc"}
IMAGE = "an image: .img or .img.zst with its .bmap beside it; without it the one in build/image"


@task(
    name="build",
    help={
        "board": "a name in firmware_tools/boards/gateway: qemu, rpi3, rpi4, rpi5",
        "suite": "of Debian: trixie or bookworm",
        "output": "folder of the results; build/image/BOARD without it",
        "refresh": "take Debian's newest packages, instead of those of the build before",
        "dry-run": "only list the stages, and which would have to be run",
    },
)
def image_build(
    c: Context, board: str, suite: str = "trixie", output: str = "", refresh: bool = False, dry_run: bool = False
) -> None:
    """
    Build the image of a gateway: disk image, block map, manifest, list of parts, and the signed update.

    Needs root, as the image has files of several users. Missing programs are installed with apt-get, or named.
    """
    if not dry_run:
        require_programs(importlib.import_module("firmware_tools.image").PROGRAMS)
    run_tool("image", board=board, suite=suite, output=output, refresh=refresh, dry_run=dry_run)


@task(
    name="flash",
    help={
        "to": "a card, a stick, or a file; without it the disks that could be meant are listed",
        "board": "the image of this board, if several are built",
        "image": IMAGE,
        "provision": "put what this file says into the data partition (./inv provision.device makes it)",
        "dry-run": "check everything and say what would be done",
        "json": "one JSON object instead of text",
        "yes": "do not ask for the disk's name",
    },
)
def image_flash(
    c: Context, to: str = "", board: str = "", image: str = "", provision: str = "", dry_run: bool = False,
    json: bool = False, yes: bool = False,
) -> None:  # fmt: skip
    """
    Write an image onto a card or stick, read it back, and only then make a disk of it.

    Exit code: 0 done; 1 not complete, and without a partition table; 2 nothing was changed; 3 it reads back otherwise.
    """
    run_tool(
        "disk", to=to, board=board, image=image, provision=provision, dry_run=dry_run, json=json, yes=yes
    )  # fmt: skip


@task(name="run", help={"board": "only qemu can be emulated", "args": "its options, in one string; see --args --help"})
def image_run(c: Context, board: str = "qemu", args: str = "") -> None:
    """Boot a gateway's image in the emulator, with its console in this terminal. Ctrl-A X ends it."""
    require_programs(EMULATOR_PROGRAMS)
    run_tool("image_test", "run", *shlex.split(args), board=board)


@task(
    name="test",
    help={
        "board": "qemu; or a real board's name, with --host",
        "long": "30 power cuts instead of 5, and more wrong clocks; hours",
        "host": "test a real board over SSH: [user@]address",
        "args": "more options, in one string; see --args --help",
    },
)
def image_test(c: Context, board: str = "qemu", long: bool = False, host: str = "", args: str = "") -> None:
    """
    Boot a gateway's image and check it: acquire, infer, sync, unplug, update, roll back, cut its power.

    Prints a table, and writes report.html and junit.xml. Exit code: 0 nothing failed; 1 something did; 2 not begun.
    """
    if not host:
        require_programs(EMULATOR_PROGRAMS)
    run_tool("image_test", "test", *shlex.split(args), board=board, long=long, host=host)


@task(
    name="device",
    iterable=["more"],
    help={
        "name": "the gateway's id",
        "config": "its config; without it a small one is made",
        "broker": "HOST or HOST:PORT; with --broker-ca by TLS",
        "broker-ca": "PEM file of who signed the broker's certificate",
        "image": "put it into this raw image",
        "host": "put it onto this gateway by SSH: [USER@]HOST",
        "dry-run": "only show what would change",
        "more": "any other option, as in --more=--timezone=UTC; python -m firmware_tools.provision --help",
    },
)
def provision_device(
    c: Context, name: str, more: list[str], config: str = "", broker: str = "", broker_ca: str = "", image: str = "",
    host: str = "", dry_run: bool = False,
) -> None:  # fmt: skip
    """
    Give a gateway its id, key, certificate, config and network: in a provision file, an image, or over SSH.

    Exit code: 0 done, or nothing to do; 1 it could not be put there; 2 nothing was changed.
    """
    given = {"config": config, "broker": broker, "broker_ca": broker_ca, "image": image, "host": host}
    run_tool("provision", name, *more, **given, dry_run=dry_run)


@task(
    name="bundle",
    help={"board": "of this board", "image": IMAGE, "out": "the file", "args": "other options, in one string"},
)
def update_bundle(c: Context, board: str = "", image: str = "", out: str = "", args: str = "") -> None:
    """Make a signed update of a built image, with the models in it; --args "--models FILE" adds one."""
    require_programs(BUNDLE_PROGRAMS)
    run_tool("update", "bundle", *shlex.split(args), board=board, image=image, out=out)


@task(
    name="push",
    help={
        "bundle": "what ./inv update.bundle has made",
        "host": "by SSH: [USER@]HOST",
        "gateway": "by MQTT: the gateway's id, with --broker",
        "broker": "HOST or HOST:PORT",
        "args": "other options, in one string",
    },
)
def update_push(c: Context, bundle: str, host: str = "", gateway: str = "", broker: str = "", args: str = "") -> None:
    """
    Send an update, have it installed, start the gateway anew and wait until it is healthy.

    Exit code: 0 it runs; 1 refused, or rolled back; 2 nothing was begun; 3 not heard of again in time.
    """
    run_tool("update", "push", bundle, *shlex.split(args), host=host, gateway=gateway, broker=broker)


@task(
    name="usb", help={"bundle": "what ./inv update.bundle has made", "to": "where a stick labelled OCTOGATE is mounted"}
)
def update_usb(c: Context, bundle: str, to: str) -> None:
    """Put an update onto a stick; a gateway installs it when the stick is plugged in, without any network."""
    run_tool("update", "usb", bundle, to=to)


def run_tool(module: str, *args: str, **options: str | bool) -> None:
    """One command of firmware_tools; its exit code is ours."""
    run_python(f"firmware_tools.{module}", *args, *given(**options))
