"""An unsigned model that is allowed to run is shown wherever people look: page, status, metrics."""

import asyncio
import contextlib
import json
import urllib.request
from pathlib import Path

from tests.integration.harness import Daemon, free_port, until
from tests.unit import bundles

CONFIG = """\
[gateway]
id = "line-1"
data_dir = "data"
[panel]
port = {port}
[trust]
allow_unsigned = true
[[model]]
name = "tiny"
bundle = "tiny.octo"
"""


def get(port: int, path: str) -> str:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
        return str(answer.read().decode())
    return ""


def test_an_unsigned_model_is_shown_on_the_panel(tmp_path: Path) -> None:
    bundles.make(tmp_path / "tiny.octo")

    async def main() -> None:
        port = free_port()
        daemon = Daemon(tmp_path, CONFIG.format(port=port))
        await daemon.start()
        try:
            await until(lambda: '"state":"ready"' in get(port, "/api/status").replace(" ", ""), "the model is ready")
            status = json.loads(get(port, "/api/status"))
            metrics = get(port, "/metrics")
        finally:
            await daemon.kill()
        assert status["warnings"] == ["trust.allow_unsigned is on: unsigned models are run"]
        assert [model["signed"] for model in status["models"]] == [False]
        assert 'signed="false"' in metrics

    asyncio.run(main())
