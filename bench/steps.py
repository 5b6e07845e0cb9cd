"""What the steps around a model cost: `./inv bench steps`, one thread, median and 99th percentile in microseconds.

    python bench/steps.py [--json] [--runs N]

Shapes are those of the models that are planned: SSD-MobileNetV2 (1917 anchors, 24 classes), NanoDet (3 strides at 416),
PP-OCR (40 steps, 6,625 and 18,000 labels), a segmentation of 256 x 256, windows of 3 x 256 readings. `regions` compares one
job of four regions of a 12-megapixel JPEG with four jobs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gateway.infer import anomaly, boxes, ctc, masks, spectra, ssd
from gateway.infer.manifest import Fit, Gfl, Picture, Segment, Ssd, Tensor, Values, Yolo
from gateway.infer.media import with_regions
from gateway.infer.recipe import Recipe
from gateway.infer.steps import Array
from tests.unit import bundles

RNG = np.random.default_rng(1)
REGIONS = [(x, y, x + 0.3, y + 0.3) for x in (0.1, 0.6) for y in (0.1, 0.6)]


def cases() -> Iterator[tuple[str, Callable[[], object]]]:
    yield from detectors()
    for labels in (6625, 18_000):
        table = RNG.random((40, labels), np.float32) ** 40
        table /= table.sum(axis=1, keepdims=True)
        yield f"ctc greedy, 40 x {labels}", partial(ctc.greedy, table)
    yield "ctc beam 5, 40 x 6625, 12 likely labels a step", lambda: ctc.beam(LIKELY, 5, ctc.FREE)
    yield "ctc lexicon of 1000, beam 20", lambda: ctc.beam(LIKELY, 20, LEXICON)
    plane = cv2.GaussianBlur(RNG.random((256, 256), np.float32), (0, 0), 12)
    plane = (plane - plane.min()) / np.ptp(plane)
    spec = Segment(layout="nhwc")
    yield "segment 256 x 256 to a mask of 64", lambda: masks.masks(masks.planes(plane[None], spec), ["a"], 0.5, 64)
    window = RNG.normal(0, 1, (3, 256)).astype(np.float32)
    bands = [(float(i * 10), float(i * 10 + 10)) for i in range(10)]
    names = ("rms", "crest", "kurtosis", "centroid", "bandwidth", "rolloff")
    yield "features: 6 and 10 bands of 3 x 256", lambda: spectra.features(window, names, 200.0, bands)
    yield "spectrum of 3 x 256", lambda: spectra.amplitudes(window, "hann")
    mean, whiten = anomaly.fit_distance(RNG.normal(0, 1, (500, 32)))
    yield "anomaly: distance, 32 dimensions", lambda: anomaly.distance(mean + 1, mean, whiten)
    yield "anomaly: reconstruction, 3 x 256, smooth 16", lambda: anomaly.reconstruction(window, window * 0.9, 1, 16)
    yield from regions()


def detectors() -> Iterator[tuple[str, Callable[[], object]]]:
    grid, spec = ssd.anchors(Ssd(), 300, 300), Ssd()
    raw, logits = RNG.normal(0, 1, (1917, 4)), RNG.normal(-4, 1.5, (1917, 24)).astype(np.float32)
    yield "ssd, 1917 x 24", lambda: ssd.detect(raw, logits, grid, spec)
    gfl, cells = Gfl(), boxes.cells((8, 16, 32), 416, 416, 0.5)
    scores, sides = RNG.random((len(cells), 80), np.float32) ** 4000, RNG.normal(0, 1, (len(cells), 32))
    yield f"gfl, {len(cells)} x 80", lambda: boxes.gfl([scores, sides], cells, gfl, 80, 416, 416)
    table = np.concatenate([RNG.random((4, 8400)) * 600, RNG.random((80, 8400)) ** 4000]).astype(np.float32)[None]
    yield "yolo, 8400 x 80", lambda: boxes.yolo(table, None, Yolo(), 80, 640, 640)
    corners = np.sort(RNG.random((1000, 2, 2), np.float32), axis=1).reshape(1000, 4)
    every = RNG.random(1000)
    classes = RNG.integers(0, 5, 1000)
    yield "suppression of 1000 boxes", lambda: boxes.suppress(corners, every, classes, 0.5, 100)
    found, cut = boxes.Found(corners[:300], every[:300], classes[:300]), RNG.random(300) < 0.3
    yield "merging 300 boxes of tiles", lambda: boxes.merge(found, cut, 0.5, 100)


def likely() -> Array:
    table = np.full((40, 6625), 1e-9, np.float32)
    for row in table:
        row[RNG.integers(0, 6625, 12)] = RNG.random(12)
    return np.asarray(table / table.sum(axis=1, keepdims=True))


LIKELY = likely()
LEXICON = ctc.Lexicon(
    [[0]] + [[int(i) for i in np.argsort(LIKELY[RNG.integers(0, 40, 8)], axis=1)[:, -1]] for _ in range(999)]
)


def regions() -> Iterator[tuple[str, Callable[[], object]]]:
    photo = cv2.resize(RNG.integers(0, 256, (300, 400, 3), np.uint8), (4000, 3000))
    jpeg = bytes(cv2.imencode(".jpg", photo)[1].tobytes())
    manifest = bundles.manifest(
        input=Picture(width=224, height=224), pre=(Fit(), Tensor(layout="nhwc")), post=(Values(names=("a",)),)
    )
    recipe = Recipe(manifest)

    def compute(inputs: Sequence[Array]) -> list[Array]:
        return [np.zeros((1, 1))]

    yield "regions: 4 of 12 MP in one job", lambda: recipe.run(compute, jpeg, with_regions("image/jpeg", REGIONS))
    yield (
        "regions: 4 of 12 MP in four jobs",
        lambda: [recipe.run(compute, jpeg, with_regions("image/jpeg", [region])) for region in REGIONS],
    )
    yield "regions: 12 MP decoded whole", lambda: recipe.run(compute, jpeg, "image/jpeg")


def timed(work: Callable[[], object], runs: int) -> tuple[float, float]:
    took: list[float] = []
    work()
    began = time.perf_counter()
    while len(took) < runs and (len(took) < 5 or time.perf_counter() - began < 5):
        start = time.perf_counter_ns()
        work()
        took.append((time.perf_counter_ns() - start) / 1000)
    took.sort()
    return statistics.median(took), took[int(len(took) * 0.99)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the steps around a model.")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--runs", type=int, default=300)
    arguments = parser.parse_args()
    cv2.setNumThreads(0)
    rows = {name: timed(work, arguments.runs) for name, work in cases()}
    if arguments.json:
        print(json.dumps({name: {"p50_us": p50, "p99_us": p99} for name, (p50, p99) in rows.items()}))
        return
    for name, (p50, p99) in rows.items():
        print(f"{name:50} p50 {p50:10.0f} us   p99 {p99:10.0f} us")


if __name__ == "__main__":
    main()
