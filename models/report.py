"""Tables and pictures of the models: `./inv models.report [NAME ...]` writes build/report/index.html and a PNG each.

Accuracy, size and work are what `evaluate.py` found last (figures.json); latency, memory and the choice of `auto` are
measured now, by `octogate bench`: through the gateway's engine and a worker process, for each number of threads.
"""

from __future__ import annotations

import argparse
import base64
import html
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec.structs import replace

from gateway.errors import ModelError
from gateway.infer.bundle import Bundle
from gateway.infer.ranking import Measured as Timed
from gateway.infer.ranking import Placement
from models import kit
from sdk.bundle import pack
from sdk.optimise import figures as found
from sdk.optimise import plots
from sdk.optimise.figures import Figure, Figures
from sdk.optimise.pareto import front
from sdk.optimise.variants import Built
from sdk.registry import write_atomic

REPORT = kit.MODELS.parent / "build" / "report"
SECONDS = 0.5  # that a good candidate is timed
STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:1200px;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:1em 0;font-size:13px}td,th{border-bottom:1px solid #ddd;padding:3px 10px;text-align:right}
td:first-child,th:first-child{text-align:left}img{max-width:100%}.chosen{background:#fdf1e3}"""


def bench(bundle: Path) -> Placement:
    """Every candidate of a bundle, measured as a gateway does it.

    Raises:
        ModelError: the measurement failed.
    """
    command = [sys.executable, "-m", "gateway", "bench", str(bundle), "--json", "--seconds", str(SECONDS)]
    done = subprocess.run(command, capture_output=True, check=False, cwd=kit.MODELS.parent)
    try:
        [placement] = msgspec.json.decode(done.stdout, type=dict[str, Placement]).values()
    except (msgspec.DecodeError, ValueError) as error:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise ModelError(f"octogate bench {bundle}: {said[-1] if said else error}") from error
    return placement


def study(bundle: Path, folder: Path, known: Figures | None) -> tuple[Path, dict[str, str]]:
    """A bundle of all stages, to be measured and not to be shipped; and file -> stage.

    Its golden samples have no tolerance, as the base answers otherwise than what was made of it.
    """
    stages = {one.file: one.stage for one in known.figures} if known else {}
    with Bundle(bundle) as opened:
        manifest = opened.manifest
        members = {name: bytes(opened.member(name)) for name in manifest.members()}
    extra = []
    for file in [name for name in stages if name not in members]:
        path = kit.BUILD / manifest.name / file
        if not path.is_file():
            continue
        like = next((one for one in manifest.variants if one.file.endswith(path.suffix)), None)
        inputs, outputs = (like.inputs, like.outputs) if like else ((), ())
        if path.suffix == ".xml":
            built = Built.openvino(path.read_bytes(), path.with_suffix(".bin").read_bytes(), "fp32", file=file)
        elif path.suffix == ".onnx":
            built = Built.onnx(path.read_bytes(), "fp32", file=file, inputs=inputs, outputs=outputs)
        else:
            built = Built.tflite(path.read_bytes(), "fp32", file=file, inputs=inputs, outputs=outputs)
        extra.append(built.variant)
        members.update(built.members)
    golden = tuple(replace(one, tolerance={}) for one in manifest.golden)
    output = folder / f"{manifest.name}-study.octo"
    pack(output, replace(manifest, variants=(*extra, *manifest.variants), golden=golden), members)
    return output, {**{one.file: one.precision for one in manifest.variants}, **stages}


def measure(bundle: Path, known: Figures | None) -> tuple[list[plots.Measured], list[str]]:
    """Every candidate of every stage; and the candidates that were rejected, with the reason."""
    chosen = bench(bundle).ranking[:1]
    with tempfile.TemporaryDirectory(prefix="octogate-report-") as folder:
        path, stages = study(bundle, Path(folder), known)
        placement = bench(path)
    rows, rejected = [], []
    for one in placement.measured:
        if one.figures is None:
            rejected.append(f"{one.candidate.file} on {one.candidate}: {one.rejected}")
            continue
        rows.append(_measured(one, stages, one.candidate in chosen))
    order = {stage: at for at, stage in enumerate(plots.STAGES)}
    rows.sort(key=lambda row: (order.get(row.stage, 9), row.file, row.candidate))
    return rows, rejected


def _measured(one: Timed, stages: dict[str, str], chosen: bool) -> plots.Measured:
    assert one.figures is not None  # the caller has looked
    file = one.candidate.file
    stage = {"fp32": "base"}.get(stages.get(file, ""), stages.get(file, ""))
    return plots.Measured(stage, str(one.candidate), file, one.figures.p50_us, one.figures.pss, chosen)


def accuracy(figures: Sequence[Figure], metric: str) -> list[list[str]]:
    """Rows: what each variant reaches on each runtime."""
    best = front(figures, lambda one: one.latency_us, lambda one: one.metrics.get(metric, float("nan")))
    names = sorted({name for one in figures for name in one.metrics})
    head = ["variant", "stage", "runtime", "kB", "MMAC", "us", *names, "on the front"]
    rows = [
        [one.file, one.stage, one.backend, f"{one.size / 1000:.1f}", f"{one.macs / 1e6:.2f}", f"{one.latency_us:.0f}",
         *(f"{one.metrics[name]:.4f}" if name in one.metrics else "-" for name in names), "yes" if one in best else ""]
        for one in figures
    ]  # fmt: skip
    return [head, *rows]


def times(measured: Sequence[plots.Measured]) -> list[list[str]]:
    head = ["candidate", "file", "stage", "p50 ms", "PSS MB", "auto"]
    rows = [
        [one.candidate, one.file, one.stage, f"{one.p50_us / 1000:.3f}", f"{one.pss / 1e6:.0f}", "chosen" if one.chosen else ""]
        for one in measured
    ]  # fmt: skip
    return [head, *rows]


def as_html(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    lines = ["<table><tr>" + "".join(f"<th>{html.escape(cell)}</th>" for cell in head) + "</tr>"]
    for row in body:
        mark = ' class="chosen"' if row[-1] == "chosen" else ""
        lines.append(f"<tr{mark}>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>")
    return "\n".join([*lines, "</table>"])


def section(name: str, folder: Path) -> tuple[str, str]:
    """One model: HTML and Markdown. Writes its PNG."""
    bundle = kit.MODELS / name / f"{name}.octo"
    with Bundle(bundle) as opened:
        digest = opened.verify((), allow_unsigned=True).digest
    try:
        known: Figures | None = found.read(kit.BUILD / name)
    except ModelError as error:
        print(f"octogate: {name}: {error.what}; its report has no accuracy ({error.hint})", file=sys.stderr)
        known = None
    if known and known.bundle != digest:
        print(f"octogate: {name}: its figures are of another bundle; run ./inv models.evaluate {name}", file=sys.stderr)
        known = None
    measured, rejected = measure(bundle, known)
    tables = [accuracy(known.figures, known.headline[0])] if known else []
    tables.append(times(measured))
    text = [f"## {name}", "", f"Bundle `{digest}`, {bundle.stat().st_size / 1000:.1f} kB.", ""]
    page = [f"<h2>{name}</h2><p>Bundle <code>{digest}</code>, {bundle.stat().st_size / 1000:.1f} kB.</p>"]
    metric = known.headline[0] if known else ""
    picture = plots.overview(name, known.figures if known else (), measured, metric)
    write_atomic(folder / f"{name}.png", picture)
    page.append(f'<img alt="{name}" src="data:image/png;base64,{base64.b64encode(picture).decode()}">')
    for rows in tables:
        text += [*kit.table(rows[0], rows[1:]), ""]
        page.append(as_html(rows))
    text += [f"- rejected: {line}" for line in rejected]
    page += [f"<p>rejected: {html.escape(line)}</p>" for line in rejected]
    return "\n".join(page), "\n".join([*text, ""])


def main() -> None:
    from models.__main__ import names

    parser = argparse.ArgumentParser(description="Write tables and pictures of the models.")
    parser.add_argument("names", nargs="*", help="models (default: all)")
    parser.add_argument("--output", type=Path, default=REPORT, help="a folder (default: build/report)")
    arguments = parser.parse_args()
    sections = [section(name, arguments.output) for name in arguments.names or names()]
    page = f'<!doctype html><meta charset="utf-8"><title>Octogate: models</title><style>{STYLE}</style><h1>Models</h1>'
    write_atomic(arguments.output / "index.html", "\n".join([page, *(part for part, _ in sections), ""]).encode())
    write_atomic(arguments.output / "report.md", "\n".join(text for _, text in sections).encode())
    print(f"{arguments.output / 'index.html'}, report.md and a PNG for each model")


if __name__ == "__main__":
    main()
