"""`octogate-ingest ledger`: what became of every sequence number, as the receiver knows it."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

from sdk.ingest.batches import StreamLedger


def whole(streams: Sequence[StreamLedger]) -> bool:
    """Nothing is missing: all up to the watermark was committed or dropped by policy, and nothing waits for a hole."""
    return all(stream.missing == 0 and _adds_up(stream) for stream in streams)


def _adds_up(stream: StreamLedger) -> bool:
    written_off = stream.missing - (stream.hole[1] - stream.hole[0] if stream.hole else 0)
    if stream.rows is not None and stream.rows != stream.committed:
        return False
    return stream.committed + stream.there + stream.dropped + written_off == stream.next_seq


def as_json(streams: Sequence[StreamLedger]) -> dict[str, Any]:
    """For machines: `ok`, and per stream the sums and the runs of sequence numbers (first and end, exclusive)."""
    return {"ok": whole(streams), "streams": [_stream(stream) for stream in streams]}


def _stream(stream: StreamLedger) -> dict[str, Any]:
    runs = [
        {"seq_first": run.first, "seq_end": run.end, "state": run.state}
        | {name: value for name, value in (("boot", run.boot), ("why", run.why), ("when_ns", run.when_ns)) if value}
        for run in stream.runs
    ]
    if stream.hole:
        runs.append({"seq_first": stream.hole[0], "seq_end": stream.hole[1], "state": "missing", "why": "not yet here"})
    sums = ("next_seq", "committed", "there", "dropped", "missing", "waiting", "rows")
    fields = ("gateway", "epoch", "stream", "kind", *sums)
    return {name: getattr(stream, name) for name in fields} | {"ok": whole([stream]), "runs": runs}


def as_text(streams: Sequence[StreamLedger]) -> str:
    """For people: a line a stream, and a line for each run that is not simply committed."""
    if not streams:
        return "nothing has arrived yet"
    head = ("gateway", "epoch", "stream", "committed", "dropped", "missing", "waiting")
    rows = [
        (s.gateway, s.epoch[:8], s.stream, *map(str, (s.committed, s.dropped, s.missing, s.waiting))) for s in streams
    ]
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = [_line(head, widths)]
    for stream, row in zip(streams, rows, strict=True):
        lines.append(_line(row, widths))
        for run in _stream(stream)["runs"]:
            if run["state"] != "taken":
                when = f", {_when(run['when_ns'])}" if run.get("when_ns") else ""
                why = f": {run['why']}" if run.get("why") else ""
                lines.append(f"    {run['state']} {run['seq_first']} to {run['seq_end'] - 1}{why}{when}")
        if stream.rows is not None and stream.rows != stream.committed:
            lines.append(f"    WRONG: the tables hold {stream.rows} rows")
    lines.append("whole: nothing is missing" if whole(streams) else "NOT WHOLE")
    return "\n".join(lines)


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join([v.ljust(w) if i < 3 else v.rjust(w) for i, (v, w) in enumerate(zip(row, widths, strict=True))])


def _when(ns: int) -> str:
    try:
        return datetime.datetime.fromtimestamp(ns / 1e9, datetime.UTC).isoformat(timespec="seconds")
    except (OverflowError, ValueError, OSError):
        return f"{ns} ns"
