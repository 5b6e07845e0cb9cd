"""OpenVINO IR, fp32 and int8, served by a real worker that maps the weights from the bundle."""

import asyncio
from pathlib import Path

import pytest

from gateway.infer.manifest import Precision
from tests.unit import bundles
from tests.unit.engines import running


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_worker_serves_it(tmp_path: Path, precision: Precision) -> None:
    path = bundles.make_openvino(tmp_path / "ir.octo", precision)

    async def main() -> None:
        async with running(path) as (engine, _):
            answer = await engine.run(bundles.window(1, 2, 3), bundles.MEDIA)
            assert answer.result.values == pytest.approx({"sum": 6.0, "first": 1.0}, abs=0.05)
            assert answer.backend == f"openvino {precision} x1"
            maps = Path(f"/proc/{engine.status().pid}/maps").read_text()
            assert str(path) in maps, "the worker has the bundle mapped while it serves"

    asyncio.run(main())
