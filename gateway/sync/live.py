"""The live plane: a Sparkplug B 3.0 edge node with a device per source, newest values only.

QoS 0 by the specification's own rule: what must not be lost goes over the backlog plane. The node is born when the
connection comes up and, where one is configured, its primary host is online; it dies by its will, or by its own word
before an intended end, and is born again when a host asks (NCMD, Node Control/Rebirth). docs/sparkplug.md says which
test holds which statement of the specification.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gateway.clock import Clock
from gateway.contract import Event, Inference, LiveStatus, Sample, SourceState
from gateway.sync import sparkplug
from gateway.sync.bdseq import BirthCount
from gateway.sync.history import History
from gateway.sync.hoststate import PrimaryHost
from gateway.sync.mqtt import Message
from gateway.sync.sparkplug import NAMESPACE, Metric, Received, Value
from gateway.sync.tags import GONE, Tags

REBIRTH = "Node Control/Rebirth"
CLOCK_KNOWN = "Clock/known"
COALESCE_S = 0.02  # what changes together is told together

Write = Callable[[str, str, Value], None]
Refuse = Callable[[str, str], None]  # what was asked, why it is refused


class Link(Protocol):
    """What the live plane needs of its connection."""

    def publish(self, topic: str, payload: bytes, *, qos: int = 0, retain: bool = False) -> bool: ...
    def subscribe(self, topic: str, qos: int = 1) -> None: ...
    def reconnect(self, why: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Setup:
    """What never changes while the gateway runs.

    Attributes:
        devices: sources, and the pipelines that look at each.
        alarms: rules; each is a metric of the node, true while it is raised.
        primary_host: its host id; empty: birth waits for nobody.
        bdseq_file: keeps bdSeq across restarts.
    """

    group: str
    node: str
    interval_s: float
    devices: Mapping[str, tuple[str, ...]]
    alarms: tuple[str, ...]
    bdseq_file: Path
    primary_host: str = ""
    flush_historical: bool = False


class Live:
    """Keeps the newest values and publishes what changed, at most once an interval.

    Args:
        link: the connection; it calls `will`, `connecting`, `start`, `stop` and `message`.
        write: takes a command that fits a metric of a device.
        refuse: told of commands that do not.
        clock: what timestamps say. Sparkplug has no message without one, so before the time of day is known they say
            what the machine tells, and `Clock/known` of the node is false; nothing is sent as historical until then.
    """

    def __init__(self, link: Link, setup: Setup, write: Write, refuse: Refuse, clock: Clock) -> None:
        self._link = link
        self._setup = setup
        self._write = write
        self._refuse = refuse
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._aliases = 0
        self._node = Tags("", self._new_alias, clock)
        for rule in setup.alarms:
            self._node.put(f"Alarm/{rule}", sparkplug.BOOLEAN, False, clock.mono_ns())
        self._devices = {name: Tags(name, self._new_alias, clock, lines) for name, lines in setup.devices.items()}
        self._tags_of: dict[str, Tags] = {}  # stream -> its device
        self._device_of = {line: name for name, lines in setup.devices.items() for line in lines}
        self._count = BirthCount(setup.bdseq_file)
        self._host = PrimaryHost(setup.primary_host) if setup.primary_host else None
        interval_ns = int(setup.interval_s * 1e9)
        self._history = History(tuple(setup.devices), interval_ns, clock) if setup.flush_historical else None
        self._state = "down"  # waiting, born
        self._bd_seq = self._seq = 0
        self._changed: set[str] = set()  # devices; "" is the node
        self._timer: asyncio.TimerHandle | None = None
        self._reported = -setup.interval_s
        self._sent = 0

    # --- the connection ---------------------------------------------------------------------------------------

    def will(self) -> Message:
        """The NDEATH of the connection that is about to be made; each CONNECT has its own bdSeq."""
        self._bd_seq = self._count.next
        return Message(self._topic("NDEATH"), self._death())

    def connecting(self) -> None:
        """CONNECT has been sent, and the will with it."""
        self._count.connected()

    def start(self) -> None:
        """The connection is up: everything known is born, as soon as the primary host is there."""
        self._link.subscribe(self._topic("NCMD"))
        for device in self._devices:
            self._link.subscribe(self._topic("DCMD", device))
        if self._host is None:
            self._birth()
            return
        self._state = "waiting"
        self._host.reset()
        self._link.subscribe(self._host.topic)

    def stop(self) -> None:
        """The connection is gone."""
        self._state = "down"
        self._disarm()
        for tags in (self._node, *self._devices.values()):
            tags.born = False

    def leave(self) -> None:
        """An intended end: the death certificate is published, for the will will not be."""
        if self._state == "born":
            self._publish("NDEATH", self._death())
        self.stop()

    def message(self, message: Message) -> bool:
        """Take a message of a subscribed topic; False when it is not for this plane."""
        if self._host is not None and message.topic == self._host.topic:
            self._host_said(self._host, message.payload)
            return True
        if message.topic == self._topic("NCMD"):
            self._command(self._node, message)
            return True
        for device, tags in self._devices.items():
            if message.topic == self._topic("DCMD", device):
                self._command(tags, message)
                return True
        return False

    def status(self) -> LiveStatus:
        return LiveStatus(
            state=self._state,
            bd_seq=self._bd_seq,
            devices=sum(tags.born for tags in self._devices.values()),
            sent=self._sent,
            primary_host=self._setup.primary_host,
        )

    def _host_said(self, host: PrimaryHost, payload: bytes) -> None:
        if not host.hear(payload):
            return
        if host.online and self._state == "waiting":
            self._birth()
        elif not host.online and self._state == "born":
            self.leave()
            self._link.reconnect(f"the primary host '{host.id}' is offline")

    # --- what is new ------------------------------------------------------------------------------------------

    def sample(self, sample: Sample) -> None:
        stream = sample.stream
        tags = self._tags_of.get(stream)
        if tags is None:
            tags = self._tags_of[stream] = self._devices[stream.partition("/")[0]]
        tags.samples[stream] = sample
        if tags.device in self._changed:  # the hot path: it is reported soon anyway
            return
        if self._history is not None and self._state != "born":
            self._history.sample(tags.device, sample)
        self._alive(tags)

    def inference(self, inference: Inference) -> None:
        device = self._device_of[inference.pipeline]
        tags = self._devices[device]
        tags.inference(inference)
        if self._history is not None and self._state != "born":
            self._history.inference(device, inference)
        self._alive(tags)

    def source(self, name: str, state: SourceState, stale: Sequence[str] = ()) -> None:
        """A source is in this state (perhaps still); of its streams, `stale` get no readings although others do."""
        tags = self._devices[name]
        of_streams = frozenset(stream.partition("/")[2] for stream in stale)
        if (tags.state, tags.stale_streams) == (state, of_streams):
            return
        tags.stale_streams = of_streams
        if tags.state is not state:
            tags.turn(state)
        if tags.born and state in GONE:
            tags.born = False
            self._send("DDEATH", [], name)
        self._touch(name)

    def event(self, event: Event) -> None:
        """A rule has been raised or cleared; other events are none of this plane's business."""
        if event.name in self._setup.alarms:
            raised = event.state == "raised"
            self._node.put(f"Alarm/{event.name}", sparkplug.BOOLEAN, raised, event.stamp.mono_ns)
            self._touch("")

    def clock_turned(self) -> None:
        """The time of day has become known, or was set: every value is told once more, with its time as it is now."""
        if self._state == "born":
            self._birth()

    def _alive(self, tags: Tags) -> None:
        if tags.state is SourceState.STARTING:
            tags.turn(SourceState.OK)
        self._touch(tags.device)

    def _touch(self, device: str) -> None:
        if self._state != "born":
            return
        self._changed.add(device)
        if self._timer is None:
            due = self._reported + self._setup.interval_s - self._loop.time()
            self._timer = self._loop.call_later(max(COALESCE_S, due), self._report)

    # --- what a host is told ----------------------------------------------------------------------------------

    def _report(self) -> None:
        self._timer = None
        self._reported = self._loop.time()
        changed, self._changed = self._changed, set()
        for name in sorted(changed):
            tags = self._devices[name] if name else self._node
            if name and not tags.here:
                continue
            tags.settle()
            if name and (tags.grown or not tags.born):
                self._birth_of(tags)
                self._flush(tags)
            elif metrics := tags.changes():
                self._send("DDATA" if name else "NDATA", metrics, name)

    def _birth(self) -> None:
        """NBIRTH, a DBIRTH for every device that is there, and only then anything else."""
        self._disarm()
        self._state = "born"
        self._seq = 0
        now = self._now_ms()
        self._node.put(CLOCK_KNOWN, sparkplug.BOOLEAN, self._known(), self._clock.mono_ns())
        control = [
            Metric(sparkplug.INT64, self._bd_seq, "bdSeq", timestamp_ms=now),
            Metric(sparkplug.BOOLEAN, False, REBIRTH, timestamp_ms=now),
        ]
        self._send("NBIRTH", [*self._node.birth(), *control])
        here = [tags for tags in self._devices.values() if tags.here]
        for tags in here:
            self._birth_of(tags)
        for tags in here:
            self._flush(tags)

    def _birth_of(self, tags: Tags) -> None:
        self._send("DBIRTH", tags.birth(), tags.device)

    def _flush(self, tags: Tags) -> None:
        if self._history is not None and self._known():  # a historian would file it under 1970
            for metrics in self._history.take(tags):
                self._send("DDATA", metrics, tags.device)

    def _send(self, kind: str, metrics: list[Metric], device: str = "") -> None:
        payload = sparkplug.encode(metrics, self._now_ms(), self._seq)
        self._seq = (self._seq + 1) % 256
        self._publish(kind, payload, device)

    def _publish(self, kind: str, payload: bytes, device: str = "") -> None:
        if self._link.publish(self._topic(kind, device), payload):
            self._sent += 1

    def _death(self) -> bytes:
        now = self._now_ms()
        return sparkplug.encode([Metric(sparkplug.INT64, self._bd_seq, "bdSeq", timestamp_ms=now)], now, None)

    def _known(self) -> bool:
        return self._clock.wall_offset_ns() is not None

    def _now_ms(self) -> int:
        return self._clock.told_ms(self._clock.mono_ns())

    def _disarm(self) -> None:
        self._changed.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # --- what a host asks -------------------------------------------------------------------------------------

    def _command(self, tags: Tags, message: Message) -> None:
        """A NCMD or DCMD: fitting writes are passed on, a rebirth happens at once, the rest is refused."""
        if self._state != "born":
            return
        if message.retain:  # it would be obeyed again at every connect
            self._refuse(message.topic, "a command must not be retained")
            return
        try:
            metrics = sparkplug.decode(message.payload)
        except ValueError as error:
            self._refuse(message.topic, f"not a Sparkplug command: {error}")
            return
        reborn = False
        for metric in metrics:
            if not tags.device and metric.name == REBIRTH:
                reborn = reborn or _is_true(metric)
            else:
                self._write_one(tags, metric)
        if reborn:
            self._birth()

    def _write_one(self, tags: Tags, metric: Received) -> None:
        where = tags.device or self._setup.node
        tag = tags.find(metric.name, metric.alias)
        if tag is None:
            self._refuse(f"{where}: {metric.name or f'alias {metric.alias}'}", "no birth has named such a metric")
            return
        if not tags.device:
            self._refuse(f"{where}: {tag.name}", "it can only be read")
            return
        try:
            value = metric.typed(tag.datatype)
        except ValueError as error:
            self._refuse(f"{where}: {tag.name}", str(error))
            return
        self._write(tags.device, tag.name, value)

    # --- names ------------------------------------------------------------------------------------------------

    def _topic(self, kind: str, device: str = "") -> str:
        topic = f"{NAMESPACE}/{self._setup.group}/{kind}/{self._setup.node}"
        return f"{topic}/{device}" if device else topic

    def _new_alias(self) -> int:
        self._aliases += 1
        return self._aliases


def _is_true(metric: Received) -> bool:
    try:
        return metric.typed(sparkplug.BOOLEAN) is True
    except ValueError:
        return False
