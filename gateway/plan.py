"""What would change if another config ran: tables, devices, memory, disk and wear. Changes nothing itself.

Memory is what the authors of the models allow at most (`limits.memory_mib` of their manifests), not what they use. Disk
and wear are measured where a spool is there, on its newest batches; a stream that is new has no measured rate yet.
"""

from __future__ import annotations

import contextlib
import math
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import msgspec

from gateway.command import Change
from gateway.config import CAMERAS, Config, PicturesSource
from gateway.contract import BatchKind
from gateway.errors import ModelError, StoreError
from gateway.infer.bundle import read_manifest
from gateway.source_tables import CameraSource, PluginSource, VideoSource
from gateway.store.columns import Codec, read_header
from gateway.store.schema import connect_reader

WORKER_MIB = 60  # an interpreter with a runtime, before its model: what a worker has at least
NEWEST = 400  # batches of a stream that its rate is measured on
PAGE = 4096
ROOM = 0.75  # of the machine's memory; what the models may need together should fit
DAY_S = 86_400


class Memory(msgspec.Struct, frozen=True):
    """MiB that the workers may need at most; `machine` is what the machine has."""

    before: int
    after: int
    machine: int
    models: dict[str, int]  # of the new config


class Disk(msgspec.Struct, frozen=True):
    """Of the streams that are measured.

    Attributes:
        per_day: bytes a day in the spool, now and then.
        days: how long an outage the spool bridges, now and then; None when nothing is measured.
        wear_per_day: bytes a day written to the disk, roughly: a batch costs its pages twice (log and file).
        seconds: the span that was measured, of the stream with the shortest.
        unknown: streams or sources of the new config that have no measured rate.
    """

    per_day: tuple[int, int]
    days: tuple[float | None, float | None]
    wear_per_day: tuple[int, int]
    seconds: float
    unknown: tuple[str, ...]


class Plan(msgspec.Struct, frozen=True):
    """The difference of two configs, and what it costs.

    Attributes:
        changes: by table.
        appear: devices, folders and files that are read from then on.
        go: those that are not any more.
        backlog: what becomes of the readings that wait for delivery.
        warnings: what deserves a second thought; empty for most changes.
    """

    changes: tuple[Change, ...]
    appear: tuple[str, ...]
    go: tuple[str, ...]
    memory: Memory
    disk: Disk
    backlog: str
    warnings: tuple[str, ...]


class Rate(msgspec.Struct, frozen=True):
    """Measured on one stream: bytes and batches a second, over a span."""

    bytes_s: float
    written_s: float
    span_s: float


def plan(old: Config, new: Config) -> Plan:
    """Compare two loaded configs. Reads bundles and the spool of the old one; blocks.

    Raises:
        StoreError: there is a spool, and it cannot be read.
        ModelError: a bundle of the new config cannot be read.
    """
    changes = tuple(_changes(old, new))
    before, after = set(_devices(old)), set(_devices(new))
    memory = _memory(old, new)
    rates, waiting, size = _measured(old.spool_path)
    disk = _disk(old, new, rates)
    return Plan(
        changes=changes,
        appear=tuple(sorted(after - before)),
        go=tuple(sorted(before - after)),
        memory=memory,
        disk=disk,
        backlog=_backlog(old, new, waiting),
        warnings=tuple(_warnings(old, new, memory, waiting, size)),
    )


def plan_text(plan: Plan) -> str:
    """The plan for a terminal."""
    sign = {"added": "+", "removed": "-", "changed": "~"}
    lines = [
        f"  {sign[c.what]} {c.table}{' ' + c.name if c.name else ''}{': ' + c.detail if c.detail else ''}"
        for c in plan.changes
    ]
    lines = ["changes", *lines] if lines else ["no change"]
    lines += [f"  appears  {device}" for device in plan.appear] + [f"  goes     {device}" for device in plan.go]
    memory, disk = plan.memory, plan.disk
    lines.append(
        f"memory   models need at most {memory.after} MiB (now {memory.before}); the machine has {memory.machine} MiB"
    )
    per_day, wear = disk.per_day, disk.wear_per_day
    if disk.seconds:
        lines.append(
            f"disk     {_megabytes(per_day[1])} a day (now {_megabytes(per_day[0])}), measured over {disk.seconds:.0f} s; "
            f"the spool bridges {_days(disk.days[1])} (now {_days(disk.days[0])})"
        )
        lines.append(f"wear     about {_megabytes(wear[1])} a day written to the disk (now {_megabytes(wear[0])})")
    else:
        lines.append("disk     nothing is measured yet: run the gateway for a while")
    if disk.unknown:
        lines.append(f"         not measured yet, and not counted: {', '.join(disk.unknown)}")
    lines.append(f"backlog  {plan.backlog}")
    return "\n".join([*lines, *(f"WARNING  {warning}" for warning in plan.warnings)])


