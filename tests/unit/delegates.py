"""Builds the simulated LiteRT delegate of delegate.c with this machine's C compiler."""

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("delegate.c")
needs_compiler = pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc: the simulated delegate is not built")


def build(folder: Path, variant: str = "TAKES_ALL") -> str:
    """Args: variant: `TAKES_ALL`, `TAKES_NOTHING` (no node of any model) or `ABSENT` (its device is not there)."""
    library = folder / f"libsimulated-{variant.lower().replace('_', '-')}.so"
    command = ["gcc", "-std=c11", f"-D{variant}", "-shared", "-fPIC", "-o", str(library), str(SOURCE)]
    subprocess.run(command, check=True)
    return str(library)
