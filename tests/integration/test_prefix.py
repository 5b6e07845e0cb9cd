"""A gateway with a topic prefix of its own: everything about it is found there, and nothing anywhere else."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from sdk.client import over_mqtt
from sdk.pictures import PictureIngest
from tests.integration.harness import ROOT, assert_whole, broker, config, count, daemon, free_port, node, until

PREFIX = "site/a"


@pytest.mark.timeout(90)
def test_ingest_commands_and_pictures_by_prefix(tmp_path: Path) -> None:
    pictures = tmp_path / "data" / "pictures"
    pictures.mkdir(parents=True)
    (pictures / "dock-1.jpg").write_bytes(b"\xff\xd8" + bytes(40_000))

    async def scenario() -> None:
        port, db = free_port(), tmp_path / "consumer.db"
        topics: set[str] = set()
        listener = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv311)
        listener.on_message = lambda _c, _u, message: topics.add(message.topic)
        argv = ["-m", "sdk.ingest", "--db", str(db), "--port", str(port), "--prefix", PREFIX]
        with broker(port):
            listener.connect("127.0.0.1", port)
            listener.subscribe("#", qos=1)
            listener.loop_start()
            ingest = await asyncio.create_subprocess_exec(sys.executable, *argv, cwd=ROOT)
            text = config(tmp_path, port, f'prefix = "{PREFIX}"\ncommands = true\npictures = "events"\n')
            try:
                async with PictureIngest.open(tmp_path / "received", port=port, prefix=PREFIX), node(tmp_path):
                    async with daemon(tmp_path, text) as gateway:
                        await until(lambda: count(db) > 200, "readings arrive")
                        await gateway.until(lambda s: s.streams[-1].delivered_seq > 0, "and are confirmed")
                        async with over_mqtt("test", "127.0.0.1", port, root=PREFIX) as remote:
                            assert (await remote.config()).text == text
                        await gateway.until(lambda s: s.uplink.pictures == 1, "the picture is there")
            finally:
                ingest.send_signal(signal.SIGTERM)
                assert await asyncio.wait_for(ingest.wait(), 20) == 0
            listener.disconnect()
            listener.loop_stop()
        assert_whole(db, 200)
        assert topics and all(topic.startswith(f"{PREFIX}/test/") for topic in topics)

    asyncio.run(scenario())
