"""Is the choice of `auto` right? Every candidate by hand, in a bare loop without engine or worker, beside what
placement chooses; and what measuring in idle time does to a process that has other things to do.

    python -m bench.place [--json] [--seconds S] [--rounds N] [BUNDLE.octo ...]

Without a bundle: those of the repository, and the same with more variants: OpenVINO IR where openvino is installed, int8
(QDQ) where onnx is (onnxruntime.quantization needs it). `bare` is auto's time by hand, as a ratio to the best
candidate's by hand; `path` the same by way of engine and worker, which is what a pipeline sees and what is chosen by.
The bar is 1.10. `lag`: how late a timer of 5 ms comes in this process, 99th percentile, before and while a
measurement runs at the lowest priority.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from gateway.child import Child, python_env, python_module
from gateway.errors import ModelError
from gateway.infer.backend import Runner, load
from gateway.infer.bundle import Bundle
from gateway.infer.candidate import Candidate
from gateway.infer.manifest import Manifest, Variant
from gateway.infer.order import Order, cpus_here
from gateway.infer.place import place
from gateway.infer.ranking import Placement
from gateway.infer.recipe import Recipe
from sdk.bundle import pack

MODELS = Path(__file__).resolve().parents[1] / "models"
BAR = 1.10
TURN_S = 0.1
LAG_ROUNDS = 3


class Bare:
    """Pre steps, runtime, post steps in this process."""

    def __init__(self, path: Path, candidate: Candidate) -> None:
        with Bundle(path) as bundle:
            self._recipe = Recipe(bundle.manifest)
            self._runner: Runner = load(bundle.manifest, bundle.member, candidate).runner
            golden = bundle.manifest.golden[0]
            self._sample = bytes(bundle.member(golden.input)), golden.media
        self.rounds: list[float] = []

    def turn(self) -> None:
        times: list[float] = []
        end = time.perf_counter() + TURN_S
        while len(times) < 4 or time.perf_counter() < end:
            at = time.perf_counter()
            prepared = self._recipe.prepare(*self._sample)
            self._recipe.finish(self._runner(prepared.inputs), prepared.place)
            times.append(time.perf_counter() - at)
        self.rounds.append(statistics.median(times[1:]))

    def ms(self) -> float:
        return statistics.median(self.rounds) * 1000


def by_hand(path: Path, placement: Placement, rounds: int) -> dict[Candidate, float]:
    """Milliseconds of every candidate that works, in turns."""
    bares = {m.candidate: Bare(path, m.candidate) for m in placement.measured if m.figures}
    for _ in range(rounds):
        for bare in bares.values():
            bare.turn()
    return {candidate: bare.ms() for candidate, bare in bares.items()}


def compare(path: Path, seconds: float, rounds: int) -> dict[str, Any]:
    with Bundle(path) as bundle:
        order = Order(
            name=bundle.manifest.name, bundle=str(path), allow_unsigned=True, cpus=cpus_here(), deadline_s=30.0,
            seconds=seconds,
        )  # fmt: skip
    placement = asyncio.run(place(order, lambda done, total, what: None, again=True)).placement
    auto = placement.ranking[0]
    hand = by_hand(path, placement, rounds)
    best = min(hand, key=lambda candidate: hand[candidate])
    paths = {m.candidate: m.figures.p50_us / 1000 for m in placement.measured if m.figures and m.final}
    return {
        "bundle": path.stem,
        "candidates": len(placement.measured),
        "auto": f"{auto} {auto.file}",
        "auto_ms": hand[auto],
        "best": f"{best} {best.file}",
        "best_ms": hand[best],
        "bare": hand[auto] / hand[best],
        "path": paths[auto] / min(paths.values()),
        "by_hand_ms": {f"{candidate} {candidate.file}": ms for candidate, ms in hand.items()},
    }


def bundles(folder: Path) -> Iterator[Path]:
    for path in sorted(MODELS.glob("*/*.octo")):
        yield path
        if (richer := with_variants(path, folder)) is not None:
            yield richer


def with_variants(path: Path, folder: Path) -> Path | None:
    """The same model with an IR, and int8 where there is an ONNX file; None when no tool is installed."""
    with Bundle(path) as bundle:
        manifest = bundle.manifest
        members = {name: bytes(bundle.member(name)) for name in manifest.members()}
    variants = list(manifest.variants)
    for variant in manifest.variants:
        source = folder / Path(variant.file).name
        source.write_bytes(members[variant.file])
        for made in (as_ir, as_int8):
            try:
                new, data = made(variant, source, manifest, members)
            except ImportError as error:
                print(f"{path.stem}: {made.__name__}: {error}")
                continue
            if new is not None:
                variants.append(new)
                members |= data
    if len(variants) == len(manifest.variants):
        return None
    out = folder / f"{path.stem}+{len(variants) - len(manifest.variants)}.octo"
    pack(out, msgspec.structs.replace(manifest, variants=tuple(variants)), members)
    return out


Made = tuple[Variant | None, dict[str, bytes]]


def as_ir(variant: Variant, source: Path, manifest: Manifest, members: dict[str, bytes]) -> Made:
    import openvino

    if variant.format == "openvino" or variant.precision != "fp32":
        return None, {}
    xml = source.with_suffix(".xml")
    openvino.save_model(openvino.Core().read_model(source), xml, compress_to_fp16=False)
    made = Variant(
        file=xml.name, weights=f"{xml.stem}.bin", format="openvino", precision="fp32",
        inputs=variant.inputs, outputs=variant.outputs,
    )  # fmt: skip
    return made, {xml.name: xml.read_bytes(), f"{xml.stem}.bin": xml.with_suffix(".bin").read_bytes()}


def as_int8(variant: Variant, source: Path, manifest: Manifest, members: dict[str, bytes]) -> Made:
    """Static QDQ, calibrated on the golden samples: for timing, its accuracy is not the matter here."""
    if variant.format != "onnx" or variant.precision != "fp32":
        return None, {}
    import onnxruntime
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    names = list(variant.inputs) or [node.name for node in onnxruntime.InferenceSession(source).get_inputs()]
    recipe = Recipe(manifest)
    inputs = [recipe.prepare(members[golden.input], golden.media).inputs for golden in manifest.golden]

    class Samples(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = iter(dict(zip(names, map(np.copy, each), strict=True)) for each in inputs)

        def get_next(self) -> dict[str, Any] | None:
            return next(self._left, None)

    out = source.with_suffix(".int8.onnx")
    quantize_static(source, out, Samples(), quant_format=QuantFormat.QDQ)
    made = Variant(file=out.name, format="onnx", precision="int8", inputs=variant.inputs, outputs=variant.outputs)
    return made, {out.name: out.read_bytes()}


async def lag(path: Path, seconds: float) -> dict[str, float]:
    """Milliseconds that a timer of this process is late, p50 and p99, alone and beside a measurement."""

    async def late_ms(until: asyncio.Future[int] | None) -> list[float]:
        loop = asyncio.get_running_loop()
        late: list[float] = []
        end = loop.time() + seconds
        while (loop.time() < end) if until is None else not until.done():
            at = loop.time()
            await asyncio.sleep(0.005)
            late.append((loop.time() - at - 0.005) * 1000)
        return late

    order = Order(name="lag", bundle=str(path), allow_unsigned=True, cpus=cpus_here(), deadline_s=30.0, seconds=seconds)
    argument = msgspec.json.encode(msgspec.structs.replace(order, parent=os.getpid())).decode()
    alone: list[float] = []
    beside: list[float] = []
    for _ in range(LAG_ROUNDS):  # in turns: the machine may be less calm at one time than at another
        alone += await late_ms(None)
        async with Child([*python_module("gateway.infer.place"), argument], env=python_env(), nice=19) as child:
            async with asyncio.TaskGroup() as group:
                beside += await late_ms(group.create_task(child.wait(), name="measuring"))
            if child.returncode:
                raise ModelError(f"the measurement beside ended with status {child.returncode}")
    return {
        f"{name}_p{q}": values[min(len(values) - 1, len(values) * q // 100)]
        for name, values in (("alone", sorted(alone)), ("beside", sorted(beside)))
        for q in (50, 99)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bundle", nargs="*", type=Path)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--seconds", type=float, default=3.0, help="of placement, per good candidate (default 3)")
    parser.add_argument("--rounds", type=int, default=15, help="of the bare loops (default 15)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = options.bundle or list(bundles(Path(folder)))
        rows = [compare(path, options.seconds, options.rounds) for path in paths]
        late = asyncio.run(lag(paths[0], options.seconds))
    if options.json:
        print(json.dumps({"place": rows, "lag_ms": late, "bar": BAR}))
        return
    print(f"{'bundle':20}{'auto':34}{'ms':>8}  {'best by hand':34}{'ms':>8}{'bare':>7}{'path':>7}  (bar {BAR:.2f})")
    for row in rows:
        print(
            f"{row['bundle']:20}{row['auto']:34}{row['auto_ms']:8.3f}  {row['best']:34}{row['best_ms']:8.3f}"
            f"{row['bare']:7.2f}{row['path']:7.2f}"
        )
    print("lag ms: " + ", ".join(f"{name} {ms:.2f}" for name, ms in late.items()))


if __name__ == "__main__":
    main()
