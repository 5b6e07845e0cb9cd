"""A disk image as the build makes them, small: a real GPT by sfdisk, real ext4 by mkfs, in a folder."""

import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest
import zstandard

from firmware_tools.disk import bmap

MIB = 1 << 20
LAYOUT = {"boot": (1, 4), "ubootenv": (5, 1), "rootA": (6, 40), "rootB": (46, 40), "data": (86, 16)}
SIZE = 104 * MIB


def program(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if found is None:
        pytest.skip(f"there is no {name}")
    return found


def run(name: str, *args: str | Path, data: bytes = b"") -> bytes:
    done = subprocess.run([program(name), *map(str, args)], input=data, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, (name, args, done.stderr[-500:])
    return done.stdout


def build(folder: Path) -> Path:
    """`octogate-qemu.img.zst` with its .bmap, and the raw image that they were made from."""
    raw = folder / "octogate-qemu.img"
    with raw.open("wb") as file:
        file.truncate(SIZE)
    lines = [f'start={at * 2048}, size={size * 2048}, name="{name}"' for name, (at, size) in LAYOUT.items()]
    run("sfdisk", "--quiet", raw, data="\n".join(["label: gpt", *lines]).encode())
    chance = random.Random(7)
    tree = folder / "tree"
    for name in ("rootA", "data"):
        (tree / name / "etc").mkdir(parents=True)
        (tree / name / "etc" / "hostname").write_text("octogate\n")
    (tree / "rootA" / "usr" / "lib").mkdir(parents=True)
    (tree / "rootA" / "usr" / "lib" / "os-release").write_text("ID=debian\nIMAGE_ID=octogate-qemu\nIMAGE_VERSION=v1\n")
    (tree / "rootA" / "program").write_bytes(chance.randbytes(24 * MIB))
    for name in ("rootA", "rootB", "data"):
        part = folder / name
        with part.open("wb") as file:
            file.truncate(LAYOUT[name][1] * MIB)
        source = ["-d", str(tree / name)] if (tree / name).exists() else []
        run("mkfs.ext4", "-q", "-F", *source, part)
        place(raw, part, LAYOUT[name][0] * MIB)
        part.unlink()
    shutil.rmtree(tree)
    raw.with_name(raw.name + ".bmap").write_bytes(bmap.of_file(raw).to_bytes())
    packed = raw.with_name(raw.name + ".zst")
    packed.write_bytes(zstandard.compress(raw.read_bytes(), level=1))
    return packed


def place(raw: Path, part: Path, at: int) -> None:
    """Copy a file system into the image, its holes as holes."""
    zeros = bytes(4096)
    with raw.open("r+b") as image, part.open("rb") as file:
        for number, block in enumerate(iter(lambda: file.read(4096), b"")):
            if block != zeros:
                image.seek(at + number * 4096)
                image.write(block)


def take(raw: Path, name: str, path: Path) -> Path:
    """One partition of an image or device as a file."""
    at, size = LAYOUT[name]
    with raw.open("rb") as file:
        file.seek(at * MIB)
        path.write_bytes(file.read(size * MIB))
    return path
