"""The wire level of Protocol Buffers, written and read by hand: varints, fixed widths, length-delimited fields.

Only what Sparkplug's payloads use. The reader is bounded: it never reads past its input, never recurses, and whatever
is no protobuf message is a ValueError.
"""

from __future__ import annotations

from collections.abc import Iterator

MAX_MESSAGE = 1 << 20  # bytes

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


def varint(number: int) -> bytes:
    """A non-negative integer in groups of seven bits, the lowest first."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def put_varint(field: int, number: int) -> bytes:
    return varint(field << 3 | VARINT) + varint(number)


def put_bytes(field: int, data: bytes) -> bytes:
    return varint(field << 3 | BYTES) + varint(len(data)) + data


def put_text(field: int, text: str) -> bytes:
    return put_bytes(field, text.encode())


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message as (number, value); ValueError when it is none or longer than `MAX_MESSAGE`.

    Varints and fixed-width fields come as int, length-delimited ones as bytes.
    """
    if len(data) > MAX_MESSAGE:
        raise ValueError(f"a message of {len(data)} bytes")
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == VARINT:
            value, at = _read_varint(data, at)
            yield number, value
            continue
        if wire == BYTES:
            size, at = _read_varint(data, at)
        elif wire in (FIXED64, FIXED32):
            size = 8 if wire == FIXED64 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if at + size > len(data):
            raise ValueError("cut short")
        raw = data[at : at + size]
        yield number, raw if wire == BYTES else int.from_bytes(raw, "little")
        at += size


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while at < len(data) and shift < 64:
        byte = data[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number & (1 << 64) - 1, at
    raise ValueError("not a varint")
