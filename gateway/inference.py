"""The models of a config as engines: which workers they share, and the one budget of all."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from gateway.config import Config
from gateway.infer.budget import Budget
from gateway.infer.crew import Crew
from gateway.infer.engine import Engine
from gateway.infer.order import first_candidates, order_of
from gateway.model_tables import ModelTable


def engines(config: Config, notify: Callable[..., None]) -> dict[str, Engine]:
    """By model; nothing runs yet.

    Args:
        notify: called with the model's name first, then as `engine.Notify`.
    """
    budget = Budget(config.inference.cpus, config.inference.standby_mib)
    standby = config.inference.standby_mib > 0
    shared = {
        name: _crew([table for table in config.model if table.worker == name], budget, standby=standby)
        for name in {table.worker for table in config.model if table.worker}
    }
    return {
        table.name: Engine(
            table.name,
            config.path(table.bundle),
            candidates=first_candidates(order_of(config, table)),
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
