"""A node with a camera, in a real MicroPython: whole pictures between readings, through unplugs."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from gateway.contract import SourceState
from sdk.testing import MicroPythonNode
from tests.integration.harness import FIRMWARE, ROOT
from tests.unit.fake_node import running
from tests.unit.simulated_camera import PictureSink

PICTURE = b"\xff\xd8" + bytes(range(256)) * 80 + b"\xff\xd9"  # 20 kB with many zeros


def program() -> bytes:
    """The node's program as docs/cameras.md shows it."""
    text = (ROOT / "docs" / "cameras.md").read_text()
    found = re.search(r"```python\n(# main.py.*?)```", text, re.DOTALL)
    assert found, "docs/cameras.md shows no main.py"
    return found[1].encode()


@pytest.mark.parametrize("cpython", [False, True])
def test_pictures_between_readings_survive_unplugs(tmp_path: Path, cpython: bool) -> None:
    if not cpython:
        pytest.importorskip("micropython_unix", reason="no MicroPython wheel for this platform")
    files = {"main.py": program(), "picture.jpg": PICTURE}

    async def story() -> None:
        sink = PictureSink()
        made = MicroPythonNode(FIRMWARE, tmp_path / "node", tmp_path / "tty", files=files, cpython=cpython)
        async with made as node, running(node.port, sink) as source:
            for number in range(1, 6):
                await sink.has_frames(10 * number)
                await sink.has(100 * number)
                node.unplug()
                await sink.until_slowly(lambda: source.status().state is SourceState.LOST)
                node.replug()
            await sink.has_frames(60)
            status = source.status()
        assert {(frame.source, frame.data) for frame in sink.frames} == {("m/top", PICTURE)}
        assert [frame.seq for frame in sink.frames] == list(range(len(sink.frames)))
        times = [frame.stamp.mono_ns for frame in sink.frames]
        assert times == sorted(times)
        assert sink.values == list(range(len(sink.values)))
        assert "source.overrun" not in str(sink.events)
        assert status.bad <= 5 and status.dropped <= 5  # at most what each unplug cut through

    asyncio.run(story())
