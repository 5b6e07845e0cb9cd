"""What a runner's call costs, beside the bare loops of its runtime on the same model and thread, taking turns.

    python bench/calls.py [--json] [--rounds N]

Tiny models (a window of 8 readings, one matrix), so that the call and not the model is seen; and machine_state, for
what is left of that in a small real one. `plain` is the call that the runtime's documentation shows first, `bare` the
fastest call style of it without anything around. Exit status 1 when a runner of a tiny model takes more than 5 us longer
than `bare`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gateway.infer.backend import Source, backend
from gateway.infer.bundle import Bundle
from gateway.infer.candidate import Candidate
from gateway.infer.manifest import Variant
from tests.unit import bundles

ROOT = Path(__file__).resolve().parents[1]
INNER = 20  # calls between two looks at the clock
BOUND_US = 5.0

Call = Callable[[], object]


class Case(NamedTuple):
    name: str
    calls: dict[str, Call]  # bare, plain, runner


def runner(name: str, model: bytes, x: Any) -> Call:
    variant = Variant(file="model", format="tflite" if name == "litert" else "onnx", precision="fp32")
    loaded = backend(name).load(Source(variant, model), Candidate(backend=name, file="model", precision="fp32"))
    return lambda: loaded([x])


def onnx(label: str, model: bytes, x: Any) -> Case:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    (given,), (made,) = session.get_inputs(), session.get_outputs()
    place, out = np.zeros(x.shape, np.float32), np.zeros(made.shape, np.float32)
    binding = session.io_binding()
    binding.bind_input(given.name, "cpu", 0, np.float32, place.shape, place.ctypes.data)
    binding.bind_output(made.name, "cpu", 0, np.float32, out.shape, out.ctypes.data)

    def bare() -> None:
        place[...] = x
        session.run_with_iobinding(binding)

    plain = lambda: session.run(None, {given.name: x})  # noqa: E731
    return Case(f"onnx, {label}", {"bare": bare, "plain": plain, "runner": runner("onnx", model, x)})


def openvino(label: str, model: bytes, x: Any) -> Case:
    import openvino as ov

    core = ov.Core()
    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32", "ENABLE_CPU_PINNING": False}
    compiled = core.compile_model(core.read_model(model), "CPU", settings)
    request, other = compiled.create_infer_request(), compiled.create_infer_request()
    place = request.get_input_tensor(0).data

    def bare() -> None:
        place[...] = x
        request.infer()

    plain = lambda: other.infer({0: x})  # noqa: E731
    return Case(f"openvino, {label}", {"bare": bare, "plain": plain, "runner": runner("openvino", model, x)})


def litert(label: str, model: bytes, x: Any) -> Case:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=model, num_threads=1)
    interpreter.allocate_tensors()
    given, made = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]

    def bare() -> None:
        interpreter.set_tensor(given, x)
        interpreter.invoke()
        interpreter.get_tensor(made)

    return Case(f"litert, {label}", {"bare": bare, "plain": bare, "runner": runner("litert", model, x)})


def cases() -> Iterator[Case]:
    x = np.arange(bundles.LENGTH, dtype=np.float32).reshape(1, bundles.LENGTH)
    yield onnx("tiny", bundles.onnx_model(), x)
    yield openvino("tiny", bundles.onnx_model(), x)
    yield litert("tiny", bundles.tflite_model(), x)
    with Bundle(ROOT / "models/machine_state/machine_state.octo") as bundle:
        (file,) = [one.file for one in bundle.manifest.variants if one.format == "onnx"]
        model = bytes(bundle.member(file))
    x = np.random.default_rng(1).normal(size=(1, 2, 256)).astype(np.float32)
    yield onnx("machine_state", model, x)
    yield openvino("machine_state", model, x)


def measure(case: Case, rounds: int) -> dict[str, Any]:
    times: dict[str, list[float]] = {name: [] for name in case.calls}
    for _ in range(rounds):
        for name, call in case.calls.items():
            started = time.perf_counter_ns()
            for _ in range(INNER):
                call()
            times[name].append((time.perf_counter_ns() - started) / INNER / 1000)
    found = {f"{name}_us": statistics.median(values) for name, values in times.items()}
    # of the same round, so that what disturbs one disturbs the other
    pairs = zip(times["runner"], times["bare"], strict=True)
    return {"case": case.name, **found, "over_bare_us": statistics.median(a - b for a, b in pairs)}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--rounds", type=int, default=500, help=f"rounds of {INNER} calls each (default 500)")
    options = parser.parse_args()
    rows = [measure(case, options.rounds) for case in cases()]
    if options.json:
        print(json.dumps({"calls": rows}))
    else:
        print(f"{'us, median':26}{'plain':>9}{'bare':>9}{'runner':>9}{'runner - bare':>15}")
        for row in rows:
            print(f"{row['case']:26}{row['plain_us']:9.1f}{row['bare_us']:9.1f}{row['runner_us']:9.1f}", end="")
            print(f"{row['over_bare_us']:15.1f}")
    return 0 if all(row["over_bare_us"] <= BOUND_US for row in rows if row["case"].endswith("tiny")) else 1


if __name__ == "__main__":
    sys.exit(main())
