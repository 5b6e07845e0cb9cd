"""The whole way of a model: export, prune to a budget, fine-tune, int8 for each runtime, parity and metric, verdict."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace

from gateway.errors import ModelError
from gateway.infer.steps import Array
from sdk.optimise import cache, export, quantise, verdict
from sdk.optimise import parity as compare
from sdk.optimise import weights as plain
from sdk.optimise.budget import Budget
from sdk.optimise.cache import Steps
from sdk.optimise.parity import answers, latency_us, parity, runner
from sdk.optimise.variants import Built, Inputs, calls
from sdk.optimise.verdict import Lost, Metric, Row
from sdk.optimise.weights import Weights

PARITY_INPUTS, LATENCY_INPUTS = 200, 20
_EXPORTERS = ("torch", "onnx", "onnxscript", "litert-torch", "litert-converter", "openvino")
_RUNTIMES = ("onnxruntime", "openvino", "ai-edge-litert", "tflite-runtime", "numpy")
_QUANTISERS = ("onnxruntime", "onnx", "nncf", "openvino", "ai-edge-quantizer", "ai-edge-litert", "numpy")


@dataclass(frozen=True, kw_only=True)
class Quantised:
    """What int8 is done to: operation types of each tool (empty: all that it takes)."""

    onnx: Sequence[str] = ()
    openvino: Sequence[str] = ()
    tflite: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Task:
    """What the flow must know of a model.

    Attributes:
        name: of the model.
        inputs, outputs: names of its tensors.
        calibration: of the train split, one call each.
        check: of the validation split, one call each: for parity and latency.
        metric: of a runner, on the validation split.
        allowed: by metric, how much a variant may lose against the base.
        ops: what int8 is done to.
        optional: files that may be refused without the build failing.
        depends: digest of all that the metric depends on: its code, its data. With it comparisons are kept, too;
            without it they are made anew each time.
    """

    name: str
    inputs: Sequence[str] = ("input",)
    outputs: Sequence[str] = ("output",)
    calibration: Sequence[Inputs]
    check: Sequence[Inputs]
    metric: Metric
    allowed: Mapping[str, float]
    ops: Quantised = field(default_factory=Quantised)
    optional: Sequence[str] = ()
    depends: str = ""


@dataclass(frozen=True, kw_only=True)
class Training:
    """What the flow must know to prune a PyTorch module.

    Attributes:
        example: the input, a tensor or a tuple of them.
        budget: after pruning.
        keep: submodules that keep their width: the heads.
        fine_tune: trains a pruned module in place, on the train split.
        depends: digest of all that fine-tuning depends on: its code, its data.
    """

    example: Any
    budget: Budget
    keep: Sequence[str]
    fine_tune: Callable[[Any], object]
    depends: str


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    Attributes:
        stages: `base`, `pruned`, `int8` -> variants; all of them, refused ones too.
        rows: every variant on every runtime.
        base: the metrics that count as whole.
        refused: file -> why.
    """

    stages: Mapping[str, Sequence[Built]]
    rows: Sequence[Row]
    base: Mapping[str, float]
    refused: Mapping[str, str]

    def table(self) -> list[str]:
        """Markdown, for a card."""
        return verdict.table(self.rows, self.base, self.refused)

    def terminal(self) -> list[str]:
        """The same for people, at most 100 columns wide, with the reasons below it."""
        return verdict.terminal(self.rows, self.base, self.refused)

    def shipped(self, *stages: str) -> list[Built]:
        """The variants of these stages that may go into a bundle, in this order."""
        return [one for stage in stages for one in self.stages.get(stage, ()) if one.variant.file not in self.refused]

    def insist(self, task: Task, *stages: str) -> None:
        """Raises `Lost`, with the table: a variant of these stages was refused that is not optional."""
        files = {one.variant.file for stage in stages for one in self.stages.get(stage, ())}
        if bad := sorted((files & set(self.refused)) - set(task.optional)):
            lines = "\n".join(self.terminal())
            raise Lost(
                f"model '{task.name}': {', '.join(bad)} may not be shipped\n{lines}",
                hint="prune less, calibrate with more data, leave operations in fp32, or make the file optional",
            )


