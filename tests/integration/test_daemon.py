"""The promises, kept by the daemon as a process with a real node, broker and consumer: killed, unplugged, cut off."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path

import pytest

from gateway.contract import SourceState
from sdk.ingest import Ingest
from tests.integration.harness import (
    COUNTS,
    MODELS,
    Daemon,
    assert_whole,
    broker,
    config,
    count,
    daemon,
    free_port,
    node,
    settled,
    stored,
    until,
)


@pytest.mark.timeout(180)
def test_sigkill_at_random_moments_loses_and_doubles_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        port, db = free_port(), tmp_path / "consumer.db"
        moments = random.Random(20261123)
        with broker(port):
            async with Ingest.open(db, port=port) as ingest, node(tmp_path):
                async with daemon(tmp_path, config(tmp_path, port)) as gateway:
                    for _ in range(20):
                        # from before it has opened its spool to well into streaming
                        await asyncio.sleep(moments.uniform(0.05, 1.6))
                        await gateway.kill()
                        await gateway.start()
                    await gateway.until(lambda s: s.sources[0].state is SourceState.OK, "the node is back")
                    on_disk = await settled(gateway, db)
                assert ingest.counts.refused == 0
        print(f"{on_disk} readings over 20 kills; {ingest.counts}")
        assert on_disk > 1000  # it did stream in between
        assert_whole(db, on_disk)

    asyncio.run(scenario())


@pytest.mark.timeout(120)
def test_an_unplugged_node_and_a_broker_outage_lose_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        port, db = free_port(), tmp_path / "consumer.db"
        with broker(port) as mqtt:
            async with Ingest.open(db, port=port), node(tmp_path) as press:
                async with daemon(tmp_path, config(tmp_path, port)) as gateway:
                    await until(lambda: count(db) > 200, "readings arrive")
                    press.unplug()
                    await gateway.until(lambda s: s.sources[0].state is SourceState.LOST, "unplugging is noticed")
                    press.replug()
                    await gateway.until(lambda s: s.sources[0].state is SourceState.OK, "replugging is noticed")
                    mqtt.stop()
                    await gateway.until(lambda s: s.uplink.state != "up", "the outage is noticed")
                    before = (await gateway.status()).streams
                    at = next(s.next_seq for s in before if s.name == COUNTS)
                    await gateway.until(
                        lambda s: next(x.next_seq for x in s.streams if x.name == COUNTS) > at + 400,
                        "it goes on storing",
                    )
                    mqtt.start()
                    await gateway.until(lambda s: s.uplink.state == "up" and s.uplink.reconnects > 0, "it reconnects")
                    on_disk = await settled(gateway, db)
        assert_whole(db, on_disk)

    asyncio.run(scenario())


@pytest.mark.timeout(120)
def test_a_consumer_that_is_killed_and_one_that_forgot_get_what_they_lack(tmp_path: Path) -> None:
    async def scenario() -> None:
        port, db = free_port(), tmp_path / "consumer.db"
        with broker(port):
            async with node(tmp_path), daemon(tmp_path, config(tmp_path, port)) as gateway:
                async with Ingest.open(db, port=port):
                    await until(lambda: count(db) > 200, "readings arrive")
                # nobody listens for a while: the broker acknowledges and throws away
                sent = (await gateway.status()).uplink.sent
                await gateway.until(lambda s: s.uplink.sent > sent + 20, "it goes on sending")
                async with Ingest.open(db, port=port):
                    behind = (await gateway.status()).streams
                    goal = next(s.next_seq for s in behind if s.name == COUNTS)
                    await until(lambda: count(db) >= goal, "the gap is filled")
                # a consumer with an empty table is given everything from the start
                other = tmp_path / "other.db"
                async with Ingest.open(other, port=port):
                    await gateway.end()
                    await gateway.start()
                    goal = stored(gateway.spool)[COUNTS]
                    await until(lambda: count(other) >= goal, "the new consumer has all")
        assert_whole(db, 200)
        assert_whole(other, goal)

    asyncio.run(scenario())


@pytest.mark.timeout(60)
def test_sigterm_stores_everything_and_ends_in_two_seconds(tmp_path: Path) -> None:
    async def scenario() -> None:
        port = free_port()
        async with node(tmp_path), daemon(tmp_path, config(tmp_path, port)) as gateway:
            await gateway.until(lambda s: any(x.next_seq > 200 for x in s.streams), "readings are stored")
            started = time.monotonic()
            assert await gateway.end() == 0
            took = time.monotonic() - started
            print(f"SIGTERM to exit: {took:.2f} s")
            assert took < 2.0
            assert stored(gateway.spool)[COUNTS] > 200
            assert not (tmp_path / "data" / "control.sock").exists()

    asyncio.run(scenario())


@pytest.mark.timeout(60)
def test_a_second_daemon_on_the_same_data_is_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with daemon(tmp_path, config(tmp_path, free_port())) as first:
            await first.until(lambda s: True, "it runs")
            second = Daemon(tmp_path, first.config.read_text())
            second.log = tmp_path / "second.log"
            await second.start()
            assert second.process is not None
            assert await asyncio.wait_for(second.process.wait(), 20) == 1
            assert "another gateway is running on this data_dir" in second.log.read_text()
            await first.until(lambda s: True, "the first is unharmed")

    asyncio.run(scenario())


HEAVY = {"cv2", "numpy", "onnxruntime", "ai_edge_litert", "tflite_runtime", "openvino", "aiohttp", "cryptography"}


@pytest.mark.timeout(60)
def test_the_daemon_maps_no_runtime_no_opencv_no_web_framework(tmp_path: Path) -> None:
    async def scenario() -> None:
        models = f"""[uplink.live]
[panel]
port = {free_port()}
[[model]]
name = "state"
bundle = "{MODELS / "machine_state" / "machine_state.octo"}"
"""
        async with node(tmp_path), daemon(tmp_path, config(tmp_path, free_port(), models)) as gateway:
            await gateway.until(lambda s: s.models[0].state == "ready", "the model is ready")
            assert gateway.process is not None
            maps = Path(f"/proc/{gateway.process.pid}/maps").read_text()
            assert "_sqlite3" in maps  # the test looks at the right process
            assert {name for name in HEAVY if f"/{name}" in maps} == set()

    asyncio.run(scenario())
