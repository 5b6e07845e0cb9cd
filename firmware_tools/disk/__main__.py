"""`./inv image.flash`: an image onto a card, a stick or into a file, written, read back and only then made visible.

Without --to it lists the disks that could be meant. Exit status: 0 done, or only shown; 1 the target is not complete
(and has no partition table, so that nothing takes it for more); 2 nothing was changed; 3 what was read back differs.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

import msgspec
from rich.console import Console
from rich.table import Table

from firmware_tools.disk import provisioned, targets
from firmware_tools.disk.bar import Bar
from firmware_tools.disk.errors import DiskError, VerifyError, WriteError
from firmware_tools.disk.source import Image, open_image
from firmware_tools.disk.targets import size_text
from firmware_tools.disk.write import Written, plan, write
from gateway.errors import OctogateError
from sdk import provision

DONE, INCOMPLETE, UNCHANGED, DIFFERS = 0, 1, 2, 3
IMAGES = Path("build/image")
_err = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit status."""
    args = _parser().parse_args(argv)
    try:
        return _flash(args) if args.to else _list(args)
    except OctogateError as error:
        _err.print(f"octogate: {error}")
        if isinstance(error, WriteError):
            _err.print(f"octogate: {args.to} is not complete and has no partition table; flash it again")
            return DIFFERS if isinstance(error, VerifyError) else INCOMPLETE
        return UNCHANGED
    except KeyboardInterrupt:
        _err.print("octogate: ended; what was begun is not complete and has no partition table")
        return INCOMPLETE


def _ended(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="image.flash", description=__doc__)
    parser.add_argument("--to", type=Path, help="a block device, or a file, which is made or overwritten")
    parser.add_argument("--board", default="", help=f"take the image in {IMAGES}/BOARD")
    parser.add_argument("--image", type=Path, help="take this one (.img or .img.zst, its .bmap beside it)")
    parser.add_argument("--provision", type=Path, help="put what this file says into the data partition")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--dry-run", action="store_true", help="check everything and say what would be done")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    return parser


def _image(args: argparse.Namespace) -> Image | None:
    """The image that was named, or the only one that is built."""
    if args.image:
        return open_image(args.image)
    built = sorted(IMAGES.glob(f"{args.board or '*'}/octogate-*.img.zst"))
    if len(built) > 1:
        names = ", ".join(path.parent.name for path in built)
        raise DiskError("which image?", hint=f"--board, one of: {names}")
    return open_image(built[0]) if built else None


def _list(args: argparse.Namespace) -> int:
    image = _image(args)
    found = targets.candidates(targets.devices(), image.size if image else 0)
    if args.json:
        rows = [
            {"path": item.path, "title": item.title, "size": item.size, "serial": item.serial, "refused": why}
            for item, why in found
        ]
        print(msgspec.json.encode({"targets": rows}).decode())
        return DONE
    if not found:
        print("no removable disk is plugged in; --to FILE writes a file")
        return DONE
    table = Table("device", "model", "size", "", box=None, pad_edge=False)
    for item, why in found:
        table.add_row(item.path, item.title, size_text(item.size), f"refused: {why}" if why else "can be used")
    Console(highlight=False, markup=False).print(table)
    return DONE


def _flash(args: argparse.Namespace) -> int:
    image = _image(args)
    if image is None:
        raise DiskError(f"no image in {IMAGES}/{args.board or '*'}", hint="./inv image.build, or name one with --image")
    title = _target(args.to, image)
    entries = provision.files(provision.load(args.provision)) if args.provision else {}
    with ExitStack() as stack:
        replaced: dict[str, Path] = {}
        told: list[str] = []
        if entries:
            # beside nothing that is shared: keys are in it
            copy = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="octogate-"))) / "data.ext4"
            told = provisioned.prepare(image, entries, copy)
            replaced = {provisioned.PARTITION: copy}
        wanted = sum(end - start for start, end in plan(image))
        if not args.json or args.dry_run:
            _say(args, image, title, wanted, told)
        if args.dry_run or not _agreed(args):
            return DONE if args.dry_run else UNCHANGED
        begun = time.monotonic()
        with Bar(_err) as bar:
            written = write(image, args.to, replaced=replaced, progress=bar.progress)
        _report(args, written, time.monotonic() - begun)
    return DONE


def _target(path: Path, image: Image) -> str:
    """What the target is, for a person; DiskError when it must not be one."""
    if path.is_block_device():
        device = targets.check(path, targets.devices(), image.size)
        return f"{device.title}, {size_text(device.size)}"
    if path.is_relative_to("/dev"):
        raise DiskError(f"{path}: no such device", hint="./inv image.flash lists what is there")
    if path.exists() and not path.is_file():
        raise DiskError(f"{path}: neither a disk nor a file")
    if path.exists() and path.samefile(image.path):
        raise DiskError(f"{path}: that is the image itself")
    if not path.absolute().parent.is_dir():
        raise DiskError(f"{path.parent}: no such folder", hint="make it first")
    return "file, will be overwritten" if path.exists() and path.stat().st_size else "new file"


def _say(args: argparse.Namespace, image: Image, title: str, wanted: int, told: list[str]) -> None:
    if args.json:
        what = {"target": str(args.to), "title": title, "image": str(image.path), "size": image.size, "writes": wanted}
        print(msgspec.json.encode({**what, "changes": [line for line in told if line[:1] != " "]}).decode())
        return
    print(f"image   {image.path.name}: {size_text(image.size)}, of which {size_text(wanted)} are written")
    print(f"target  {args.to} ({title})")
    for line in told:
        print(f"data    {line}")


def _agreed(args: argparse.Namespace) -> bool:
    """A person types the name of the disk: nobody does that by habit."""
    fresh = not args.to.is_block_device() and not (args.to.exists() and args.to.stat().st_size)
    if args.yes or fresh:
        return True
    if not sys.stdin.isatty():
        raise DiskError(f"all on {args.to} will be lost, and nobody is here to agree", hint="--yes")
    _err.print(f"All that is on {args.to} will be lost. Type its name ({args.to.name}) to go on: ", end="")
    if sys.stdin.readline().strip() in (args.to.name, str(args.to)):
        return True
    _err.print("octogate: that is not its name; nothing was changed")
    return False


def _report(args: argparse.Namespace, written: Written, seconds: float) -> None:
    if args.json:
        result = {**msgspec.to_builtins(written), "target": str(args.to), "seconds": round(seconds, 1)}
        print(msgspec.json.encode(result).decode())
        return
    rate = written.bytes / max(seconds, 1e-3) / 1e6
    print(f"done    {size_text(written.bytes)} written and read back in {seconds:.1f} s ({rate:.0f} MB/s)")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _ended)  # as Ctrl-C: what was begun is said to be incomplete
    sys.exit(main())
