"""Tables and pictures of the models: `./inv models.report [NAME ...]` writes build/report/index.html and a PNG each.

Accuracy is what `evaluate.py` found for this very bundle (figures.json beside it); size, work, latency, memory and the
choice of `auto` are measured now, the latter three by `octogate bench`: through the gateway's engine and a worker process,
for each number of threads.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
from msgspec.structs import replace

from gateway.errors import ModelError
from gateway.infer.bundle import Bundle
from gateway.infer.candidate import Candidate
from gateway.infer.manifest import Manifest
from gateway.infer.ranking import Placement
from models import kit, report_page
from sdk.bundle import pack
from sdk.optimise import cost, plots
from sdk.optimise import figures as found
from sdk.optimise.figures import Figures
from sdk.optimise.plots import Way
from sdk.optimise.progress import shown
from sdk.optimise.variants import Built
from sdk.registry import write_atomic

REPORT = kit.MODELS.parent / "build" / "report"
SECONDS = 0.5  # that a good candidate is timed


@dataclass(frozen=True, kw_only=True)
class Section:
    """All that is known of one model.

    Attributes:
        known: the figures of this bundle; stale: those of another, when there are none of this.
        missing: what is not there, in words.
        rejected: candidates that do not run here, with the reason.
    """

    name: str
    digest: str
    size: int
    ways: list[Way]
    placement: Placement
    known: Figures | None
    stale: Figures | None
    missing: list[str]
    rejected: list[str]

    @property
    def metric(self) -> str:
        """What is drawn against latency; empty when nothing was evaluated."""
        return self.known.headline[0] if self.known and self.known.headline else ""

    @property
    def auto(self) -> Way | None:
        return next((way for way in self.ways if way.chosen), None)


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


def bundle_of(name: str) -> Path | None:
    """The committed bundle, or the one that was built here."""
    places = (kit.MODELS / name / f"{name}.octo", kit.BUILD / name / f"{name}.octo", kit.BUILD / f"{name}.octo")
    return next((path for path in places if path.is_file()), None)


def stages_not_shipped(manifest: Manifest, known: Figures | None, folder: Path) -> dict[str, Built]:
    """Files of earlier stages that were kept by the build: they are measured beside the bundle's, not shipped."""
    shipped, extra = {one.file for one in manifest.variants}, {}
    for file in {one.file for one in known.figures} - shipped if known else ():
        path = folder / file
        if not path.is_file():
            continue
        like = next((one for one in manifest.variants if one.file.endswith(path.suffix)), None)
        inputs, outputs = (like.inputs, like.outputs) if like else ((), ())
        if path.suffix == ".xml":
            extra[file] = Built.openvino(path.read_bytes(), path.with_suffix(".bin").read_bytes(), "fp32", file=file)
        elif path.suffix == ".onnx":
            extra[file] = Built.onnx(path.read_bytes(), "fp32", file=file, inputs=inputs, outputs=outputs)
        else:
            extra[file] = Built.tflite(path.read_bytes(), "fp32", file=file, inputs=inputs, outputs=outputs)
    return dict(sorted(extra.items()))


def study(bundle: Path, extra: dict[str, Built], folder: Path) -> Path:
    """A bundle of all stages, to be measured and not to be shipped.

    Its golden samples have no tolerance, as the base answers otherwise than what was made of it.
    """
    with Bundle(bundle) as opened:
        manifest = opened.manifest
        members = {name: bytes(opened.member(name)) for name in manifest.members()}
    for built in extra.values():
        members.update(built.members)
    variants = (*(built.variant for built in extra.values()), *manifest.variants)
    golden = tuple(replace(one, tolerance={}) for one in manifest.golden)
    output = folder / f"{manifest.name}-study.octo"
    pack(output, replace(manifest, variants=variants, golden=golden), members)
    return output


def work_of(files: dict[str, Built]) -> dict[str, int | None]:
    """MACs of each file; eight bits do not change them, so an int8 file that cannot be read has its fp32 file's."""
    found = {file: cost.counted(built) for file, built in files.items()}
    return {file: macs or found.get(file.replace("-int8.", ".")) or None for file, macs in found.items()}


def ways_of(measured: Placement, files: dict[str, Built], known: Figures | None, chosen: Candidate | None) -> list[Way]:
    """A way for each variant, runtime and device that was measured, and for each that was only evaluated."""
    stages = {one.file: one.stage for one in known.figures} if known else {}
    rated = {(one.file, one.backend): one.metrics for one in known.figures} if known else {}
    work = work_of(files)
    ways: dict[tuple[str, str, str], Way] = {}
    for one in measured.measured:
        at = one.candidate
        if one.figures is None:
            continue
        where = at.backend if at.device == "CPU" else f"{at.backend} {at.device}"
        old = ways.get((at.file, at.backend, at.device)) or Way(
            stage=stages.get(at.file, "base" if at.precision == "fp32" else at.precision), file=at.file,
            backend=at.backend, where=where, size=files[at.file].size, macs=work[at.file],
            metrics=rated.get((at.file, at.backend), {}),
        )  # fmt: skip
        ways[at.file, at.backend, at.device] = replace(
            old, p50_us={**old.p50_us, at.threads: one.figures.p50_us}, pss={**old.pss, at.threads: one.figures.pss},
            chosen=at.threads if at == chosen else old.chosen,
        )  # fmt: skip
    for figure in known.figures if known else ():
        if not any((way.file, way.backend) == (figure.file, figure.backend) for way in ways.values()):
            ways[figure.file, figure.backend, ""] = Way(
                stage=figure.stage, file=figure.file, backend=figure.backend, where=figure.backend, size=figure.size,
                macs=figure.macs or None, metrics=figure.metrics,
            )  # fmt: skip
    order = {stage: at for at, stage in enumerate(plots.STAGES)}
    return sorted(ways.values(), key=lambda way: (order.get(way.stage, 9), way.file, way.where))


