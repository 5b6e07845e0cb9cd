"""What this machine has to compute on, and the candidates that follow from it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import zlib
from collections.abc import Iterator
from importlib import metadata

import msgspec

from gateway.child import ended, python_env, python_module
from gateway.infer import probe
from gateway.infer.candidate import BACKENDS, CPU, NAMES, Candidate
from gateway.infer.manifest import Manifest
from gateway.infer.order import Order
from gateway.infer.probe import Device
from gateway.infer.ranking import Key, Measured

# the packages that compute; another version of one of them may be faster, slower or wrong
PACKAGES = ("onnxruntime", "onnxruntime-ep-openvino", "openvino", "ai-edge-litert", "tflite-runtime", "numpy")
_MAX_ANSWER = 1 << 20
# of /proc/cpuinfo, x86 and ARM: what a runtime chooses its kernels by
_CPU_LINES = ("model name", "flags", "Features", "CPU implementer", "CPU architecture", "CPU variant", "CPU part")

Devices = dict[str, tuple[Device, ...]]
"""By backend."""


async def devices(order: Order) -> Devices:
    """Ask every backend, each in a process of its own, one after the other."""
    found: Devices = {}
    for name in NAMES:
        question = probe.AskDevices(name, order.extra.get(name, ()), os.getpid())
        answer = await ask(question, order.patience_s)
        found[name] = answer.devices or (Device(CPU, answer.fault or "names no device"),)
    return found


async def ask(question: probe.AskDevices | probe.AskReport, patience_s: float) -> probe.Answer:
    """One question to one runtime; a fault, never an exception, when it does not answer."""
    process = await asyncio.create_subprocess_exec(
        *python_module("gateway.infer.probe", msgspec.json.encode(question).decode()),
        env=python_env(),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(patience_s):
            out, err = await process.communicate()
    except TimeoutError:
        return probe.Answer(fault=f"no answer in {patience_s:g} s")
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    status = await process.wait()
    if status < 0:
        return probe.Answer(fault=f"its runtime crashed: {ended(status)}")
    try:
        if len(out) > _MAX_ANSWER:
            raise ValueError(f"an answer of {len(out)} bytes")
        return msgspec.json.decode(out, type=probe.Answer)
    except ValueError as error:
        said = err.decode(errors="replace").strip().splitlines()[-1:] or [str(error)]
        return probe.Answer(fault=f"{ended(status)}: {said[0][:300]}")


def key(order: Order, digest: str, found: Devices) -> Key:
    """What the measurement will depend on."""
    listed = tuple(
        f"{backend} {device.name}{': ' + device.why_not[:500] if device.why_not else ''}"
        for backend, devices in sorted(found.items())
        for device in devices
    )
    return Key(digest, order.objective, order.cpus, order.pins, versions(), processor(), listed)


def versions() -> tuple[str, ...]:
    """Of the packages that are installed, by reading their metadata: nothing is imported."""
    found = []
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.append(f"{name} {metadata.version(name)}")
    return tuple(found)


def processor() -> str:
    """Model and a checksum of the features of this machine's processors."""
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        lines = [line.partition(":") for line in file.read(1 << 20).splitlines()]
    known = sorted({(name.strip(), value.strip()) for name, _, value in lines if name.strip() in _CPU_LINES})
    model = next((value for name, value in known if name == "model name"), os.uname().machine)
    return f"{model[:200]} {zlib.crc32(repr(known).encode()):08x}"


def candidates(order: Order, manifest: Manifest, found: Devices) -> tuple[list[Candidate], list[Measured]]:
    """Every candidate that the config's pins allow, and those that need not be tried, with the reason."""
    possible: list[Candidate] = []
    absent: list[Measured] = []
    for variant in manifest.variants:
        for backend in BACKENDS[variant.format]:
            for device in found[backend]:
                for threads in _threads(order, device):
                    candidate = Candidate(
                        backend=backend,
                        file=variant.file,
                        precision=variant.precision,
                        device=device.name,
                        threads=threads,
                    )
                    if not order.allows(candidate):
                        continue
                    if device.why_not:
                        absent.append(Measured(candidate, rejected=device.why_not))
                    else:
                        possible.append(candidate)
    return possible, absent


def _threads(order: Order, device: Device) -> Iterator[int]:
    """1, 2, 4 ... and the whole budget, or what is pinned; another device has its own units."""
    if device.why_not or device.name != CPU:
        yield order.threads or 1
        return
    if order.threads:
        yield order.threads
        return
    n = 1
    while n < order.cpus:
        yield n
        n *= 2
    yield order.cpus
