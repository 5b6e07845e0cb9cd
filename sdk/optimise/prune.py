"""Structured pruning: whole channels go, the least important first, until a budget is kept. torch-pruning does the surgery.

Single weights set to zero were tried: they make a model neither smaller nor faster on any runtime of ours.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from gateway.errors import ModelError
from sdk.optimise.budget import Budget, search
from sdk.optimise.export import to_onnx
from sdk.optimise.parity import latency_us, runner
from sdk.optimise.quiet import last_line, quiet
from sdk.optimise.variants import Built


class Size(NamedTuple):
    """Multiplications with additions for one input, and numbers in the parameters."""

    macs: int
    parameters: int


def size(module: Any, example: Any) -> Size:
    """Of a torch.nn.Module, for this input (a tensor or a tuple of them)."""
    import torch_pruning

    with quiet():
        macs, parameters = torch_pruning.utils.count_ops_and_params(module, example)
    return Size(int(macs), int(parameters))


def prune(module: Any, example: Any, ratio: float, *, keep: Sequence[str] = (), round_to: int = 8) -> Any:
    """A copy without this share of each layer's channels, judged by the L2 norm of what depends on a channel.

    Args:
        ratio: 0 .. 1, of the channels.
        keep: names of submodules whose outputs keep their width: the heads.
        round_to: widths stay multiples of this, which the runtimes' kernels like.

    Raises:
        ModelError: the module cannot be pruned.
    """
    import torch_pruning

    slim = copy.deepcopy(module).eval()
    if ratio <= 0:
        return slim
    named = dict(slim.named_modules())
    if unknown := [name for name in keep if name not in named]:
        raise ModelError(f"there is no submodule {unknown[0]} to keep", hint=f"there are: {', '.join(named)}")
    with quiet():
        try:
            torch_pruning.pruner.MagnitudePruner(
                slim,
                example,
                importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
                pruning_ratio=ratio,
                ignored_layers=[named[name] for name in keep],
                round_to=round_to,
            ).step()
        except (RuntimeError, ValueError, TypeError, AttributeError) as error:
            raise ModelError(f"torch-pruning cannot prune this module: {last_line(error)}") from error
    return slim


def prune_to(module: Any, example: Any, budget: Budget, *, keep: Sequence[str] = (), round_to: int = 8) -> Any:
    """The least pruned copy that keeps the budget; it wants fine-tuning afterwards.

    Raises:
        ModelError: no ratio keeps it, or the module cannot be pruned.
    """
    cost = _cost(budget)
    ratio = search(lambda share: cost(prune(module, example, share, keep=keep, round_to=round_to), example), budget)
    return prune(module, example, ratio, keep=keep, round_to=round_to)


def _cost(budget: Budget) -> Callable[[Any, Any], float]:
    if budget.unit == "macs":
        return lambda module, example: size(module, example).macs
    if budget.unit == "bytes":
        return lambda module, example: size(module, example).parameters * 4
    return _latency


def _latency(module: Any, example: Any) -> float:
    inputs = example if isinstance(example, tuple) else (example,)
    names = [f"input{at}" for at in range(len(inputs))]
    built = Built.onnx(to_onnx(module, example, inputs=names, outputs=()), "fp32")
    [took] = latency_us([runner(built, "onnx")], [tuple(np.asarray(each) for each in inputs)], rounds=3)
    return took
