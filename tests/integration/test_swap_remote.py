"""From end to end: a node's windows at a consumer, while a signed command from afar swaps the model that computes them."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import sqlite3
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.command import ModelSwap
from gateway.contract import Result
from gateway.errors import ControlError
from gateway.infer.manifest import Golden, Window
from sdk.bundle import generate_key, pack
from sdk.ingest import Ingest
from tests.integration.harness import config, daemon, node, until
from tests.integration.sites import site
from tests.unit import bundles

HOP = 4
MORE = f"""
[[model]]
name = "sum"
bundle = "a.octo"
backend = "onnx"
threads = 1
[[pipeline]]
name = "sums"
source = "press"
stream = "count"
model = "sum"
hop = {HOP}
"""


def make(path: Path, version: str, factor: int, key: Any) -> Path:
    """Of 8 counts the sum and the first, times `factor`."""
    golden = Golden(input="golden/0", media="records;n:f:W", expected="golden/0.json", tolerance={"fp32": 1e-4})
    takes = Window(channels=("n",), length=bundles.LENGTH, rate_hz=100)
    manifest = bundles.manifest(version=version, input=takes, golden=(golden,))
    weights = bundles.weights(bundles.LENGTH)
    model = bundles.onnx_model().replace(weights.tobytes(), (factor * weights).tobytes())
    expected = msgspec.json.encode(Result(values={"sum": 6.0 * factor, "first": 1.0 * factor}))
    pack(path, manifest, bundles.files(**{"model.onnx": model, "golden/0.json": expected}), key)
    return path


def inferences(db: Path) -> list[dict[str, Any]]:
    """At the consumer, in the order of their sequence numbers."""
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(db)) as table:
        rows = table.execute(
            "SELECT r.value FROM reading r JOIN stream s ON s.id = r.stream WHERE s.stream = 'sums' ORDER BY r.seq"
        )
        return [json.loads(value) for (value,) in rows]
    return []


@pytest.mark.timeout(120)
def test_a_signed_swap_from_afar_loses_no_window(tmp_path: Path) -> None:
    key = generate_key(tmp_path / "host.pem", tmp_path / "host.pub")
    make(tmp_path / "a.octo", "1.0", 1, key)
    new = make(tmp_path / "b.octo", "2.0", 2, key)
    db = tmp_path / "consumer.db"

    async def scenario() -> None:
        with site("iotcore", tmp_path) as at:
            table = at.table + 'command_keys = ["host.pub"]\n' + MORE
            text = config(tmp_path, more=table).replace("keys = [", f'keys = ["{tmp_path / "host.pub"}", ', 1)
            async with (
                Ingest.open(db, account=at.receiver),
                node(tmp_path, rate=100),
                daemon(tmp_path, text) as gateway,
            ):
                await until(lambda: len(inferences(db)) > 20, "windows are computed")
                async with at.remote() as stranger:
                    with pytest.raises(ControlError, match="not signed"):
                        await stranger.ask("model.swap", ModelSwap, model="sum", bundle=str(new))
                async with at.remote(tmp_path / "host.pem") as remote:
                    path = await remote.put_bundle(new)
                    begun = await remote.ask(
                        "model.swap", ModelSwap, model="sum", bundle=path, trial_s=1.0, shadow_s=1.0
                    )
                    assert begun.number == 1 and begun.source == "config"
                    await remote.drop_bundle(hashlib.sha256(new.read_bytes()).hexdigest())
                    models: tuple[ModelSwap, ...] = (begun,)
                    async with asyncio.timeout(60):
                        while models[0].step != "settled":
                            models = await remote.ask("model.list", tuple[ModelSwap, ...])
                    assert (models[0].outcome, models[0].source) == ("settled", "swap")
                    assert models[0].shadow.compared > 5
                have = len(inferences(db))
                await until(lambda: len(inferences(db)) > have + 20, "it goes on")
                assert gateway.process is not None
                maps = Path(f"/proc/{gateway.process.pid}/maps").read_text()
                assert "cryptography" not in maps and "numpy" not in maps

    asyncio.run(scenario())
    rows = inferences(db)
    assert [row["input_seq"] for row in rows] == [HOP * i for i in range(len(rows))]
    names = [row["bundle"] for row in rows]
    assert len(set(names)) == 2 and names == sorted(names, key=[names[0], names[-1]].index)
    for row in rows:
        first, factor = row["input_seq"], 1 if row["bundle"] == names[0] else 2
        assert row["result"]["values"] == {"sum": factor * (8.0 * first + 28), "first": float(factor * first)}
