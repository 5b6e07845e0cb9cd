"""The uplink against real brokers: MQTT 5, several at once, a prefix, pictures."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import msgspec
import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from gateway.store.columns import read_header
from gateway.sync.account import Account
from sdk.ingest import Ingest
from sdk.pictures import PictureIngest
from tests.integration.harness import (
    COUNTS,
    assert_whole,
    broker,
    config,
    count,
    daemon,
    free_port,
    node,
    stored,
    until,
    uplink,
)
from tests.integration.mosquitto import connected, plain_mosquitto
from tests.integration.proxy import Proxy

# --- MQTT 5 ------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(60)
def test_the_brokers_receive_maximum_is_the_window(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with plain_mosquitto(tmp_path, "max_inflight_messages 3\n") as port:
            async with connected(Account("127.0.0.1", port, "five", protocol="5", backoff_max_s=0.5)) as five:
                await until(lambda: five.up, "connected")
                assert five.window == 3
                outcomes: list[bool | None] = []
                five.on_room = outcomes.append
                while five.room:
                    assert five.publish("nobody/listens", b"x" * 40, qos=1, heard=True)
                assert five.inflight == 3
                await until(lambda: len(outcomes) == 3, "acknowledged")
                assert outcomes == [False] * 3  # reason 0x10: no matching subscribers
            async with connected(Account("127.0.0.1", port, "three", window=7, backoff_max_s=0.5)) as three:
                await until(lambda: three.up, "connected")
                assert three.window == 7

    asyncio.run(scenario())


@pytest.mark.timeout(120)
def test_with_mqtt_5_nothing_is_sent_to_nobody_and_a_new_consumer_gets_all(tmp_path: Path) -> None:
    async def scenario() -> None:
        db = tmp_path / "consumer.db"
        async with plain_mosquitto(tmp_path) as port, node(tmp_path):
            text = config(tmp_path, more=uplink(port, 'protocol = "5"\nwindow = 5\n[uplink.live]'))
            async with daemon(tmp_path, text) as gateway:
                status = await gateway.until(
                    lambda s: any(x.name == COUNTS and x.next_seq > 1500 for x in s.streams), "it stores"
                )
                assert status.uplink.state == "up"
                assert status.uplink.sent <= 10  # a window, and what a question now and then starts
                async with Ingest.open(db, port=port):  # knows nothing of this gateway
                    await until(lambda: count(db) > 1500, "delivered")
                    await gateway.end()
                    on_disk = stored(gateway.spool)[COUNTS]
                    await gateway.start()
                    await until(lambda: count(db) >= on_disk, "everything delivered")
        assert_whole(db, on_disk)

    asyncio.run(scenario())


# --- several at once, and a prefix -------------------------------------------------------------------------------


class Plain:
    """A consumer by hand: hears everything under a prefix and says what it has."""

    def __init__(self, port: int, prefix: str) -> None:
        self.ranges: set[tuple[int, int]] = set()
        self.epoch = ""
        self.prefix = prefix
        self.client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv311)
        self.client.on_connect = lambda client, *_: client.subscribe(f"{prefix}/+/up/#", qos=1)
        self.client.on_message = self._arrived
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()

    def _arrived(self, _c: paho.Client, _u: object, message: paho.MQTTMessage) -> None:
        if message.topic == f"{self.prefix}/test/up/{COUNTS}":
            header, _ = read_header(bytes(message.payload))
            self.epoch = header.epoch.hex()
            self.ranges.add((header.seq_first, header.seq_first + header.n))

    @property
    def whole(self) -> int:
        """How far it has everything."""
        at = 0
        for first, end in sorted(self.ranges):
            if first > at:
                break
            at = max(at, end)
        return at

    def acknowledge(self, seq: int) -> None:
        word = {"session": "by hand", "epoch": self.epoch, "next": {COUNTS: seq}}
        self.client.publish(f"{self.prefix}/test/ack", msgspec.json.encode(word), qos=1, retain=True)

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@pytest.mark.timeout(120)
def test_two_uplinks_each_at_its_own_pace(tmp_path: Path) -> None:
    async def scenario() -> None:
        site, db = free_port(), tmp_path / "consumer.db"
        with broker(site):
            async with plain_mosquitto(tmp_path) as cloud, Proxy.open(cloud) as link, node(tmp_path):
                second = uplink(link.port, 'name = "cloud"\nprefix = "acme/plant-7"\nprotocol = "5"', "[[uplink]]")
                text = config(tmp_path, more=uplink(site, "", "[[uplink]]") + second)
                async with Ingest.open(db, port=site), daemon(tmp_path, text) as gateway:
                    plain = Plain(cloud, "acme/plant-7")
                    try:
                        await until(lambda: count(db) > 200 and plain.whole > 200, "both get readings")
                        await link.cut()
                        at = count(db)
                        await until(lambda: count(db) > at + 400, "the one goes on without the other")
                        assert plain.whole < at + 400
                        status = await gateway.status()
                        assert [(u.name, u.state == "up") for u in status.uplinks] == [("main", True), ("cloud", False)]
                        assert status.uplink == status.uplinks[0]
                        # nothing is confirmed over the second: for the spool, nothing is
                        assert next(s.delivered_seq for s in status.streams if s.name == COUNTS) == 0
                        await link.mend()
                        await until(lambda: plain.whole > at + 400, "the other catches up")
                        plain.acknowledge(at)
                        await gateway.until(
                            lambda s: any(x.name == COUNTS and x.delivered_seq == at for x in s.streams),
                            "the least of both is what the spool may forget",
                        )
                        await gateway.end()
                        on_disk = stored(gateway.spool)[COUNTS]
                        await gateway.start()
                        await until(lambda: min(count(db), plain.whole) >= on_disk, "both have everything")
                    finally:
                        plain.close()
        assert_whole(db, on_disk)

    asyncio.run(scenario())


# --- pictures ----------------------------------------------------------------------------------------------------


@pytest.mark.timeout(120)
def test_pictures_arrive_whole_through_cuts_and_kills(tmp_path: Path) -> None:
    folder, received = tmp_path / "data" / "pictures", tmp_path / "received"
    folder.mkdir(parents=True)
    made = random.Random(3)
    for i in range(12):
        (folder / f"dock-{i:02}.jpg").write_bytes(made.randbytes(made.randrange(1, 900_000)))

    async def scenario() -> None:
        async with plain_mosquitto(tmp_path) as port:  # the embedded broker takes no packet of 64 KiB
            async with Proxy.open(port) as link, Proxy.open(port) as far:
                text = config(tmp_path, more=uplink(link.port, 'pictures = "events"'))
                async with daemon(tmp_path, text) as gateway:
                    for breaking in range(4):
                        async with PictureIngest.open(received, port=far.port):
                            before = link.passed
                            await until(lambda n=before: link.passed > n + 300_000 or there() == 12, "blocks go")  # type: ignore[misc]
                            if breaking % 3 == 0:
                                await gateway.kill()
                                await gateway.start()
                            elif breaking % 3 == 1:
                                await link.cut()
                                await link.mend()
                            # and each time the receiver ends here
                    async with PictureIngest.open(received, port=far.port) as last:
                        await until(lambda: there() == 12, "all are there")
                        assert last.refused == 0
                print(f"{link.passed} bytes for {sum(p.stat().st_size for p in folder.iterdir())}")

    def there() -> int:
        return len(list(received.glob("test/*.jpg")))

    asyncio.run(scenario())
    for picture in folder.iterdir():
        assert (received / "test" / picture.name).read_bytes() == picture.read_bytes()
