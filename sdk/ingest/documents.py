"""Events and inferences as rows with columns. What cannot be read as one keeps its text and has empty columns."""

from __future__ import annotations

import datetime
from typing import Any

import msgspec

from gateway.contract import Event, Inference, Stamp
from gateway.store.columns import Header

_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


class _Stamped(msgspec.Struct, frozen=True):
    stamp: Stamp


_stamped = msgspec.json.Decoder(_Stamped).decode
_event = msgspec.json.Decoder(Event).decode
_inference = msgspec.json.Decoder(Inference).decode
_MAX_BIGINT = (1 << 63) - 1


def event_row(row: bytes, header: Header) -> tuple[Any, ...]:
    """(at, mono_ns, boot, name, origin, state, severity, message, detail, value), see postgres_schema.py."""
    try:
        event = _event(row)
        at, mono_ns, boot = _stamp(event.stamp, header)
    except (ValueError, OverflowError):  # msgspec's errors are ValueErrors
        return (*([None] * 9), text(row))
    words = map(_clean, (event.name, event.origin, event.state, str(event.severity), event.message))
    return (at, mono_ns, boot, *words, _json(event.detail), text(row))


def inference_row(row: bytes, header: Header) -> tuple[Any, ...]:
    """(at, mono_ns, boot, model, bundle, backend, took_us, input_seq, label, score, result, value)."""
    try:
        seen = _inference(row)
        at, mono_ns, boot = _stamp(seen.stamp, header)
        numbers = (_bigint(seen.took_us), _bigint(seen.input_seq))
    except (ValueError, OverflowError):
        return (*([None] * 11), text(row))
    words = map(_clean, (seen.model, seen.bundle, seen.backend))
    label, score = _clean(seen.result.label), seen.result.score
    return (at, mono_ns, boot, *words, *numbers, label, score, _json(seen.result), text(row))


def late_wall_ns(row: bytes, header: Header) -> int | None:
    """The time of a row that was stamped before the time of day was known, and committed after; None for all others."""
    if header.wall_offset_ns is None or b'"wall_ns":null' not in row:
        return None
    try:
        return _wall_ns(_stamped(row).stamp, header)
    except (ValueError, OverflowError):
        return None


def text(row: bytes) -> str:
    """A text that PostgreSQL can hold: it knows no NUL."""
    return _clean(row.decode(errors="replace"))


def _clean(word: str) -> str:
    return word.replace("\0", "\ufffd")


def _json(value: object) -> str:
    plain = msgspec.to_builtins(value)
    made = msgspec.json.encode(plain)
    if b"\\u0000" in made:  # jsonb refuses it, inside keys and values
        made = msgspec.json.encode(_without_nul(plain))
    return made.decode()


def _without_nul(value: Any) -> Any:
    if isinstance(value, str):
        return _clean(value)
    if isinstance(value, dict):
        return {_clean(str(key)): _without_nul(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nul(item) for item in value]
    return value


def _wall_ns(stamp: Stamp, header: Header) -> int | None:
    """The stamp's own time of day, or what the batch knew when it was made, a moment later."""
    if stamp.wall_ns is None and header.wall_offset_ns is not None and stamp.boot == header.boot:
        return _bigint(stamp.mono_ns + header.wall_offset_ns)
    return stamp.wall_ns


def _stamp(stamp: Stamp, header: Header) -> tuple[datetime.datetime | None, int, str]:
    wall_ns = _wall_ns(stamp, header)
    wall = None if wall_ns is None else _EPOCH + datetime.timedelta(microseconds=wall_ns // 1000)
    return wall, _bigint(stamp.mono_ns), _clean(stamp.boot)


def _bigint(number: int) -> int:
    if abs(number) > _MAX_BIGINT:
        raise OverflowError(number)
    return number
