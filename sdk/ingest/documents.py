"""Events and inferences as rows with columns. What cannot be read as one keeps its text and has empty columns."""

from __future__ import annotations

import datetime
from typing import Any

import msgspec

from gateway.contract import Event, Inference, Stamp

_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_event = msgspec.json.Decoder(Event).decode
_inference = msgspec.json.Decoder(Inference).decode
_MAX_BIGINT = (1 << 63) - 1


def event_row(row: bytes) -> tuple[Any, ...]:
    """(at, mono_ns, boot, name, origin, state, severity, message, detail, value), see postgres_schema.py."""
    try:
        event = _event(row)
        at, mono_ns, boot = _stamp(event.stamp)
    except (ValueError, OverflowError):  # msgspec's errors are ValueErrors
        return (*([None] * 9), text(row))
    words = map(_clean, (event.name, event.origin, event.state, str(event.severity), event.message))
    return (at, mono_ns, boot, *words, _json(event.detail), text(row))


def inference_row(row: bytes) -> tuple[Any, ...]:
    """(at, mono_ns, boot, model, bundle, backend, took_us, input_seq, label, score, result, value)."""
    try:
        seen = _inference(row)
        at, mono_ns, boot = _stamp(seen.stamp)
        numbers = (_bigint(seen.took_us), _bigint(seen.input_seq))
    except (ValueError, OverflowError):
        return (*([None] * 11), text(row))
    words = map(_clean, (seen.model, seen.bundle, seen.backend))
    label, score = _clean(seen.result.label), seen.result.score
    return (at, mono_ns, boot, *words, *numbers, label, score, _json(seen.result), text(row))


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


def _stamp(stamp: Stamp) -> tuple[datetime.datetime | None, int, str]:
    wall = None if stamp.wall_ns is None else _EPOCH + datetime.timedelta(microseconds=stamp.wall_ns // 1000)
    return wall, _bigint(stamp.mono_ns), _clean(stamp.boot)


def _bigint(number: int) -> int:
    if abs(number) > _MAX_BIGINT:
        raise OverflowError(number)
    return number
