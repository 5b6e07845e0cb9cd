"""Rules turn readings and inferences into events: threshold with hysteresis, class, detection, each with a hold time.

Time is that of the data, so a rule needs no timer and replays the same way at any speed.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from gateway.analyse.windows import time_of
from gateway.config import ClassRule, DetectionRule, RuleTable, ThresholdRule
from gateway.contract import Inference, Result, Sample, Severity, Stamp


@dataclass(frozen=True, slots=True)
class Change:
    """A rule was raised or cleared; `mono_ns` is when, in the time of the data."""

    rule: str
    origin: str
    raised: bool
    severity: Severity
    message: str
    mono_ns: int
    detail: dict[str, object] = field(default_factory=dict)
    keep_picture: bool = False
    point: bool = False  # without duration: it is never cleared


Seen = tuple[bool, str, dict[str, object]]  # whether a rule holds, why, and the figures of it


class _Latch:
    """True once the condition has held for `hold_ns`, false as soon as it does not."""

    __slots__ = ("_hold_ns", "_since", "raised")

    def __init__(self, hold_s: float) -> None:
        self._hold_ns = int(hold_s * 1e9)
        self._since: int | None = None
        self.raised = False

    def update(self, holds: bool, mono_ns: int) -> bool:
        """Take one observation; True when `raised` has changed."""
        if not holds:
            self._since = None
            changed, self.raised = self.raised, False
            return changed
        if self._since is None:
            self._since = mono_ns
        if self.raised or mono_ns - self._since < self._hold_ns:
            return False
        self.raised = True
        return True


class Rules:
    """All rules of a config.

    Args:
        changed: called with every rule that is raised or cleared, in the order of the data.
    """

    def __init__(self, tables: Sequence[RuleTable], changed: Callable[[Change], None]) -> None:
        self._changed = changed
        self._by_stream: dict[str, list[_Threshold]] = {}
        self._by_pipeline: dict[str, list[_Looked]] = {}
        for table in tables:
            if isinstance(table, ThresholdRule):
                self._by_stream.setdefault(table.stream, []).append(_Threshold(table))
            else:
                self._by_pipeline.setdefault(table.pipeline, []).append(_Looked(table))

    def sample(self, sample: Sample) -> None:
        for rule in self._by_stream.get(sample.stream, ()):
            for change in rule.changes(sample):
                self._changed(change)

    def inference(self, inference: Inference) -> None:
        for rule in self._by_pipeline.get(inference.pipeline, ()):
            if (change := rule.change(inference)) is not None:
                self._changed(change)

    def regions(self, pipeline: str, stamp: Stamp, inferences: Sequence[Inference]) -> None:
        """One picture of a pipeline that looks at regions: a rule holds if it holds for any of them."""
        for rule in self._by_pipeline.get(pipeline, ()):
            if (change := rule.change_of_any(stamp, inferences)) is not None:
                self._changed(change)


class _Threshold:
    def __init__(self, table: ThresholdRule) -> None:
        self._table = table
        self._latch = _Latch(table.hold_s)

    def changes(self, sample: Sample) -> list[Change]:
        table = self._table
        values = channel_values(sample, table.channel)
        if values is None or (not self._latch.raised and max(values) <= table.above):
            if values is not None:
                self._latch.update(False, sample.firsts[-1])
            return []
        found = []
        for i, value in enumerate(values):
            limit = table.above - table.hysteresis if self._latch.raised else table.above
            mono_ns = time_of(sample, i)
            if self._latch.update(value > limit, mono_ns):
                found.append(self._change(value, mono_ns))
        return found

    def _change(self, value: float, mono_ns: int) -> Change:
        table, raised = self._table, self._latch.raised
        limit = table.above if raised else table.above - table.hysteresis
        word = "above" if raised else "no longer above"
        message = f"{table.stream} {table.channel} {value:.4g} is {word} {limit:.4g}"
        detail: dict[str, object] = {"value": value, "limit": limit}
        return Change(table.name, table.stream, raised, Severity(table.severity), message, mono_ns, detail)


class _Looked:
    """A class or detection rule: what a model says of the newest window or picture."""

    def __init__(self, table: ClassRule | DetectionRule) -> None:
        self._table = table
        self._latch = _Latch(table.hold_s)

    def change(self, inference: Inference) -> Change | None:
        return self._turned(inference.stamp, self._seen(inference.result), inference.input_seq)

    def change_of_any(self, stamp: Stamp, inferences: Sequence[Inference]) -> Change | None:
        """Of the regions of one picture; that for which it holds is told, else the first."""
        looks = [(self._seen(inference.result), inference.input_seq) for inference in inferences]
        nothing: Seen = (False, "nothing to look at", {})
        seen, seq = next((look for look in looks if look[0][0]), looks[0] if looks else (nothing, -1))
        return self._turned(stamp, seen, seq)

    def _seen(self, result: Result) -> Seen:
        table = self._table
        return _class_seen(table, result) if isinstance(table, ClassRule) else _objects_seen(table, result)

    def _turned(self, stamp: Stamp, seen: Seen, input_seq: int) -> Change | None:
        table, (holds, message, detail) = self._table, seen
        if not self._latch.update(holds, stamp.mono_ns):
            return None
        raised = self._latch.raised
        return Change(
            rule=table.name,
            origin=table.pipeline,
            raised=raised,
            severity=Severity(table.severity),
            message=f"{table.pipeline}: {message}",
            mono_ns=stamp.mono_ns,
            detail={**detail, "input_seq": input_seq},
            keep_picture=raised and isinstance(table, DetectionRule) and table.picture,
        )


def _class_seen(table: ClassRule, result: Result) -> Seen:
    holds = result.label in table.labels and result.score >= table.min_score
    return holds, f"{result.label} ({result.score:.2f})", {"label": result.label, "score": result.score}


def _objects_seen(table: DetectionRule, result: Result) -> Seen:
    found = [d for d in result.detections if d.label in table.labels and d.score >= table.min_score]
    best = max((d.score for d in found), default=0.0)
    message = f"{len(found)} x {'/'.join(table.labels)}" + (f" (best {best:.2f})" if found else "")
    return len(found) >= table.min_count, message, {"count": len(found), "best": best}


def channel_values(sample: Sample, channel: str) -> list[float] | None:
    """One channel of every reading; None when the stream has no such channel."""
    try:
        offset, code = sample.schema.offset(channel)
    except KeyError:
        return None
    rest = sample.schema.record_size - offset - struct.calcsize("<" + code)
    return [value for (value,) in struct.iter_unpack(f"<{offset}x{code}{rest}x", sample.data)]
