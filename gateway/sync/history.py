"""What a host missed: readings of an outage, one an interval and stream, sent as historical metrics afterwards.

The backlog plane carries every reading; this is for hosts that have nothing but Sparkplug. It is held in memory, bounded,
and the oldest goes first.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterator, Sequence

from gateway.clock import Clock
from gateway.contract import Inference, Sample, Schema
from gateway.sync.sparkplug import DATATYPE_OF_CODE, DOUBLE, STRING, Metric, Value
from gateway.sync.tags import Tags, newest_ns

KEPT = 10_000  # records, shared out evenly to the devices; about 2 MB
MESSAGE = 500  # metrics in one message, about 15 kB


class History:
    """Keeps the newest records of each device.

    Args:
        devices: whose records are kept.
        interval_ns: of one stream at most one record is kept in this time.
        clock: dates them, when they are taken.
    """

    def __init__(self, devices: Sequence[str], interval_ns: int, clock: Clock) -> None:
        self._clock = clock
        each = max(1, KEPT // max(1, len(devices)))
        self._kept: dict[str, deque[tuple[int, str, Schema | None, bytes | Inference]]] = {
            device: deque(maxlen=each) for device in devices
        }
        self._interval_ns = interval_ns
        self._newest: dict[str, int] = {}  # stream -> time of what was kept last

    def sample(self, device: str, sample: Sample) -> None:
        """Keep the last reading of `sample`, if it is time."""
        at, schema = newest_ns(sample), sample.schema
        if self._due(sample.stream, at):
            self._kept[device].append((at, sample.stream, schema, sample.data[-schema.record_size :]))

    def inference(self, device: str, inference: Inference) -> None:
        if self._due(inference.pipeline, inference.stamp.mono_ns):
            self._kept[device].append((inference.stamp.mono_ns, inference.pipeline, None, inference))

    def _due(self, stream: str, at: int) -> bool:
        due = at >= self._newest.get(stream, at - self._interval_ns) + self._interval_ns
        if due:
            self._newest[stream] = at
        return due

    def take(self, tags: Tags) -> Iterator[list[Metric]]:
        """The records of a device that is born, as metrics for some messages, oldest first; they are forgotten."""
        kept = self._kept[tags.device]
        message: list[Metric] = []
        while kept:
            at, stream, schema, record = kept.popleft()
            for name, datatype, value in _values(stream, schema, record):
                tag = tags.tags.get(name)
                if tag is None or tag.datatype != datatype:
                    continue  # the node has another program by now: a host could not tell what this is
                when = self._clock.told_ms(at)
                message.append(Metric(datatype, value, alias=tag.alias, timestamp_ms=when, historical=True))
            if len(message) >= MESSAGE or (message and not kept):
                yield message
                message = []


def _values(stream: str, schema: Schema | None, record: bytes | Inference) -> Iterator[tuple[str, int, Value]]:
    if isinstance(record, Inference):
        yield f"inference/{stream}/label", STRING, record.result.label
        yield f"inference/{stream}/score", DOUBLE, record.result.score
    elif schema is not None:
        short = stream.partition("/")[2]
        for channel, value in zip(schema.channels, struct.unpack(schema.format, record), strict=True):
            yield f"{short}/{channel.name}", DATATYPE_OF_CODE[channel.type], value
