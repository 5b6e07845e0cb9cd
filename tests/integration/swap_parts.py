"""What misbehaves in tests of swaps; each a process.

    python -m tests.integration.swap_parts worker SETUP              a real worker; see below
    python -m tests.integration.swap_parts daemon run ...            octogate with such workers
    python -m tests.integration.swap_parts cut STEP COUNTER run ...  the same, SIGKILL before a step of a swap

The worker does by the version of its first bundle: `crash` dies by SIGSEGV at the first job, `wrong` fails its golden
samples from the first job on, `dies` never gets ready where
it is to serve. COUNTER is a file that counts the steps, also over starts.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from gateway import durable
from gateway.child import python_module
from gateway.errors import ModelError
from gateway.infer import crew, shadow, shelf, verify, wire, worker
from gateway.infer.bundle import read_manifest
from gateway.infer.engine import Engine
from gateway.infer.swap import Swapper

WORKER = tuple(python_module("tests.integration.swap_parts", "worker"))


def set_in(owner: Any, **names: Any) -> None:
    for name, value in names.items():
        setattr(owner, name, value)


def misbehaving(argument: str) -> int:
    setup = msgspec.json.decode(argument, type=wire.Setup)
    version = read_manifest(Path(setup.tenants[0].bundle)).version
    if "dies" in version and setup.nice != shadow.NICE:
        os.kill(os.getpid(), signal.SIGSEGV)
    if "crash" in version:
        set_in(worker.Worker, _answer=lambda self, job: os.kill(os.getpid(), signal.SIGSEGV))
    if "wrong" in version:
        real = worker.Worker._answer

        def fails(model: worker.Model) -> None:
            raise ModelError("golden sample golden/0 is off by 7, fp32 may be off by 0.0001")

        def first(self: worker.Worker, job: wire.Job) -> None:
            set_in(worker.Model, check=fails, answer=lambda self, data, media: self.recheck())
            real(self, job)

        set_in(worker.Worker, _answer=first)
    return worker.main(argument)


def cut(at: int, counter: Path) -> None:
    """Before each write to the disk of a swap, and before each thing that it has others do."""

    def counted(owner: Any, name: str, counts: Callable[..., bool] = lambda *_, **__: True) -> None:
        real: Callable[..., Any] = getattr(owner, name)

        def step(*args: Any, **more: Any) -> Any:
            if not counts(*args, **more):
                return real(*args, **more)
            with counter.open("ab") as file:
                file.write(b".")
            if counter.stat().st_size == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **more)

        setattr(owner, name, step)

    def on_shelf(path: Path, *_: Any, **__: Any) -> bool:  # not what a measurement remembers, whenever that ends
        return "models" in path.parts

    counted(shelf, "_copy")
    for name in ("write", "replace", "sync_folder", "remove"):
        counted(durable, name, on_shelf)
    counted(verify, "ask")
    counted(Engine, "change")
    counted(Swapper, "_seen")
    counted(Swapper, "_over")


if __name__ == "__main__":
    mode, *rest = sys.argv[1:]
    if mode == "worker":
        sys.exit(misbehaving(*rest))
    from gateway.__main__ import main

    if mode in ("daemon", "cut"):
        set_in(crew, python_module=lambda module: [*WORKER])
    if mode == "cut":
        cut(int(rest[0]), Path(rest[1]))
        rest = rest[2:]
    sys.exit(main(rest))
