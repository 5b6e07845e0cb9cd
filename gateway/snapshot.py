"""Parts of a `GatewayStatus`: how the process is, and what is newest in a stream."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping

from gateway.contract import BatchKind, ProcessStatus, Sample, SourceState, SourceStatus, StreamStatus

_MAY_BE_OLD = (SourceState.SILENT, SourceState.LOST, SourceState.FAILING)


def process(started: float) -> ProcessStatus:
    """Of this process, which runs since `started` [s, monotonic]."""
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    return ProcessStatus(
        pid=os.getpid(),
        uptime_s=round(time.monotonic() - started, 1),
        cpu_s=round(time.process_time(), 3),
        rss_bytes=pages * os.sysconf("SC_PAGE_SIZE"),
    )


def stream(
    name: str,
    kind: BatchKind,
    next_seq: int,
    delivered: int,
    newest: Sample | None,
    sources: Mapping[str, SourceStatus],
) -> StreamStatus:
    """Of one stream. What its source cannot read now is stale: the values are shown, with that said."""
    if newest is None:
        return StreamStatus(name, kind, next_seq, delivered)
    units = {channel.name: channel.unit for channel in newest.schema.channels}
    values = {key: value for key, value in newest.newest().items() if math.isfinite(value)}  # JSON has no NaN
    source = sources[newest.stream.partition("/")[0]]
    stale = source.state in _MAY_BE_OLD or name in source.stale
    return StreamStatus(name, kind, next_seq, delivered, values, units, stale)
