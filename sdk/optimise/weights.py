"""A PyTorch module's weights as plain data: no pickle, and the shapes of a pruned module along with them."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from gateway.errors import ModelError


class Tensor(msgspec.Struct, frozen=True, array_like=True):
    """Little-endian numbers in C order."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


Weights = dict[str, Tensor]


def of(module: Any) -> Weights:
    """Parameters and buffers of a torch.nn.Module, by name."""
    found = {}
    for name, value in module.state_dict().items():
        array = value.detach().cpu().numpy()
        found[name] = Tensor(array.dtype.str, tuple(array.shape), array.tobytes())
    return found


def put(module: Any, weights: Weights) -> Any:
    """Give a module these weights in place, and the widths that they have, if it was pruned since; gives the module.

    Raises:
        ModelError: they are of another module.
    """
    import torch

    missing = set(module.state_dict()) ^ set(weights)
    if missing:
        raise ModelError(f"weights of another module: {', '.join(sorted(missing)[:5])} only on one side")
    with torch.no_grad():
        for owner_name, owner in module.named_modules():
            prefix = f"{owner_name}." if owner_name else ""
            for store in (owner._parameters, owner._buffers):
                for name, old in store.items():
                    kept = weights.get(prefix + name)
                    if old is None or kept is None:
                        continue
                    value = torch.from_numpy(np.frombuffer(kept.data, kept.dtype).reshape(kept.shape).copy())
                    store[name] = torch.nn.Parameter(value, old.requires_grad) if store is owner._parameters else value
            _widen(torch.nn, owner)
    return module


def _widen(nn: Any, owner: Any) -> None:
    """Attributes that repeat the weights' shapes."""
    if isinstance(owner, nn.Conv1d | nn.Conv2d):
        if owner.groups > 1 and owner.groups == owner.in_channels:  # depthwise
            owner.groups = owner.weight.shape[0]
        owner.out_channels, owner.in_channels = owner.weight.shape[0], owner.weight.shape[1] * owner.groups
    elif isinstance(owner, nn.Linear):
        owner.out_features, owner.in_features = owner.weight.shape
    elif isinstance(owner, nn.BatchNorm1d | nn.BatchNorm2d):
        owner.num_features = owner.running_mean.shape[0]