# --- the tables -----------------------------------------------------------------------------------------------------


def _changes(old: Config, new: Config) -> Iterator[Change]:
    for field in msgspec.structs.fields(Config):
        if field.name == "base":
            continue
        before, after = getattr(old, field.name), getattr(new, field.name)
        if isinstance(before, tuple):
            yield from _named(field.name, {t.name: t for t in before}, {t.name: t for t in after})
        elif before is None or after is None:
            if before is not after:
                yield Change("added" if before is None else "removed", field.name, "", "")
        elif detail := _detail(before, after):
            yield Change("changed", field.name, "", detail)


def _named(table: str, before: Mapping[str, msgspec.Struct], after: Mapping[str, msgspec.Struct]) -> Iterator[Change]:
    for name in before.keys() - after.keys():
        yield Change("removed", table, name, _kind(before[name]))
    for name, value in after.items():
        if name not in before:
            yield Change("added", table, name, _kind(value))
        elif type(value) is not type(before[name]):
            yield Change("changed", table, name, f"kind {_kind(before[name])} -> {_kind(value)}")
        elif detail := _detail(before[name], value):
            yield Change("changed", table, name, detail)


def _kind(table: msgspec.Struct) -> str:
    return table.of if isinstance(table, PluginSource) else str(table.__struct_config__.tag or "")


def _detail(before: msgspec.Struct, after: msgspec.Struct) -> str:
    """`key old -> new` of every key that differs; a table in a table with its keys too."""
    told = []
    for name in before.__struct_fields__:
        was, becomes = getattr(before, name), getattr(after, name)
        if was == becomes:
            continue
        if isinstance(was, msgspec.Struct) and type(was) is type(becomes):
            told.append(f"{name} ({_detail(was, becomes)})")
        else:
            told.append(f"{name} {_value(was)} -> {_value(becomes)}")
    return ", ".join(told)


def _value(value: object) -> str:
    if isinstance(value, msgspec.Struct):
        return "on"
    text = "off" if value is None else msgspec.json.encode(value).decode()
    return text if len(text) <= 100 else text[:97] + "..."


def _devices(config: Config) -> Iterator[str]:
    for source in config.source:
        if isinstance(source, PicturesSource):
            yield f"{config.path(source.folder)} ({source.name})"
        elif isinstance(source, CameraSource):
            yield f"{config.path(source.device)} ({source.name})"
        elif isinstance(source, VideoSource):
            yield f"{source.url if '://' in source.url else config.path(source.url)} ({source.name})"
        elif isinstance(source, PluginSource):  # what it opens, only its package knows
            yield f"{source.of} ({source.name})"
        else:
            is_path = "://" not in source.port and not source.port.startswith("usb:")
            yield f"{config.path(source.port) if is_path else source.port} ({source.name})"


# --- memory, disk, backlog ------------------------------------------------------------------------------------------


def _memory(old: Config, new: Config) -> Memory:
    needs = _needs(new)
    try:
        before = sum(_needs(old).values())
    except ModelError:  # the present one may be what is to be mended
        before = 0
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    return Memory(before, sum(needs.values()), machine, needs)


def _needs(config: Config) -> dict[str, int]:
    return {
        model.name: max(WORKER_MIB, read_manifest(config.path(model.bundle)).limits.memory_mib)
        for model in config.model
    }


def _disk(old: Config, new: Config, rates: Mapping[str, Rate]) -> Disk:
    stay = {stream: rate for stream, rate in rates.items() if _origin(stream) not in _gone(old, new)}
    measured = {_origin(stream) for stream in rates}
    unknown = [s.name for s in new.source if not isinstance(s, CAMERAS)] + [p.name for p in new.pipeline]
    per_day = _per_day(rate.bytes_s for rate in rates.values()), _per_day(rate.bytes_s for rate in stay.values())
    return Disk(
        per_day=per_day,
        days=(_lasts(old, per_day[0]), _lasts(new, per_day[1])),
        wear_per_day=(_per_day(r.written_s for r in rates.values()), _per_day(r.written_s for r in stay.values())),
        seconds=round(min((rate.span_s for rate in rates.values()), default=0.0), 1),
        unknown=tuple(name for name in unknown if name not in measured),
    )


def _origin(stream: str) -> str:
    return stream.partition("/")[0]


def _gone(old: Config, new: Config) -> set[str]:
    before = {s.name for s in old.source} | {p.name for p in old.pipeline}
    return before - {s.name for s in new.source} - {p.name for p in new.pipeline}


def _per_day(rates: Iterable[float]) -> int:
    return math.ceil(sum(rates) * DAY_S)


