"""What the live plane knows: the metrics of the node and of each device, with what a host was last told of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from gateway.clock import Clock
from gateway.contract import Inference, Sample, SourceState
from gateway.sync.sparkplug import DATATYPE_OF_CODE, DOUBLE, GOOD, STALE, STRING, Metric, Value

SOURCE_STATE = "Source/state"
GONE = (SourceState.LOST, SourceState.FAILING)  # the device is dead to a host


def newest_ns(sample: Sample) -> int:
    """The monotonic time of a sample's last reading."""
    return sample.firsts[-1] + sample.steps[-1] * (sample.counts[-1] - 1)


@dataclass(slots=True)
class Tag:
    """One metric: its present value, and the value and quality that were last sent."""

    name: str
    alias: int
    datatype: int
    unit: str
    value: Value | None = None
    mono_ns: int = 0
    sent: Value | None = None
    sent_quality: int = GOOD


class Tags:
    """The metrics of one device, or of the node itself.

    Attributes:
        device: the source's name; empty for the node.
        born: a birth of this session has announced `tags` as they are, up to `grown`.
        grown: there are metrics that no birth has announced yet, or of another datatype.
        stale: values may be old; the state of the source itself is not.
        stale_streams: those (without the source's name) whose values may be old although others of the source are not.
        samples: the newest of each stream that has news; taken apart when it is time to report, not before.

    Args:
        clock: dates them, at the moment they are told.
        pipelines: whose results belong here.
    """

    def __init__(self, device: str, new_alias: Callable[[], int], clock: Clock, pipelines: Iterable[str] = ()) -> None:
        self.device = device
        self._new_alias = new_alias
        self._clock = clock
        self.tags: dict[str, Tag] = {}
        self.born = self.grown = self.stale = False
        self.stale_streams: frozenset[str] = frozenset()
        self.state = SourceState.STARTING
        self.samples: dict[str, Sample] = {}
        if device:
            self.put(SOURCE_STATE, STRING, str(self.state), self._clock.mono_ns())
        for pipeline in pipelines:  # a birth names everything that will ever come, known yet or not
            self.put(f"inference/{pipeline}/label", STRING, None, self._clock.mono_ns())
            self.put(f"inference/{pipeline}/score", DOUBLE, None, self._clock.mono_ns())

    @property
    def here(self) -> bool:
        """Whether the source is there, as far as a host is concerned."""
        return self.state not in (SourceState.STARTING, *GONE)

    def turn(self, state: SourceState) -> None:
        """The source is in another state."""
        self.state = state
        self.stale = state is SourceState.SILENT
        self.put(SOURCE_STATE, STRING, str(state), self._clock.mono_ns())

    def inference(self, inference: Inference) -> None:
        prefix, at = f"inference/{inference.pipeline}", inference.stamp.mono_ns
        self.put(f"{prefix}/label", STRING, inference.result.label, at)
        self.put(f"{prefix}/score", DOUBLE, inference.result.score, at)

    def put(self, name: str, datatype: int, value: Value | None, mono_ns: int, unit: str = "") -> None:
        tag = self.tags.get(name)
        if tag is None:
            tag = self.tags[name] = Tag(name, self._new_alias(), datatype, unit)
            self.grown = True
        elif (tag.datatype, tag.unit) != (datatype, unit):
            tag.datatype, tag.unit = datatype, unit
            self.grown = True
        tag.value, tag.mono_ns = value, mono_ns

    def settle(self) -> None:
        """Take what has come in apart into metrics."""
        samples, self.samples = self.samples, {}
        for stream, sample in samples.items():
            short, newest, at = stream.partition("/")[2], sample.newest(), newest_ns(sample)
            for channel in sample.schema.channels:
                datatype = DATATYPE_OF_CODE[channel.type]
                self.put(f"{short}/{channel.name}", datatype, newest[channel.name], at, channel.unit)

    def birth(self) -> list[Metric]:
        """Every metric by name and alias, in the order of time."""
        self.settle()
        metrics = []
        for tag in sorted(self.tags.values(), key=_age):
            tag.sent, tag.sent_quality = tag.value, self._quality(tag)
            quality = None if tag.sent_quality == GOOD else tag.sent_quality
            at = self._clock.told_ms(tag.mono_ns)
            metrics.append(Metric(tag.datatype, tag.value, tag.name, tag.alias, at, tag.unit, quality))
        self.grown = False
        self.born = True
        return metrics

    def changes(self) -> list[Metric]:
        """What differs from what was last sent, by alias, in the order of time."""
        metrics = []
        for tag in sorted(self.tags.values(), key=_age):
            quality = self._quality(tag)
            if _same(tag.value, tag.sent) and quality == tag.sent_quality:
                continue
            told = None if quality == tag.sent_quality else quality
            tag.sent, tag.sent_quality = tag.value, quality
            at = self._clock.told_ms(tag.mono_ns)
            metrics.append(Metric(tag.datatype, tag.value, alias=tag.alias, timestamp_ms=at, quality=told))
        return metrics

    def find(self, name: str, alias: int | None) -> Tag | None:
        """A metric by the name or, without one, by the alias of its birth."""
        if name:
            return self.tags.get(name)
        return next((tag for tag in self.tags.values() if tag.alias == alias), None)

    def _quality(self, tag: Tag) -> int:
        old = tag.name.rpartition("/")[0] in self.stale_streams if self.stale_streams else False
        return STALE if old or (self.stale and tag.name != SOURCE_STATE) else GOOD


def _age(tag: Tag) -> int:
    return tag.mono_ns


def _same(one: Value | None, other: Value | None) -> bool:
    return one == other or (one != one and other != other)  # NaN is no news after NaN
