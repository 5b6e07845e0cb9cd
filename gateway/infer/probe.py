"""The child that loads one runtime to ask it something: `python -m gateway.infer.probe devices|explain ARGUMENT`.

It answers with one line of JSON on its standard output. A runtime that hangs or crashes at being asked takes only
this process along.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec

from gateway.child import die_with_parent
from gateway.errors import ModelError
from gateway.infer.candidate import Candidate, Report


class AskDevices(msgspec.Struct, frozen=True, tag="devices"):
    """Which devices a backend has; `extra` are those to look for beside its own."""

    backend: str
    extra: tuple[str, ...]
    parent: int


class AskReport(msgspec.Struct, frozen=True, tag="report"):
    """What a candidate really runs on, once it has computed a golden sample."""

    bundle: str
    candidate: Candidate
    parent: int


class Device(msgspec.Struct, frozen=True):
    name: str
    why_not: str = ""


class Answer(msgspec.Struct, frozen=True):
    """One of these, or the reason why there is none."""

    devices: tuple[Device, ...] = ()
    report: Report | None = None
    fault: str = ""


def main(argument: str) -> int:
    ask = msgspec.json.decode(argument, type=AskDevices | AskReport)
    die_with_parent(ask.parent)
    out = os.dup(1)
    os.dup2(2, 1)  # a runtime that prints must not write into the answer
    try:
        answer = _devices(ask) if isinstance(ask, AskDevices) else _report(ask)
    except ModelError as error:
        answer = Answer(fault=str(error))
    os.write(out, msgspec.json.encode(answer))
    return 0


def _devices(ask: AskDevices) -> Answer:
    from gateway.infer.backend import backend

    found = backend(ask.backend).devices(ask.extra)
    return Answer(devices=tuple(Device(device.name, device.why_not) for device in found))


def _report(ask: AskReport) -> Answer:
    from gateway.infer import golden
    from gateway.infer.backend import load
    from gateway.infer.bundle import Bundle
    from gateway.infer.recipe import Recipe

    with Bundle(Path(ask.bundle)) as bundle:
        loaded = load(bundle.manifest, bundle.member, ask.candidate)
        golden.check(
            golden.Samples.of(bundle),
            Recipe(bundle.manifest, ask.candidate.threads),
            loaded.runner,
            loaded.variant.precision,
        )
    return Answer(report=loaded.runner.report())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
