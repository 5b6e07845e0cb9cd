"""The self-test: a worker serves only after it has reproduced its bundle's golden samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from gateway.contract import Result
from gateway.errors import ModelError
from gateway.infer.backend import Runner
from gateway.infer.bundle import Bundle
from gateway.infer.difference import result_difference as result_difference
from gateway.infer.manifest import Golden, Precision
from gateway.infer.recipe import Recipe
from gateway.infer.steps import Array


class Samples(NamedTuple):
    """What the check needs of a bundle, held in memory: the file may be replaced while a worker serves."""

    golden: tuple[Golden, ...]
    members: dict[str, bytes]

    @classmethod
    def of(cls, bundle: Bundle) -> Samples:
        """Raises `ModelError`: a sample is missing."""
        golden = bundle.manifest.golden
        names = {name for sample in golden for name in (sample.input, sample.expected)}
        return cls(golden, {name: bytes(bundle.member(name)) for name in names})


def check(source: Bundle | Samples, recipe: Recipe, runner: Runner, precision: Precision) -> None:
    """Run every golden sample.

    Raises:
        ModelError: an answer differs by more than the tolerance of this precision.
    """
    samples = source if isinstance(source, Samples) else Samples.of(source)
    for golden in samples.golden:
        data, expected = samples.members[golden.input], samples.members[golden.expected]
        if golden.expected.endswith(".json"):
            off = _result_off(recipe.run(runner, data, golden.media), expected, golden)
        else:
            off = _outputs_off(runner(recipe.prepare(data, golden.media).inputs), expected, golden)
        tolerance = golden.tolerance.get(precision)
        # not (off <= tolerance), so that NaN fails
        if tolerance is not None and not off <= tolerance:
            raise ModelError(
                f"golden sample {golden.input} is off by {off:.3g}, {precision} may be off by {tolerance:.3g}",
                hint="this runtime computes this model wrongly; another backend or variant may be right",
            )


def outputs_difference(outputs: Sequence[Array], expected: Array) -> float:
    """The largest difference, relative to the largest magnitude expected; infinite when the counts differ."""
    got = np.concatenate([np.asarray(x, np.float32).ravel() for x in outputs])
    if got.shape != expected.shape:
        return float("inf")
    return float(np.abs(got - expected).max() / max(float(np.abs(expected).max()), 1e-12))


def _result_off(result: Result, expected: bytes, golden: Golden) -> float:
    try:
        return result_difference(result, msgspec.json.decode(expected, type=Result))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{golden.expected}: {error}", hint="pack the bundle again") from error


def _outputs_off(outputs: Sequence[Array], expected: bytes, golden: Golden) -> float:
    if not expected or len(expected) % 4:
        raise ModelError(f"{golden.expected}: {len(expected)} bytes", hint="pack the bundle again")
    return outputs_difference(outputs, np.frombuffer(expected, "<f4"))
