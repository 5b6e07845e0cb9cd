"""The Python packages of the image: wheels for arm64 by hash, put into a folder without running one of them."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from firmware_tools.imaging import host

GLIBC = {"3.13": 41, "3.11": 36}  # Python of a suite -> minor version of its glibc: trixie 2.41, bookworm 2.36
# No wheel for arm64. Its pure part works without the compiled one, which is left out.
FROM_SOURCE = ("cobs",)
# What the packages carry for their own developers: tests, headers, tools of the host.
PRUNED = (
    *("bin", "**/tests", "**/test", "**/include", "**/*.pyi", "**/*.c", "**/*.h", "**/*.pxd"),
    *("onnxruntime/tools", "onnxruntime/transformers", "onnxruntime/quantization", "onnxruntime/datasets"),
    *("openvino/libs/*paddle*", "openvino/libs/*jax*", "openvino/libs/*pytorch*", "openvino/libs/*gguf*"),
    *("numpy/f2py", "numpy/random/lib", "ai_edge_litert/libLiteRtWebGpu*", "cv2/data", "zstandard/_cffi*"),
)
MAX_LOCK = 4 << 20


def split_lock(text: str) -> tuple[str, str]:
    """A lock in two: what there are wheels of, and FROM_SOURCE. Raises ValueError: longer than any lock."""
    if len(text) > MAX_LOCK:
        raise ValueError("this is no lock: it is too long")
    blocks = re.split(r"(?m)^(?=[A-Za-z0-9])", text)
    source = [block for block in blocks if block.partition("==")[0] in FROM_SOURCE]
    return "".join(block for block in blocks if block not in source), "".join(source)


def platforms(python: str) -> list[str]:
    """The platforms whose wheels run there, the newest first."""
    return [f"manylinux_2_{minor}_aarch64" for minor in range(GLIBC[python], 16, -1)] + ["manylinux2014_aarch64"]


def install(lock: Path, python: str, target: Path, work: Path) -> None:
    """Everything the lock names, for that Python, into the folder `target`, which is made anew.

    Where from is for pip's own configuration to say.

    Raises BuildError: pip failed, for example as a hash did not fit.
    """
    shutil.rmtree(target, ignore_errors=True)
    wheels, source = split_lock(lock.read_text())
    abi = "cp" + python.replace(".", "")
    foreign = [word for name in platforms(python) for word in ("--platform", name)]
    foreign += ["--python-version", python, "--implementation", "cp", "--only-binary=:all:"]
    foreign += ["--abi", abi, "--abi", "abi3", "--abi", "none"]
    _pip(work / "wheels.txt", wheels, target, *foreign)
    if source:
        _pip(work / "source.txt", source, target, "--no-binary=:all:")
        for name in FROM_SOURCE:
            for compiled in (target / name).rglob("*.so"):  # for this machine's processor
                compiled.unlink()
    prune(target)


def _pip(listing: Path, lock: str, target: Path, *options: str) -> None:
    listing.write_text(lock)
    pip = (
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-compile",
        "--no-deps",
    )
    # the Python that runs pip is not the one that the packages are for
    host.run(
        *pip, "--ignore-requires-python", "--require-hashes", "--upgrade", "--target", target, *options, "-r", listing
    )


def prune(target: Path) -> None:
    """Remove what an image does not need."""
    for pattern in PRUNED:
        for path in sorted(target.glob(pattern)):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
