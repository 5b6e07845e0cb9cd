"""A gateway without models answers about them as one that has others."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from gateway.command import ModelRollbackArgs, ModelSwapArgs
from gateway.errors import ControlError
from gateway.unmodelled import NoModels


def test_there_is_none() -> None:
    models = NoModels()
    assert models.list() == () and models.engines == {}
    asyncio.run(asyncio.wait_for(models.run(), 5))


@pytest.mark.parametrize(
    "ask",
    [
        lambda models: asyncio.run(models.swap(ModelSwapArgs("state", "/tmp/state.octo"))),
        lambda models: asyncio.run(models.rollback(ModelRollbackArgs("state"))),
        lambda models: models.placed({"model": "state"}),
    ],
)
def test_each_is_unknown(ask: Callable[[NoModels], Any]) -> None:
    with pytest.raises(ControlError, match=r"no model 'state' \(there are: none\)"):
        ask(NoModels())
