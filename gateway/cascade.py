"""Pipelines that look closer: checks of their settings, and the choice of what is looked at.

A pipeline with `after = "other"` runs its model on the regions that the other one detected, on the same picture.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from gateway.contract import Detection, Parent, Region
from gateway.errors import ConfigError

if TYPE_CHECKING:
    from gateway.config import PipelineTable

_LEAST = 1e-3  # of a picture's side: what is smaller is no region


def resolve(where: str, tables: Sequence[PipelineTable]) -> tuple[PipelineTable, ...]:
    """The tables, each child with the source of the pipeline at the top of its chain.

    Args:
        where: the config file, for messages.

    Raises:
        ConfigError: a parent that does not exist or takes readings, a ring, or settings that do not go together.
    """
    by_name = {table.name: table for table in tables}
    return tuple(_resolved(f"{where}: pipeline[{i}]", table, by_name) for i, table in enumerate(tables))


def _resolved(key: str, table: PipelineTable, by_name: dict[str, PipelineTable]) -> PipelineTable:
    if not table.after:
        if not table.source:
            raise ConfigError(f"{key}.source: missing", hint="add source = ..., or after = another pipeline")
        for name in ("labels", "min_score", "max_regions", "margin"):
            if getattr(table, name) != _default(table, name):
                raise ConfigError(f"{key}.{name}: only for a pipeline with `after`", hint="delete the line")
        if _of_readings(table) and table.max_fps:
            raise ConfigError(f"{key}.max_fps: readings are never left out", hint="delete the line")
        if _of_readings(table) and table.form:
            raise ConfigError(f"{key}.form: readings are no pictures of forms", hint="delete the line")
        return table
    for name in ("source", "stream", "window", "hop", "max_fps", "form"):
        if getattr(table, name):
            raise ConfigError(
                f"{key}.{name}: a pipeline with `after` takes what '{table.after}' takes", hint="delete the line"
            )
    return msgspec.structs.replace(table, source=_top(key, table, by_name).source)


def _of_readings(table: PipelineTable) -> bool:
    """For certain; without these keys its stream may be a camera on a node, which `Pipelines` sees by the model."""
    return bool(table.window or table.hop)


def _default(table: PipelineTable, name: str) -> object:
    return next(field.default for field in msgspec.structs.fields(table) if field.name == name)


def _top(key: str, table: PipelineTable, by_name: dict[str, PipelineTable]) -> PipelineTable:
    """The pipeline that a chain begins with."""
    trail = [table.name]
    while table.after:
        if table.after in trail:
            ring = " -> ".join([*trail[trail.index(table.after) :], table.after])
            raise ConfigError(f"{key}.after: a ring: {ring}", hint="one of them must have a source instead")
        if table.after not in by_name:
            near = difflib.get_close_matches(table.after, by_name, 1)
            hint = f"did you mean '{near[0]}'?" if near else f"declared are: {', '.join(sorted(by_name))}"
            raise ConfigError(f"{key}.after: there is no '{table.after}'", hint=hint)
        table = by_name[table.after]
        trail.append(table.name)
    if _of_readings(table):
        raise ConfigError(
            f"{key}.after: '{table.name}' takes readings, which have no regions", hint="name a camera's pipeline"
        )
    return table


def choose(table: PipelineTable, detections: Sequence[Detection]) -> tuple[list[Parent], int]:
    """What a child looks at: the best detections of its labels, at most `max_regions`; and how many more there were."""
    wanted = [
        (i, d)
        for i, d in enumerate(detections)
        if d.score >= table.min_score and (not table.labels or d.label in table.labels)
    ]
    wanted.sort(key=lambda item: -item[1].score)
    assert table.after  # only children choose
    parents = [
        Parent(table.after, i, d.label, widened(d, table.margin), (d.x0, d.y0, d.x1, d.y1))
        for i, d in wanted[: table.max_regions]
    ]
    return parents, max(0, len(wanted) - table.max_regions)


def widened(box: Detection, margin: float) -> Region:
    """A box made larger on each side by `margin` of its width or height, within the picture, never without an area."""
    x0, x1 = _side(box.x0, box.x1, margin)
    y0, y1 = _side(box.y0, box.y1, margin)
    return x0, y0, x1, y1


def _side(low: float, high: float, margin: float) -> tuple[float, float]:
    more = margin * (high - low)
    low, high = max(0.0, low - more), min(1.0, high + more)
    if high - low < _LEAST:
        middle = min(max((low + high) / 2, _LEAST / 2), 1 - _LEAST / 2)
        low, high = middle - _LEAST / 2, middle + _LEAST / 2
    # as it will be written, so that what is stored is what was looked at
    return round(low, 6), round(high, 6)
