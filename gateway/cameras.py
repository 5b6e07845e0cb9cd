"""`octogate cameras`: which cameras are there, under which lasting names, what they can do, and a test picture."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from gateway.acquire import v4l2
from gateway.acquire.capture import Capture
from gateway.acquire.v4l2 import Device, Kernel
from gateway.clock import Clock
from gateway.errors import SourceError
from gateway.source_tables import CameraSource

PICTURE_S = 5.0  # most that a test picture may take
SETTLE = 5  # pictures until exposure and white balance have settled


class Size(msgspec.Struct, frozen=True):
    width: int
    height: int
    fps: tuple[float, ...]


class Format(msgspec.Struct, frozen=True):
    name: str
    sizes: tuple[Size, ...]


class Control(msgspec.Struct, frozen=True):
    name: str
    kind: str
    minimum: int
    maximum: int
    default: int
    value: int | None


class Camera(msgspec.Struct, frozen=True):
    """One capture device; `device` is its best name."""

    device: str
    names: tuple[str, ...]
    card: str
    driver: str
    bus: str
    formats: tuple[Format, ...]
    controls: tuple[Control, ...]


def run(args: argparse.Namespace, kernel: Kernel | None = None, dev: Path = Path("/dev")) -> int:
    """The command; its exit status is 1 when there is no camera.

    Raises:
        SourceError: the picture could not be taken, or not written.
    """
    kernel = kernel or v4l2.Linux()
    cameras = list(look(kernel, dev, args.device))
    print(msgspec.json.encode(cameras).decode() if args.json else text(cameras))
    if not cameras:
        return 1
    if args.picture:
        data = asyncio.run(take(cameras[0].device, kernel, *_size(args.size)))
        try:
            args.picture.write_bytes(data)
        except OSError as error:
            raise SourceError(f"{args.picture}: cannot write the picture: {error.strerror}") from error
        if not args.json:
            print(f"{args.picture}: {len(data)} bytes from {cameras[0].device}")
    return 0


def look(kernel: Kernel, dev: Path, only: str = "") -> Iterator[Camera]:
    """The cameras below `dev`, or the one named; what is no camera that can be read here is passed over."""
    links: dict[Path, list[str]] = {}
    for folder in ("v4l/by-id", "v4l/by-path"):
        for link in sorted((dev / folder).glob("*")):
            links.setdefault(link.resolve(), []).append(str(link))
    nodes = [Path(only).resolve()] if only else sorted(dev.glob("video[0-9]*"), key=_number)
    for node in nodes:
        names = [*links.get(node, []), str(node)]
        try:
            with contextlib.closing(Device(names[0], kernel)) as opened:
                camera = _described(opened, names)
        except SourceError:
            if only:
                raise
            continue
        yield camera


def _described(device: Device, names: list[str]) -> Camera:
    driver, card, bus = device.identity()
    formats = []
    for code in device.formats():
        sizes = (Size(w, h, tuple(device.rates(code, w, h))) for w, h in device.sizes(code))
        formats.append(Format(v4l2.code_name(code), tuple(sizes)))
    controls = []
    for control in device.controls():
        value = None
        with contextlib.suppress(OSError):
            value = device.get_control(control.id)
        controls.append(Control(control.name, control.kind, control.minimum, control.maximum, control.default, value))
    return Camera(names[0], tuple(names), card, driver, bus, tuple(formats), tuple(controls))


async def take(device: str, kernel: Kernel, width: int, height: int) -> bytes:
    """A JPEG, once the camera has settled.

    Raises:
        SourceError: the camera gives none.
    """
    table = CameraSource(name="test", device=device, width=width, height=height, fps=30.0, memory_mib=256)
    capture = Capture(table, device, kernel, Clock())
    data = b""
    try:
        with contextlib.suppress(TimeoutError):  # what came by then is good enough
            async with asyncio.timeout(PICTURE_S):
                for _ in range(SETTLE):
                    if picture := await capture.picture():
                        data = picture[0]
        if not data:
            raise SourceError(f"{device}: no whole picture in {PICTURE_S:g} s", hint="try a smaller --size")
    finally:
        capture.close()
    if capture.media == "image/jpeg":
        return data
    try:
        from gateway.infer import raw
    except ImportError as error:
        raise SourceError(f"{device} gives raw pictures: {error}", hint="install octogate[camera]") from error
    return raw.to_jpeg(data, capture.media, len(data))


def text(cameras: list[Camera]) -> str:
    """For people."""
    if not cameras:
        return "no camera: is one plugged in? CSI cameras are not listed, see docs/cameras.md"
    lines = []
    for camera in cameras:
        lines += [f"{camera.card}  ({camera.driver}, {camera.bus})"]
        lines += [f"  {'device' if name == camera.device else 'also'}  {name}" for name in camera.names]
        for each in camera.formats:
            sizes = (f"{s.width}x{s.height} at {' '.join(f'{fps:g}' for fps in s.fps) or '?'}" for s in each.sizes)
            lines.append(f"  {each.name}  " + ", ".join(sizes))
        for control in camera.controls:
            now = "" if control.value is None else f", now {control.value}"
            lines.append(f"  {control.name} = {control.minimum} to {control.maximum}, {control.default} at first{now}")
    return "\n".join(lines)


def _size(wanted: str) -> tuple[int, int]:
    width, _, height = wanted.partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise SourceError(f"--size {wanted}: not a size", hint="for example --size 1280x720")
    return int(width), int(height)


def _number(node: Path) -> int:
    digits = node.name.removeprefix("video")
    return int(digits) if digits.isdecimal() else -1
