"""Takes columns out of the last layer of an ONNX file, without the onnx package: only that layer's bytes are touched.

The wire format is Protocol Buffers' (keys of field number and type, varints, lengths); of ONNX's messages only
ModelProto.graph, GraphProto.initializer, TensorProto and ModelProto.metadata_props are known here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from gateway.errors import ModelError

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_GRAPH, _METADATA = 7, 14  # of ModelProto
_INITIALIZER, _OUTPUT, _VALUE_INFO = 5, 12, 13  # of GraphProto
_DIMS, _TYPE, _NAME, _RAW = 1, 2, 8, 9  # of TensorProto
_FLOAT = 1


class Part(NamedTuple):
    """One field of a message: number, value (an int, or bytes), and its bytes as they stand."""

    number: int
    value: int | bytes
    raw: bytes


def parts(message: bytes) -> Iterator[Part]:
    """The fields of a message, in their order.

    Raises:
        ModelError: no message.
    """
    at = 0
    while at < len(message):
        start = at
        key, at = _varint(message, at)
        value: int | bytes
        if key & 7 == _VARINT:
            value, at = _varint(message, at)
        elif key & 7 in (_LENGTH, _FIXED64, _FIXED32):
            size, at = _varint(message, at) if key & 7 == _LENGTH else (8 if key & 7 == _FIXED64 else 4, at)
            value, at = message[at : at + size], at + size
        else:
            raise ModelError("not a protocol buffer", hint="is this an ONNX file?")
        if at > len(message):
            raise ModelError("a protocol buffer that is cut short", hint="fetch the file again")
        yield Part(key >> 3, value, message[start:at])


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ModelError("a protocol buffer that is cut short", hint="fetch the file again")
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _coded(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: int | bytes) -> bytes:
    """One field as bytes."""
    if isinstance(value, int):
        return _coded(number << 3 | _VARINT) + _coded(value)
    return _coded(number << 3 | _LENGTH) + _coded(len(value)) + value


def metadata(model: bytes, key: str) -> str:
    """A text of the model's metadata.

    Raises:
        ModelError: there is none of this name.
    """
    for part in parts(model):
        if part.number == _METADATA and isinstance(part.value, bytes):
            pair = {p.number: p.value for p in parts(part.value)}
            if pair.get(1) == key.encode() and isinstance(pair.get(2), bytes):
                return bytes(pair[2]).decode()
    raise ModelError(f"the ONNX file has no metadata '{key}'")


def keep_columns(model: bytes, layer: str, keep: Sequence[int]) -> bytes:
    """The model with only these columns in the tensors `<layer>.*`; shapes that were noted and metadata are dropped.

    Raises:
        ModelError: there are not two such float tensors.
    """
    out, changed = bytearray(), 0
    for part in parts(model):
        if part.number == _METADATA:
            continue
        if part.number != _GRAPH or not isinstance(part.value, bytes):
            out += part.raw
            continue
        graph = bytearray()
        for inner in parts(part.value):
            if inner.number == _VALUE_INFO:
                continue
            tensor = inner.value
            if inner.number == _INITIALIZER and isinstance(tensor, bytes) and _name(tensor).startswith(layer + "."):
                graph += field(_INITIALIZER, _cut(tensor, keep))
                changed += 1
            elif inner.number == _OUTPUT and isinstance(tensor, bytes):
                graph += field(_OUTPUT, _shapeless(tensor))
            else:
                graph += inner.raw
        out += field(_GRAPH, bytes(graph))
    if changed != 2:
        raise ModelError(f"{changed} tensors of a layer '{layer}' in the ONNX file instead of 2")
    return bytes(out)


def _name(tensor: bytes) -> str:
    return next(
        (bytes(p.value).decode() for p in parts(tensor) if p.number == _NAME and isinstance(p.value, bytes)), ""
    )


def _cut(tensor: bytes, keep: Sequence[int]) -> bytes:
    dims = [part.value for part in parts(tensor) if part.number == _DIMS]
    kinds = [part.value for part in parts(tensor) if part.number == _TYPE]
    raw = next((part.value for part in parts(tensor) if part.number == _RAW), b"")
    if kinds != [_FLOAT] or not dims or not all(isinstance(n, int) for n in dims) or not isinstance(raw, bytes):
        raise ModelError("the layer's tensors are not plain float32")
    values = np.frombuffer(raw, "<f4").reshape([int(n) for n in dims])
    less = np.ascontiguousarray(values[..., list(keep)])
    named = b"".join(part.raw for part in parts(tensor) if part.number == _NAME)
    shape = b"".join(field(_DIMS, n) for n in less.shape)
    return shape + field(_TYPE, _FLOAT) + named + field(_RAW, less.tobytes())


def _shapeless(value_info: bytes) -> bytes:
    """An output without its noted shape: a type of float32 stays (ValueInfoProto.type.tensor_type.elem_type)."""
    named = b"".join(part.raw for part in parts(value_info) if part.number == 1)
    return named + field(2, field(1, field(1, _FLOAT)))