def _lasts(config: Config, per_day: int) -> float | None:
    return round((config.store.max_mib << 20) / per_day, 1) if per_day else None


def _backlog(old: Config, new: Config, waiting: int) -> str:
    if old.data_dir != new.data_dir:
        return f"{waiting} readings and rows stay behind in {old.data_dir}"
    return f"untouched: {waiting} readings and rows wait in the spool, of streams that go as well"


def _warnings(old: Config, new: Config, memory: Memory, waiting: int, size: int) -> Iterator[str]:
    if old.gateway.id != new.gateway.id:
        yield f"gateway.id: the consumer will see another gateway, '{new.gateway.id}', with all of its backlog"
    if old.data_dir != new.data_dir:
        yield f"gateway.data_dir: a new spool is made; {waiting} readings and rows in the old one are not delivered"
    if new.store.max_mib << 20 < size:
        yield f"store.max_mib: the spool is {size >> 20} MiB already: acquisition would wait until it is trimmed"
    brokers = {uplink.name: (uplink.host, uplink.port) for uplink in new.uplink}
    for uplink in old.uplink:
        if uplink.name not in brokers:
            yield f"uplink '{uplink.name}': goes; nothing is delivered there any more, and no command comes from there"
        elif brokers[uplink.name] != (uplink.host, uplink.port):
            yield (
                f"uplink '{uplink.name}': another broker: what its consumer has not confirmed is sent there, "
                "from the start if need be"
            )
    if memory.after > ROOM * memory.machine:
        yield f"memory: the models may need {memory.after} MiB of {memory.machine}: too little is left"
    if new.trust.allow_unsigned and not old.trust.allow_unsigned:
        yield "trust.allow_unsigned: unsigned models will run; for development only"


def _measured(spool: Path) -> tuple[dict[str, Rate], int, int]:
    """Rates by stream, readings and rows that wait, and bytes of the file; nothing where no spool is."""
    if not spool.exists():
        return {}, 0, 0
    rates: dict[str, Rate] = {}
    waiting = 0
    codec = Codec()
    try:
        with contextlib.closing(connect_reader(spool)) as db:
            # what the slowest uplink's consumer has
            streams = db.execute(
                "SELECT s.id, s.name, s.next_seq, coalesce((SELECT min(seq) FROM watermark WHERE stream = s.id), 0) "
                "FROM stream s"
            ).fetchall()
            for id, name, next_seq, confirmed in streams:
                (end,) = db.execute("SELECT max(seq_first + n) FROM batch WHERE stream = ?", (id,)).fetchone()
                waiting += max(0, max(next_seq, end or 0) - confirmed)
                if rate := _rate(db, codec, id):
                    rates[name] = rate
            return rates, waiting, spool.stat().st_size
    except (sqlite3.Error, OSError) as error:
        raise StoreError(f"{spool}: cannot read the spool: {error}", hint="is it this user's?") from error


def _rate(db: sqlite3.Connection, codec: Codec, stream: int) -> Rate | None:
    """Of a stream's newest batches, as far as they are of one boot; None when they span no time."""
    newest = db.execute(
        "SELECT id, length(blob) FROM batch WHERE stream = ? ORDER BY seq_first DESC LIMIT ?", (stream, NEWEST)
    ).fetchall()
    if not newest:
        return None
    boot, end_ns = _began(db, codec, newest[0][0])
    while len(newest) > 1:
        first_boot, first_ns = _began(db, codec, newest[-1][0])
        if first_boot == boot and first_ns < end_ns:
            lengths = [length for _, length in newest[1:]]  # the time of the last one is not over
            written = sum(2 * PAGE * (2 + length // PAGE) for length in lengths)
            span_s = (end_ns - first_ns) / 1e9
            return Rate(sum(lengths) / span_s, written / span_s, span_s)
        newest = newest[: len(newest) // 2]
    return None


def _began(db: sqlite3.Connection, codec: Codec, batch: int) -> tuple[str, int]:
    """Boot and monotonic time (ns) of a batch's first reading or row."""
    (blob,) = db.execute("SELECT blob FROM batch WHERE id = ?", (batch,)).fetchone()
    header, _ = read_header(blob)
    if header.spec:
        return header.boot, int(codec.decode_samples(blob)[1].firsts[0])
    if header.kind is BatchKind.GAP:
        gap = codec.decode_gap(blob)[1]
        return gap.boot, gap.mono_ns
    row = msgspec.json.decode(codec.decode_rows(blob)[1][0])
    return header.boot, int(row["stamp"]["mono_ns"])


def _megabytes(n: int) -> str:
    return f"{n / 1e6:.1f} MB"


def _days(days: float | None) -> str:
    return "?" if days is None else f"{days:g} days"
