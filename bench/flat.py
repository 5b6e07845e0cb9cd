"""Does a worker's memory stay flat? 10,000 inferences through the real engine and worker, for each backend.

    python bench/flat.py [--json] [--runs N] [--only NAME] [--bundle FILE]

Reads /proc/PID/smaps_rollup of the worker after a tenth of the runs and at the end. What counts is anonymous memory:
PSS also moves when other processes map or unmap the same libraries; it is printed beside. The bound is 0.5 MiB over the
9,000 runs between, 58 bytes a run: less than one forgotten Python object with its dictionary, or one NumPy array (112
bytes), a run. Exit status 1 when a worker grew by more, or was replaced on the way.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gateway.infer.bundle import Bundle
from gateway.infer.candidate import Candidate, defaults
from gateway.infer.engine import Engine
from gateway.infer.manifest import Manifest, Variant
from sdk.bundle import openvino_variant, pack
from tests.unit import bundles

ROOT = Path(__file__).resolve().parents[1]
MACHINE_STATE = ROOT / "models/machine_state/machine_state.octo"
BOUND_KIB = 512


class Case(NamedTuple):
    name: str
    bundle: Path
    candidate: Candidate
    data: bytes
    media: str


def cases_of(path: Path, name: str) -> Iterator[Case]:
    """Every variant of a bundle on every backend that takes it, with its first golden sample as input."""
    with Bundle(path) as bundle:
        golden = bundle.manifest.golden[0]
        data = bytes(bundle.member(golden.input))
        for candidate in defaults(bundle.manifest):
            yield Case(f"{name}: {candidate}", path, candidate, data, golden.media)


def repack(path: Path, source: Path, variant: Variant, members: dict[str, bytes]) -> None:
    """A bundle of the repository with one other variant in place of its own."""
    with Bundle(source) as bundle:
        manifest: Manifest = bundle.manifest
        old = {name for one in manifest.variants for name in (one.file, one.weights) if name}
        kept = {name: bytes(bundle.member(name)) for name in manifest.members() if name not in old}
        pack(path, msgspec.structs.replace(manifest, variants=(variant,)), {**kept, **members})


def ir_of_machine_state(folder: Path) -> Path:
    import openvino

    with Bundle(MACHINE_STATE) as bundle:
        (file,) = [one.file for one in bundle.manifest.variants if one.format == "onnx"]
        model = openvino.Core().read_model(bytes(bundle.member(file)))
    openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)
    repack(folder / "machine_state_ir.octo", MACHINE_STATE, *openvino_variant(folder / "model.xml", "fp32"))
    return folder / "machine_state_ir.octo"


def memory_kib(pid: int) -> tuple[int, int]:
    """Anonymous memory and PSS of a process, KiB."""
    fields = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        key, _, rest = line.partition(":")
        fields[key] = int(rest.split()[0])
    return fields["Anonymous"], fields["Pss"]


async def measure(case: Case, runs: int) -> dict[str, Any]:
    engine = Engine(
        "flat",
        case.bundle,
        candidates=(case.candidate,),
        allow_unsigned=True,
        deadline_s=60,
        notify=lambda *_, **__: None,
    )
    seen = []
    async with asyncio.TaskGroup() as group:
        task = group.create_task(engine.supervise(), name="engine")
        started = time.perf_counter()
        for part in (runs // 10, runs - runs // 10):
            for _ in range(part):
                answer = await engine.run(case.data, case.media)
            seen.append(memory_kib(engine.status().pid))
        took = time.perf_counter() - started
        restarts = engine.status().restarts
        task.cancel()
    (early, early_pss), (late, late_pss) = seen
    return {
        "case": case.name,
        "backend": answer.backend,
        "runs": runs,
        "anonymous_kib": [early, late],
        "pss_kib": [early_pss, late_pss],
        "grown_kib": late - early,
        "bytes_a_run": (late - early) * 1024 / (runs - runs // 10),
        "restarts": restarts,
        "us_a_run": took / runs * 1e6,
        "flat": late - early <= BOUND_KIB and not restarts,
    }


def table(rows: list[dict[str, Any]], runs: int) -> str:
    head = f"{'KiB':46}{f'at {runs // 10}':>10}{f'at {runs}':>10}{'grown':>7}{'PSS':>8}{'PSS':>8}{'us/run':>8}"
    lines = [head]
    for row in rows:
        numbers = f"{row['anonymous_kib'][0]:10}{row['anonymous_kib'][1]:10}{row['grown_kib']:7}"
        numbers += f"{row['pss_kib'][0]:8}{row['pss_kib'][1]:8}{row['us_a_run']:8.0f}"
        lines.append(f"{row['case']:46}{numbers}  {'flat' if row['flat'] else 'GREW'}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--runs", type=int, default=10_000, help="inferences of each case (default 10,000)")
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--bundle", type=Path, help="another bundle instead, with its first golden sample as input")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.bundle:
            cases = list(cases_of(options.bundle, options.bundle.stem))
        else:
            cases = [
                *cases_of(MACHINE_STATE, "machine_state"),
                *cases_of(ir_of_machine_state(folder), "machine_state as IR"),
                *cases_of(bundles.make_litert(folder / "tiny_tflite.octo"), "tiny"),
                *cases_of(bundles.make_openvino(folder / "tiny_ir.octo", "int8"), "tiny as IR"),
            ]
        rows = [asyncio.run(measure(case, options.runs)) for case in cases if options.only in case.name]
    print(json.dumps({"flat": rows}) if options.json else table(rows, options.runs))
    return 0 if all(row["flat"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
