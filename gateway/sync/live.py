"""The live plane: a Sparkplug B edge node with a device per source, newest values only.

QoS 0 by the specification's own rule: what must not be lost goes over the backlog plane. The node is born when the
connection comes up, dies by its will, and is born again when a host asks (NCMD, Node Control/Rebirth).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from gateway.contract import Inference, Sample
from gateway.sync import sparkplug
from gateway.sync.mqtt import Message
from gateway.sync.sparkplug import Metric

Publish = Callable[[str, bytes], bool]


class Live:
    """Keeps the newest values and publishes what changed, at most once an interval.

    Args:
        publish: sends at QoS 0; False when the connection is down.
    """

    def __init__(self, group: str, node: str, min_interval_s: float, publish: Publish) -> None:
        self._group = group
        self._node = node
        self._interval_s = min_interval_s
        self._publish = publish
        self._loop = asyncio.get_running_loop()
        self._samples: dict[str, Sample] = {}  # stream -> newest
        self._inferences: dict[str, Inference] = {}
        self._changed: set[str] = set()
        self._aliases: dict[str, int] = {}
        self._born: set[str] = set()  # streams and pipelines that a birth has announced
        self._timer: asyncio.TimerHandle | None = None
        self._up = False
        self._seq = 0
        self._bd_seq = -1

    @property
    def command_topic(self) -> str:
        return self._topic("NCMD")

    def will(self) -> Message:
        """The NDEATH of the connection that is about to be made; each has its own bdSeq."""
        self._bd_seq = (self._bd_seq + 1) % 256
        return Message(self._topic("NDEATH"), self._death())

    def start(self) -> None:
        """The connection is up: everything known is born."""
        self._up = True
        self._birth()

    def stop(self) -> None:
        self._up = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def leave(self) -> None:
        """An intended end: the death certificate is published, for the will will not be."""
        if self._up:
            self._publish(self._topic("NDEATH"), self._death())
        self.stop()

    def command(self, payload: bytes) -> None:
        """A NCMD; a payload that is none is ignored, as the specification asks."""
        try:
            asked = sparkplug.rebirth_asked(payload)
        except ValueError:
            return
        if asked and self._up:
            self._birth()

    def sample(self, sample: Sample) -> None:
        self._samples[sample.stream] = sample
        self._touch(sample.stream)

    def inference(self, inference: Inference) -> None:
        self._inferences[inference.pipeline] = inference
        self._touch(inference.pipeline)

    def _touch(self, name: str) -> None:
        if not self._up:
            return
        self._changed.add(name)
        if self._timer is None:
            self._timer = self._loop.call_later(self._interval_s, self._report)

    def _report(self) -> None:
        self._timer = None
        changed, self._changed = self._changed, set()
        if changed - self._born:
            self._birth()
            return
        devices: dict[str, list[Metric]] = {}
        for name in sorted(changed):
            devices.setdefault(self._device(name), []).extend(self._metrics(name, birth=False))
        for device, metrics in devices.items():
            kind = "DDATA" if device else "NDATA"
            self._send(kind, metrics, device)

    def _birth(self) -> None:
        self._seq = 0
        self._changed.clear()
        names = sorted({*self._samples, *self._inferences})
        node = [
            Metric(sparkplug.INT64, self._bd_seq, "bdSeq"),
            Metric(sparkplug.BOOLEAN, False, "Node Control/Rebirth"),
        ]
        devices: dict[str, list[Metric]] = {}
        for name in names:
            metrics = self._metrics(name, birth=True)
            if device := self._device(name):
                devices.setdefault(device, []).extend(metrics)
            else:
                node += metrics
        self._send("NBIRTH", node)
        for device, metrics in devices.items():
            self._send("DBIRTH", metrics, device)
        self._born = set(names)

    def _device(self, name: str) -> str:
        """Streams of a source belong to its device, inferences to the node itself."""
        return name.partition("/")[0] if name in self._samples else ""

    def _metrics(self, name: str, *, birth: bool) -> list[Metric]:
        now_ms = time.time_ns() // 1_000_000
        triples: list[tuple[str, int, sparkplug.Value, str]] = []
        if (sample := self._samples.get(name)) is not None:
            stream, newest = name.partition("/")[2], sample.newest()
            for channel in sample.schema.channels:
                datatype = sparkplug.DATATYPE_OF_CODE[channel.type]
                triples.append((f"{stream}/{channel.name}", datatype, newest[channel.name], channel.unit))
        else:
            result = self._inferences[name].result
            triples.append((f"{name}/label", sparkplug.STRING, result.label, ""))
            triples.append((f"{name}/score", sparkplug.DOUBLE, result.score, ""))
        metrics = []
        for metric, datatype, value, unit in triples:
            alias = self._aliases.setdefault(f"{self._device(name)}/{metric}", len(self._aliases) + 1)
            if birth:
                metrics.append(Metric(datatype, value, metric, alias, now_ms, unit))
            else:
                metrics.append(Metric(datatype, value, "", alias, now_ms))
        return metrics

    def _send(self, kind: str, metrics: list[Metric], device: str = "") -> None:
        payload = sparkplug.encode(metrics, time.time_ns() // 1_000_000, self._seq)
        self._seq = (self._seq + 1) % 256
        self._publish(self._topic(kind, device), payload)

    def _death(self) -> bytes:
        return sparkplug.encode([Metric(sparkplug.INT64, self._bd_seq, "bdSeq")], time.time_ns() // 1_000_000, None)

    def _topic(self, kind: str, device: str = "") -> str:
        topic = f"{sparkplug.NAMESPACE}/{self._group}/{kind}/{self._node}"
        return f"{topic}/{device}" if device else topic
