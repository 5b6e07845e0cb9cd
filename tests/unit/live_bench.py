"""A live plane on a link that writes everything down."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from gateway.clock import Clock
from gateway.contract import Event, Inference, Result, Sample, Severity, SourceState, Stamp
from gateway.sync.live import Live, Setup
from gateway.sync.mqtt import Message
from gateway.sync.sparkplug import BOOLEAN, Metric, Value, encode
from tests.unit.samples import counted
from tests.unit.sparkplug_host import Told, told

HOST = "spBv1.0/STATE/scada"
REBIRTH = encode([Metric(BOOLEAN, True, "Node Control/Rebirth")], 1, None)


class Link:
    """What a `Live` publishes through; `told` is what a host would have been told."""

    def __init__(self) -> None:
        self.told: list[Told] = []
        self.subscribed: dict[str, int] = {}
        self.reconnects: list[str] = []
        self._news = asyncio.Event()

    def publish(self, topic: str, payload: bytes, *, qos: int = 0, retain: bool = False) -> bool:
        self.told.append(told(topic, payload, qos, retain))
        self._news.set()
        return True

    def subscribe(self, topic: str, qos: int = 1) -> None:
        self.subscribed[topic] = qos

    def reconnect(self, why: str) -> None:
        self.reconnects.append(why)

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._news.clear()
            await self._news.wait()

    @property
    def kinds(self) -> list[str]:
        return [message.kind for message in self.told]

    def take(self) -> list[Told]:
        taken, self.told = self.told, []
        return taken


class Bench:
    """A node `line-1` of group `plant` with a press, whose state a pipeline judges, and a camera."""

    def __init__(
        self,
        folder: Path,
        *,
        primary_host: str = "",
        flush: bool = False,
        interval_s: float = 0.001,
        clock: Clock | None = None,
    ) -> None:
        self.clock = clock or Clock()
        self.setup = Setup(
            group="plant",
            node="line-1",
            interval_s=interval_s,
            devices={"press": ("press-state",), "cam": ()},
            alarms=("too-hot",),
            bdseq_file=folder / "bdseq",
            primary_host=primary_host,
            flush_historical=flush,
        )
        self.link = Link()
        self.written: list[tuple[str, str, Value]] = []
        self.refused: list[tuple[str, str]] = []
        self.live = self.restarted()

    def restarted(self) -> Live:
        """Another process on the same data."""
        self.live = Live(
            self.link,
            self.setup,
            lambda device, metric, value: self.written.append((device, metric, value)),
            lambda what, why: self.refused.append((what, why)),
            self.clock,
        )
        return self.live

    def connect(self) -> Told:
        """CONNECT, accepted; gives the will."""
        will = self.live.will()
        self.live.connecting()
        self.live.start()
        return told(will.topic, will.payload, 1, will.retain)

    def born(self) -> Told:
        """Press and camera are there, the node is connected and born; gives the will."""
        self.press(0)
        self.live.source("cam", SourceState.OK)
        will = self.connect()
        self.link.take()
        return will

    def press(self, first: int, n: int = 3) -> Sample:
        sample = counted("press/power", first, n)
        self.live.sample(sample)
        return sample

    def infer(self, label: str, mono_ns: int = 1) -> None:
        stamp = Stamp("boot", mono_ns, None, 0)
        self.live.inference(Inference("press-state", stamp, "m", "b", "onnx", 5, Result(label, 0.5)))

    def ncmd(self, payload: bytes, *, retain: bool = False) -> bool:
        return self.live.message(Message("spBv1.0/plant/NCMD/line-1", payload, retain))

    def dcmd(self, device: str, *metrics: Metric) -> bool:
        return self.live.message(Message(f"spBv1.0/plant/DCMD/line-1/{device}", encode(metrics, 1, None)))

    def host(self, online: bool, timestamp: int, topic: str = HOST) -> bool:
        payload = json.dumps({"online": online, "timestamp": timestamp}).encode()
        return self.live.message(Message(topic, payload, True))


PRESS_BIRTH = [
    "Source/state",
    "inference/press-state/label",
    "inference/press-state/score",
    "power/count",
    "power/half",
]


def played(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await scenario()

    asyncio.run(bounded())


def alarm(state: str) -> Event:
    stamp = Stamp("boot", time.monotonic_ns(), None, 0)
    return Event("too-hot", "press/power", state, Severity.ALARM, stamp, "hot")


def assert_consecutive(messages: list[Told]) -> None:
    """seq runs over node and device messages from each NBIRTH on, 0 follows 255, and NDEATH has none."""
    expected = 0
    for message in messages:
        if message.kind == "NDEATH":
            assert message.seq is None
            continue
        if message.kind == "NBIRTH":
            expected = 0
        assert message.seq == expected, message
        expected = (expected + 1) % 256
