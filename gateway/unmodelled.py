"""Stands for the models where a config has none, so that such a gateway loads and waits for no part of inference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gateway.command import ModelRollbackArgs, ModelSwap, ModelSwapArgs
from gateway.errors import ControlError

if TYPE_CHECKING:
    from gateway.infer.engine import Engine


class NoModels:
    """`gateway.inference.Models` of a config without `[[model]]`."""

    def __init__(self) -> None:
        self.engines: dict[str, Engine] = {}

    async def run(self) -> None:
        """Ends at once: there is nothing to measure or to swap."""

    def list(self) -> tuple[ModelSwap, ...]:
        return ()

    async def swap(self, args: ModelSwapArgs) -> ModelSwap:
        raise unknown(args.model)

    async def rollback(self, args: ModelRollbackArgs) -> ModelSwap:
        raise unknown(args.model)

    def placed(self, args: Mapping[str, Any]) -> None:
        raise unknown(args.get("model"))


def unknown(name: object, known: Mapping[str, object] = {}) -> ControlError:
    """A command names a model that is not there; `known` are those that are."""
    return ControlError(f"no model {name!r}", hint=f"there are: {', '.join(known) or 'none'}")