def from_torch(module: Any, task: Task, training: Training, steps: Steps) -> Outcome:
    """A trained PyTorch module: exported as it is, pruned and fine-tuned, quantised, judged."""
    from sdk.optimise import budget, prune

    base = exported(module, task, training.example, steps, "base-")
    trained = _digest_of(plain.of(module))

    def slim() -> Weights:
        pruned = prune.prune_to(module, training.example, training.budget, keep=training.keep)
        training.fine_tune(pruned)
        return plain.of(pruned)

    kept = steps.run(
        "prune and fine-tune",
        slim,
        Weights,
        inputs=[trained, training.depends, cache.sources(prune, budget)],
        settings={"budget": training.budget, "keep": ",".join(training.keep)},
        packages=("torch", "torch-pruning", "numpy"),
    )
    pruned = exported(plain.put(module, kept), task, training.example, steps, "")
    return judged({"base": base, "pruned": pruned, "int8": quantised(pruned, task, steps)}, task, steps)


def from_files(files: Sequence[Built], task: Task, steps: Steps) -> Outcome:
    """ONNX, TFLite or IR files of one model, fp32: quantised, judged against the first. They are not pruned."""
    return judged({"base": list(files), "int8": quantised(files, task, steps)}, task, steps)


def exported(module: Any, task: Task, example: Any, steps: Steps, prefix: str) -> list[Built]:
    """ONNX, TFLite and IR of a module, fp32."""
    made_of = [_digest_of(plain.of(module)), cache.sources(export, quantise)]
    settings = {"inputs": ",".join(task.inputs), "outputs": ",".join(task.outputs), "module": repr(module)}

    def run(step: str, work: Callable[[], bytes]) -> bytes:
        return steps.run(step, work, bytes, inputs=made_of, settings=settings, packages=_EXPORTERS)

    onnx = run(
        "export onnx",
        lambda: export.to_onnx(module, example, name=task.name, inputs=task.inputs, outputs=task.outputs),
    )
    tflite = run("export tflite", lambda: export.to_tflite(module, example))
    ir = steps.run(
        "export ir",
        lambda: quantise.ir(onnx),
        quantise.Ir,
        inputs=[cache.digest(onnx), cache.sources(quantise)],
        packages=("openvino",),
    )
    return [
        Built.onnx(onnx, "fp32", file=f"{prefix}model.onnx", inputs=task.inputs, outputs=task.outputs),
        Built.tflite(tflite, "fp32", file=f"{prefix}model.tflite"),
        Built.openvino(*ir, "fp32", file=f"{prefix}model.xml"),
    ]


def quantised(files: Sequence[Built], task: Task, steps: Steps) -> list[Built]:
    """An int8 variant of each fp32 one, by the tool of its format; the IR's is made from the ONNX or TFLite file."""
    data = calls(task.calibration)
    seen = cache.digest(*(array for call in data for array in call))
    by_format = {built.variant.format: built for built in files}
    made = []
    for built in files:
        whole = built
        if built.variant.format == "openvino":
            whole = by_format.get("onnx") or by_format.get("tflite") or built
        made.append(steps.run(
            f"int8 {built.variant.format}",
            lambda built=built, whole=whole: _int8(built, whole, data, task.ops),  # type: ignore[misc]
            tuple[bytes, ...],
            inputs=[whole.digest, seen, cache.sources(quantise)],
            settings={"ops": task.ops},
            packages=_QUANTISERS,
        ))  # fmt: skip
    return [_named(built, parts) for built, parts in zip(files, made, strict=True)]