def not_there(name: str, ways: list[Way], known: Figures | None, stale: Figures | None) -> list[str]:
    """In words, what the tables and pictures do not have."""
    lines = []
    if not known:
        why = "those that there are belong to another bundle" if stale else "it was not evaluated"
        lines.append(f"No accuracy: {why}. ./inv models.evaluate {name} measures it.")
    elif any(not way.metrics for way in ways):
        lines.append("A dash for accuracy: that variant was not evaluated on that runtime.")
    there = {way.stage for way in ways}
    if gone := [stage for stage in plots.STAGES if stage not in there]:
        lines.append(f"There is no stage {' and no stage '.join(gone)}: the bundle has no such file.")
    if any(not way.p50_us for way in ways):
        lines.append(
            "A dash for latency: the file is not in the bundle, and not in build/ as ./inv models.build leaves it."
        )
    return lines


def section(name: str, bundle: Path, tell: Callable[[str, bool], None]) -> Section:
    """Measure one model.

    Raises:
        ModelError: the bundle is damaged, or nothing of it runs here.
    """
    with Bundle(bundle) as opened:
        digest, manifest = opened.verify((), allow_unsigned=True).digest, opened.manifest
        members = {file: bytes(opened.member(file)) for file in manifest.members()}
    known, stale = found.nearest((bundle.parent, kit.BUILD / name), digest)
    extra = stages_not_shipped(manifest, known, kit.BUILD / name)
    tell(f"{name}: measure the bundle", False)
    placement = measured = bench(bundle)
    if extra:
        tell(f"{name}: measure all stages", False)
        with tempfile.TemporaryDirectory(prefix="octogate-report-") as folder:
            measured = bench(study(bundle, extra, Path(folder)))
    shipped = {
        one.file: Built(one, {part: members[part] for part in (one.file, one.weights) if part})
        for one in manifest.variants
    }
    chosen = placement.ranking[0] if placement.ranking else None
    ways = ways_of(measured, {**extra, **shipped}, known, chosen)
    rejected = [f"{m.candidate.file} on {m.candidate}: {m.rejected}" for m in measured.measured if m.figures is None]
    return Section(
        name=name, digest=digest, size=bundle.stat().st_size, ways=ways, placement=placement, known=known, stale=stale,
        missing=not_there(name, ways, known, stale), rejected=rejected,
    )  # fmt: skip


def write(sections: list[Section], absent: list[str], folder: Path) -> None:
    """index.html, report.md, report.json, and a PNG for each model."""
    pictures = {one.name: plots.overview(one.name, one.ways, one.metric) for one in sections}
    for name, picture in pictures.items():
        write_atomic(folder / f"{name}.png", picture)
    write_atomic(folder / "index.html", report_page.html_page(sections, absent, pictures).encode())
    write_atomic(folder / "report.md", report_page.markdown(sections, absent).encode())
    write_atomic(folder / "report.json", numbers(sections))


def numbers(sections: list[Section]) -> bytes:
    """What the tables and pictures are made of, as JSON: by model its bundle's digest and bytes, and all ways."""
    known = {one.name: {"bundle": one.digest, "bytes": one.size, "ways": one.ways} for one in sections}
    return msgspec.json.format(msgspec.json.encode(known), indent=1) + b"\n"


def main() -> None:
    from models.__main__ import known_names, names

    parser = argparse.ArgumentParser(description="Write tables and pictures of the models.")
    parser.add_argument("names", nargs="*", help="models (default: all that have a bundle here)")
    parser.add_argument("--output", type=Path, default=REPORT, help="a folder (default: build/report)")
    parser.add_argument("--json", action="store_true", help="print report.json instead of the tables")
    arguments = parser.parse_args()
    wanted = known_names(arguments.names) or names()
    bundles = {name: bundle for name in wanted if (bundle := bundle_of(name))}
    absent = [name for name in wanted if name not in bundles]
    if arguments.names and absent:
        raise ModelError(f"'{absent[0]}' has no bundle here", hint=f"./inv models.build {absent[0]} makes it")
    with shown("report") as tell:
        sections = [section(name, bundle, tell) for name, bundle in bundles.items()]
        tell("pictures and pages", False)
        write(sections, absent, arguments.output)
    if arguments.json:
        print((arguments.output / "report.json").read_text(), end="")
        return
    print("\n".join(report_page.terminal(sections, absent)))
    print(f"\n{arguments.output / 'index.html'}, with report.md, report.json and a PNG for each model")


if __name__ == "__main__":
    main()
