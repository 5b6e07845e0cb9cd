"""What the hop to a worker process costs: the engine against the bare runtime loop on the same bundle, in one run.

    python bench/engine.py [--json] [--runs N] [--bundle FILE --input FILE --media TYPE]

Without a bundle: a tiny ONNX model, so that the hop and not the model is seen, on a 1 kB window and on a JPEG of
200 kB; then `models/detect` on the picture of its own golden sample, at the bare loop's niceness. Both sides do the
same pre and post steps with the same allocator settings; they take turns, so that a noisy machine is noisy for both.
`hop` is the difference of the medians (and of the 99th percentiles). Also: cold start to the first answer, and the
time from SIGKILL to the next answer. Last, with detect: what two workers do more than one, taking turns, how late this
process's event loop is while both work, and what two bare loops do more than one: more than that no engine can give.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import msgspec
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gateway.contract import Result
from gateway.infer.backend import load_each
from gateway.infer.bundle import Bundle
from gateway.infer.candidate import defaults
from gateway.infer.engine import Engine
from gateway.infer.manifest import Fit, Golden, Picture, Tensor, Window
from gateway.infer.process import ALLOCATOR
from gateway.infer.recipe import Recipe
from sdk.bundle import pack
from tests.unit import bundles
from tests.unit.engines import Killer

READINGS = 256  # float32: 1 kB
TARGETS_US = {"window 1 kB": 150.0, "JPEG 200 kB": 400.0}
DETECT = Path(__file__).resolve().parents[1] / "models" / "detect" / "detect.octo"
ROUND_S = 2.0


class Case(NamedTuple):
    name: str
    bundle: Path
    data: bytes
    media: str


def make_window(folder: Path) -> Case:
    window = Window(channels=("p",), length=READINGS, rate_hz=200)
    data = np.arange(READINGS, dtype="<f4").tobytes()
    right = Result(values={"sum": float(sum(range(READINGS))), "first": 0.0})
    return tiny(folder / "window.octo", (1, READINGS), data, bundles.MEDIA, right, "window 1 kB", input=window)


def make_jpeg(folder: Path) -> Case:
    """1280 x 720 with as much noise as makes 200 kB."""
    noise = np.random.default_rng(1).normal(0, 1, (720, 1280, 3))
    best = b""
    for strength in range(2, 40):
        picture = np.clip(128 + strength * noise, 0, 255).astype(np.uint8)
        data = bytes(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes())
        if not best or abs(len(data) - 200_000) < abs(len(best) - 200_000):
            best = data
    changes = {"input": Picture(width=2, height=1), "pre": (Fit(), Tensor(layout="nhwc"))}
    right = Result(values={"sum": 768.0, "first": 128.0})
    return tiny(folder / "jpeg.octo", (1, 1, 2, 3), best, "image/jpeg", right, "JPEG 200 kB", **changes)


def tiny(path: Path, shape: tuple[int, ...], data: bytes, media: str, right: Result, name: str, **changes: Any) -> Case:
    golden = Golden(input="golden/0", media=media, expected="golden/0.json", tolerance={"fp32": 400.0})
    members = {"golden/0": data, "golden/0.json": msgspec.json.encode(right)}
    members["model.onnx"] = bundles.onnx_model(shape)
    pack(path, bundles.manifest(golden=(golden,), **changes), bundles.files(**members))
    return Case(name, path, data, media)


class Bare:
    """Pre steps, runtime, post steps: in this process, without anything between."""

    def __init__(self, case: Case) -> None:
        with Bundle(case.bundle) as bundle:
            self.recipe = Recipe(bundle.manifest)
            read = lambda name: bytes(bundle.member(name))  # noqa: E731
            self.runner = next(load_each(bundle.manifest, read, defaults(bundle.manifest), [])).runner
        self.case = case

    def run(self) -> Result:
        prepared = self.recipe.prepare(self.case.data, self.case.media)
        return self.recipe.finish(self.runner(prepared.inputs), prepared.place)


def real_picture() -> Case:
    """models/detect and the picture of its golden sample."""
    with Bundle(DETECT) as bundle:
        golden = bundle.manifest.golden[0]
        return Case("detect", DETECT, bytes(bundle.member(golden.input)), golden.media)


def make_engine(case: Case, **options: Any) -> Engine:
    return Engine("bench", case.bundle, allow_unsigned=True, deadline_s=60, notify=lambda *_, **__: None, **options)


async def measure(case: Case, runs: int, nice: int, block: int = 50) -> dict[str, Any]:
    bare = Bare(case)
    engine = make_engine(case, nice=nice)
    hop: list[int] = []
    alone: list[int] = []
    async with asyncio.TaskGroup() as group:
        task = group.create_task(engine.supervise())
        started = time.perf_counter()
        answer = await engine.run(case.data, case.media)
        cold = time.perf_counter() - started
        assert answer.result == bare.run()
        for _ in range(max(1, runs // block)):
            for _ in range(block):
                at = time.perf_counter_ns()
                await engine.run(case.data, case.media)
                hop.append(time.perf_counter_ns() - at)
            for _ in range(block):
                at = time.perf_counter_ns()
                bare.run()
                alone.append(time.perf_counter_ns() - at)
        kill = Killer(engine)
        back = [await killed(engine, case, kill) for _ in range(5)]
        task.cancel()
    figures: dict[str, Any] = {"case": case.name, "backend": answer.backend, "runs": len(hop)}
    figures |= {"bytes": len(case.data), "nice": nice}
    for name, times in (("engine", hop), ("bare", alone)):
        times.sort()
        figures[f"{name}_p50_us"] = statistics.median(times) / 1000
        figures[f"{name}_p99_us"] = times[int(len(times) * 0.99)] / 1000
    for q in ("p50", "p99"):
        figures[f"hop_{q}_us"] = figures[f"engine_{q}_us"] - figures[f"bare_{q}_us"]
    figures["ratio_p50"] = figures["engine_p50_us"] / figures["bare_p50_us"]
    figures["target_hop_us"] = TARGETS_US.get(case.name)
    return figures | {"cold_start_ms": cold * 1000, "after_sigkill_ms": statistics.median(back) * 1000}


async def scale(case: Case, rounds: int) -> dict[str, Any]:
    """Answers a second of one worker and of two, taking turns, and the loop's lag while two work."""
    engines = {n: make_engine(case, workers=n) for n in (1, 2)}
    rates: dict[int, list[float]] = {1: [], 2: []}
    lags: list[float] = []
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(engine.supervise()) for engine in engines.values()]
        for n, engine in engines.items():
            while engine.status().workers < n:
                await asyncio.sleep(0.05)
        for _ in range(rounds):
            for n, engine in engines.items():
                watch = group.create_task(lag(lags)) if n == 2 else None
                rates[n].append(await throughput(engine, case, 2 * n))
                if watch:
                    watch.cancel()
        for task in tasks:
            task.cancel()
    lags.sort()
    return {
        "one_per_s": statistics.median(rates[1]), "two_per_s": statistics.median(rates[2]),
        "ratio": statistics.median(two / one for one, two in zip(rates[1], rates[2], strict=True)),
        "best_ratio": max(rates[2]) / max(rates[1]),
        "lag_p50_ms": 1000 * lags[len(lags) // 2], "lag_p99_ms": 1000 * lags[int(len(lags) * 0.99)],
    }  # fmt: skip


def bare_rate(processes: list[subprocess.Popen[str]]) -> float:
    """Answers a second of so many bare loops side by side; what this machine gives."""
    for process in processes:
        assert process.stdin is not None
        print(file=process.stdin, flush=True)
    return sum(float(process.stdout.readline()) for process in processes if process.stdout is not None)


def bare_loop() -> None:
    """A round for each line that comes in; see `bare_scale`."""
    bare = Bare(real_picture())
    print("ready", flush=True)
    for _ in sys.stdin:
        done, started = 0, time.perf_counter()
        while time.perf_counter() < started + ROUND_S:
            bare.run()
            done += 1
        print(done / (time.perf_counter() - started), flush=True)


def bare_scale(rounds: int) -> float:
    """Two processes without anything of ours around them against one."""
    command = [sys.executable, __file__, "--bare-loop"]
    with contextlib.ExitStack() as stack:
        both = [
            stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
            for _ in range(2)
        ]
        for process in both:
            assert process.stdout is not None
            process.stdout.readline()
        return statistics.median(bare_rate(both) / bare_rate(both[:1]) for _ in range(rounds))


async def throughput(engine: Engine, case: Case, callers: int) -> float:
    done, end = 0, time.perf_counter() + ROUND_S

    async def call() -> None:
        nonlocal done
        while time.perf_counter() < end:
            await engine.run(case.data, case.media)
            done += 1

    started = time.perf_counter()
    await asyncio.gather(*(call() for _ in range(callers)))
    return done / (time.perf_counter() - started)


async def lag(lags: list[float]) -> None:
    """How much later than asked for a sleeping task wakes up."""
    while True:
        at = time.perf_counter()
        await asyncio.sleep(0.005)
        lags.append(max(0.0, time.perf_counter() - at - 0.005))


async def killed(engine: Engine, case: Case, kill: Killer) -> float:
    """Seconds from SIGKILL of the worker to the next answer."""
    await kill()
    started = time.perf_counter()
    await engine.run(case.data, case.media)
    return time.perf_counter() - started


def table(rows: list[dict[str, Any]]) -> str:
    head = f"{'':14}{'engine p50':>12}{'p99':>9}{'bare p50':>10}{'p99':>9}{'hop p50':>9}{'p99':>9}{'target':>8}"
    lines = [head + f"{'ratio':>7}{'cold':>8}{'restart':>9}", " " * 17 + "all in us; cold start and restart in ms"]
    keys = ("engine_p50_us", "engine_p99_us", "bare_p50_us", "bare_p99_us", "hop_p50_us", "hop_p99_us")
    for row in rows:
        numbers = "".join(f"{row[key]:{width}.0f}" for key, width in zip(keys, (12, 9, 10, 9, 9, 9), strict=True))
        target = f"{row['target_hop_us'] or 0:8.0f}"
        rest = f"{row['ratio_p50']:7.2f}{row['cold_start_ms']:8.0f}{row['after_sigkill_ms']:9.0f}"
        lines.append(f"{row['case']:14}{numbers}{target}{rest}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--runs", type=int, default=2000, help="timed runs of each side (default 2000)")
    parser.add_argument("--nice", type=int, default=10, help="niceness of the worker (default 10, as in the config)")
    parser.add_argument("--bundle", type=Path, help="a real bundle; needs --input and --media")
    parser.add_argument("--input", type=Path, help="the file that is fed to it")
    parser.add_argument("--bare-loop", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--media", default="image/jpeg", help="what the file is: image/jpeg, image/png, records;...")
    options = parser.parse_args()
    if os.environ.get("MALLOC_TRIM_THRESHOLD_") != ALLOCATOR["MALLOC_TRIM_THRESHOLD_"]:
        # read when a process starts: the bare loop must have what the workers have
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ALLOCATOR})
    if options.bare_loop:
        bare_loop()
        return
    scaling: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        if options.bundle:
            case = Case(options.bundle.stem, options.bundle, options.input.read_bytes(), options.media)
            rows = [asyncio.run(measure(case, options.runs, options.nice))]
        else:
            cases = [make_window(Path(folder)), make_jpeg(Path(folder))]
            rows = [asyncio.run(measure(case, options.runs, options.nice)) for case in cases]
            rows.append(asyncio.run(measure(real_picture(), max(50, options.runs // 10), 0, block=1)))
            scaling = asyncio.run(scale(real_picture(), 5)) | {"bare_ratio": bare_scale(5)}
    print(json.dumps({"engine": rows, "workers": scaling}) if options.json else table(rows))
    if scaling and not options.json:
        print(
            f"two workers: {scaling['two_per_s']:.1f}/s, one: {scaling['one_per_s']:.1f}/s, "
            f"ratio {scaling['ratio']:.2f} (best rounds {scaling['best_ratio']:.2f}, target 1.80; two bare loops against "
            f"one: {scaling['bare_ratio']:.2f}); loop lag p50 {scaling['lag_p50_ms']:.1f} ms, "
            f"p99 {scaling['lag_p99_ms']:.1f} ms (target 5)"
        )


if __name__ == "__main__":
    main()