def _int8(built: Built, whole: Built, data: Sequence[tuple[Array, ...]], ops: Quantised) -> tuple[bytes, ...]:
    if built.variant.format == "onnx":
        return (quantise.onnx_int8(built.data, data, ops=ops.onnx),)
    if built.variant.format == "tflite":
        return (quantise.tflite_int8(built.data, data, ops=ops.tflite),)
    if whole is built:
        raise ModelError(
            f"{built}: an IR alone cannot be quantised here", hint="give the ONNX or TFLite file that it was made from"
        )
    return tuple(quantise.ir_int8(whole.data, data, tflite=whole.variant.format == "tflite", ops=ops.openvino))


def _named(built: Built, parts: tuple[bytes, ...]) -> Built:
    stem, _, suffix = built.variant.file.rpartition(".")
    file, variant = f"{stem}-int8.{suffix}", built.variant
    if variant.format == "openvino":
        return Built.openvino(parts[0], parts[1], "int8", file=file, outputs=variant.outputs)
    if variant.format == "tflite":
        return Built.tflite(parts[0], "int8", file=file, inputs=variant.inputs, outputs=variant.outputs)
    return Built.onnx(parts[0], "int8", file=file, inputs=variant.inputs, outputs=variant.outputs, batch=variant.batch)


def judged(stages: Mapping[str, Sequence[Built]], task: Task, steps: Steps) -> Outcome:
    """Parity, task metric and latency of every variant on every runtime, and which of them are refused.

    The base's metrics are those of its first variant that runs. Latency is measured anew each time.
    """
    rows: list[Row] = []
    right: tuple[Built, str] | None = None  # whose outputs the quantised ones are compared with: the last fp32 stage's
    for stage, files in stages.items():
        whole = files[0].variant.precision == "fp32"
        rows += (made := _compared(stage, files, None if whole else right, task, steps))
        first = next(((row.file, row.backend) for row in made if row.metrics), None)
        if first and (whole or right is None):
            right = next(built for built in files if built.variant.file == first[0]), first[1]
    steps.tell("time", False)
    ran = [row for row in rows if row.metrics]
    built = {(stage, one.variant.file): one for stage, files in stages.items() for one in files}
    runners = [runner(built[row.stage, row.file], row.backend) for row in ran]
    times = iter(latency_us(runners, calls(task.check)[:LATENCY_INPUTS], rounds=5, each_s=0.05) if ran else [])
    timed = [replace(row, latency_us=next(times)) if row.metrics else row for row in rows]
    base = ran[0].metrics if ran else {}
    return Outcome(stages, timed, base, verdict.refused(timed, base, task.allowed))


def _compared(
    stage: str, files: Sequence[Built], right: tuple[Built, str] | None, task: Task, steps: Steps
) -> list[Row]:
    """Rows of one stage, without latency; kept when the task says what its metric depends on."""
    seen = calls(task.check)[:PARITY_INPUTS]

    def work() -> list[Row]:
        rows = []
        for found in parity(files, seen, reference=answers(runner(*right), seen) if right else None):
            metrics: dict[str, float] = {}
            if found.ran:
                run = runner(found.built, found.backend)
                metrics = {name: float(value) for name, value in task.metric(run).items()}
            rows.append(Row(
                stage=stage, file=found.built.variant.file, precision=found.built.variant.precision,
                backend=found.backend, size=found.built.size, worst=found.worst, metrics=metrics, fault=found.fault,
            ))  # fmt: skip
        return rows

    if not task.depends:
        steps.tell(f"compare {stage}", False)
        return work()
    return steps.run(
        f"compare {stage}",
        work,
        list[Row],
        inputs=[
            *(built.digest for built in files),
            *((right[0].digest, right[1]) if right else ()),
            cache.digest(*(array for call in seen for array in call)),
            task.depends,
            cache.sources(compare, verdict),
        ],
        # a processor without the instructions for int8 rounds otherwise
        settings={"machine": f"{platform.node()} {platform.machine()}"},
        packages=_RUNTIMES,
    )


def _digest_of(weights: Weights) -> str:
    return cache.digest(*(part for name in sorted(weights) for part in (name, weights[name].data)))
