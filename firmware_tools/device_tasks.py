"""The tasks that put an image onto a gateway: image.flash, provision.device, update.*. Each starts one program."""

import shlex
import subprocess
import sys
from pathlib import Path

from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import task

ROOT = Path(__file__).resolve().parents[1]
IMAGE = "an image: .img or .img.zst with its .bmap beside it; without it the one in build/image"


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
    given = [part for key, value in options.items() if value for part in option(key, value)]
    command = [sys.executable, "-m", f"firmware_tools.{module}", *args, *given]
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    if code:
        raise Exit(code=code if code > 0 else 128 - code)


def option(key: str, value: str | bool) -> list[str]:
    name = "--" + key.replace("_", "-")
    return [name] if value is True else [f"{name}={value}"]
