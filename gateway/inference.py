"""The models of a config: engines, which workers they share, the one budget of all, and what changes them meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import msgspec

from gateway.command import ModelRollbackArgs, ModelSwap, ModelSwapArgs
from gateway.config import Config
from gateway.contract import Severity
from gateway.infer.budget import Budget
from gateway.infer.crew import Crew
from gateway.infer.engine import Engine
from gateway.infer.fits import check_fit
from gateway.infer.order import Order, first_candidates, order_of
from gateway.infer.placer import Placer
from gateway.infer.shelf import Shelf, Wish
from gateway.infer.swap import Swapper, opened
from gateway.model_tables import ModelTable
from gateway.unmodelled import unknown


class Announce(Protocol):
    """Stores an event; done when it is on disk."""

    def __call__(
        self, origin: str, name: str, state: str, severity: Severity, message: str, **detail: Any
    ) -> asyncio.Future[None]: ...


class Models:
    """All models; nothing runs before `run`, and each engine's `supervise`.

    Args:
        announce: called with the model's name as origin.

    Attributes:
        engines: by model.
    """

    def __init__(self, config: Config, announce: Announce) -> None:
        self._announce = announce
        budget = Budget(config.inference.cpus, config.inference.standby_mib)
        shelves = {
            table.name: Shelf(config.data_dir / "models" / table.name, config.path(table.bundle))
            for table in config.model
        }
        states = {name: opened(shelf, partial(announce, name), name) for name, shelf in shelves.items()}
        self._orders = {table.name: order_of(config, table) for table in config.model}
        for name, state in states.items():  # what holds here, also where the disk did not take it
            if state is not None:
                bundle = str(shelves[name].path(state.active))
                self._orders[name] = msgspec.structs.replace(self._orders[name], bundle=bundle)
        self.engines = engines(config, self._orders, budget, self._engine_says)
        self._placer = Placer(self._orders, self.engines, self._notify)
        self._swaps = {
            name: Swapper(
                self._orders[name],
                shelf,
                self.engines[name],
                budget=budget,
                fit=partial(check_fit, config, name),
                placed=self._swapped,
                notify=partial(announce, name),
                state=states[name],
            )
            for name, shelf in shelves.items()
        }

    async def run(self) -> None:
        """Measure in idle time, and swap when asked; until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._placer.run(), name="placement")
            for name, swapper in self._swaps.items():
                tasks.create_task(swapper.run(), name=f"swap {name}")

    def list(self) -> tuple[ModelSwap, ...]:
        """Which bundle each model runs, and how far its swap is."""
        return tuple(swapper.status() for swapper in self._swaps.values())

    async def swap(self, args: ModelSwapArgs) -> ModelSwap:
        """See `Swapper.swap`."""
        wish = Wish(args.shadow_s, args.every, args.trial_s, args.slower)
        return await self._of(args.model).swap(Path(args.bundle), wish)

    async def rollback(self, args: ModelRollbackArgs) -> ModelSwap:
        """See `Swapper.rollback`."""
        return await self._of(args.model).rollback()

    def placed(self, args: Mapping[str, Any]) -> None:
        """`octogate bench` has measured a model: its engine goes by that now."""
        self._of(args.get("model"))
        self._placer.reload(args["model"])

    def _of(self, name: object) -> Swapper:
        if not isinstance(name, str) or name not in self._swaps:
            raise unknown(name, self._swaps)
        return self._swaps[name]

    def _swapped(self, order: Order) -> None:
        """Another bundle: what was measured was the one before."""
        self._orders[order.name] = order
        self._placer.request(order.name)

    def _notify(self, origin: str, name: str, state: str, severity: Severity, message: str, **detail: Any) -> None:
        self._announce(origin, name, state, severity, message, **detail)

    def _engine_says(
        self, model: str, name: str, state: str, severity: Severity, message: str, /, **detail: Any
    ) -> None:
        self._notify(model, name, state, severity, message, **detail)
        if name == "model.failover":  # a device may have gone, or come back
            self._placer.request(model)


def engines(
    config: Config, orders: Mapping[str, Order], budget: Budget, notify: Callable[..., None]
) -> dict[str, Engine]:
    """By model; nothing runs yet.

    Args:
        notify: called with the model's name first, then as `engine.Notify`.
    """
    standby = config.inference.standby_mib > 0
    shared = {
        name: _crew([table for table in config.model if table.worker == name], budget, standby=standby)
        for name in {table.worker for table in config.model if table.worker}
    }
    return {
        table.name: Engine(
            table.name,
            Path(orders[table.name].bundle),
            candidates=first_candidates(orders[table.name]),
            backend=table.backend,
            threads=table.threads or 1,
            deadline_s=table.deadline_ms / 1000,
            priority=table.priority,
            keys=tuple(config.path(key) for key in config.trust.keys),
            allow_unsigned=config.trust.allow_unsigned,
            notify=partial(notify, table.name),
            crew=shared[table.worker] if table.worker else _crew([table], budget, standby=standby),
        )
        for table in config.model
    }


def _crew(tables: list[ModelTable], budget: Budget, *, standby: bool) -> Crew:
    return Crew(
        workers=tables[0].workers,  # one when it is shared; the config is checked for that
        nice=min(table.nice for table in tables),
        max_input=max(table.max_input_kib for table in tables) << 10,
        standby=standby,
        budget=budget,
    )
