"""Tiny real models and bundles for tests, made without the training tools.

The model takes a window of 8 readings and answers its sum and its first reading. The ONNX one also counts to
`first - HANG` in a native loop when that is positive: a model that really hangs.
"""

import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gateway.contract import Result
from gateway.infer.manifest import (
    Fit,
    Golden,
    Manifest,
    Normalise,
    Picture,
    Precision,
    Tensor,
    TopK,
    Values,
    Variant,
    Window,
)
from sdk.bundle import openvino_variant, pack

LENGTH = 8
HANG = 1e6
MEDIA = "records;p:f:W"

_FLOAT, _INT64, _BOOL = 1, 7, 9  # onnx.TensorProto.DataType


def window(first: float, *others: float) -> bytes:
    """One input: 8 float32 readings."""
    return struct.pack(f"<{LENGTH}f", first, *others, *[0.0] * (LENGTH - 1 - len(others)))


def weights(n: int) -> "np.ndarray[Any, np.dtype[np.float32]]":
    """[n, 2]: the sum, and the first."""
    matrix = np.zeros((n, 2), np.float32)
    matrix[:, 0] = 1
    matrix[0, 1] = 1
    return matrix


def manifest(**changes: Any) -> Manifest:
    base = Manifest(
        name="tiny",
        version="1.0",
        task="regress",
        licence="Apache-2.0",
        source="made by the tests",
        input=Window(channels=("p",), length=LENGTH, rate_hz=10),
        pre=(Tensor(layout="flat"),),
        post=(Values(names=("sum", "first")),),
        variants=(Variant(file="model.onnx", format="onnx", precision="fp32"),),
        golden=(Golden(input="golden/0", media=MEDIA, expected="golden/0.json", tolerance={"fp32": 1e-4}),),
    )
    return msgspec.structs.replace(base, **changes)


def files(**changes: bytes) -> dict[str, bytes]:
    result = Result(values={"sum": 6.0, "first": 1.0})
    return {
        "model.onnx": onnx_model(),
        "golden/0": window(1, 2, 3),
        "golden/0.json": msgspec.json.encode(result),
        "card.md": b"# tiny\n",
        **changes,
    }


def make(path: Path, key: Ed25519PrivateKey | None = None, **changes: bytes) -> Path:
    """A bundle with the ONNX model; `changes` replace members."""
    pack(path, manifest(), files(**changes), key)
    return path


def make_litert(path: Path) -> Path:
    tflite = Variant(file="model.tflite", format="tflite", precision="fp32")
    members = files(**{"model.tflite": tflite_model()})
    del members["model.onnx"]
    pack(path, manifest(variants=(tflite,)), members)
    return path


def make_openvino(path: Path, precision: Precision = "fp32") -> Path:
    """An OpenVINO IR; int8 as a quantiser leaves it: int8 weights with a scale, activations fake-quantised."""
    import openvino
    from openvino import opset8

    x = opset8.parameter([1, LENGTH], np.float32, name="x")
    given, matrix = x, opset8.constant(weights(LENGTH))
    if precision == "int8":
        low, high = np.float32(-128), np.float32(127)
        given = opset8.fake_quantize(x, low, high, low, high, 256)
        whole = opset8.constant((weights(LENGTH) * 100).astype(np.int8))
        matrix = opset8.multiply(opset8.convert(whole, np.float32), np.float32(0.01))
    model = openvino.Model([opset8.matmul(given, matrix, False, False)], [x], "tiny")
    with tempfile.TemporaryDirectory() as folder:
        xml = Path(folder) / "model.xml"
        openvino.save_model(model, xml, compress_to_fp16=False)
        variant, members = openvino_variant(xml, precision)
    members = files(**members)
    del members["model.onnx"]
    sample = Golden(
        input="golden/0", media=MEDIA, expected="golden/0.json", tolerance={"fp32": 1e-4, "fp16": 1e-2, "int8": 0.05}
    )
    pack(path, manifest(variants=(variant,), golden=(sample,)), members)
    return path


# --- ONNX, written field by field (onnx.proto3) -------------------------------------------------------------------


def _varint(n: int) -> bytes:
    out = bytearray()
    while n > 0x7F:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    return bytes([*out, n])


def _field(number: int, value: bytes | str | int) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _value(name: str, kind: int, shape: Sequence[int | str]) -> bytes:
    """A text in the shape is a dynamic dimension."""
    dims = b"".join(_field(1, _field(1 if isinstance(n, int) else 2, n)) for n in shape)
    return _field(1, name) + _field(2, _field(1, _field(1, kind) + _field(2, dims)))


def _constant(name: str, array: np.ndarray[Any, Any]) -> bytes:
    kind = {"float32": _FLOAT, "int64": _INT64, "bool": _BOOL}[array.dtype.name]
    dims = b"".join(_field(1, n) for n in array.shape)
    return dims + _field(2, kind) + _field(8, name) + _field(9, array.tobytes())


def _node(op: str, inputs: Sequence[str], outputs: Sequence[str], attributes: bytes = b"") -> bytes:
    names = b"".join(_field(1, name) for name in inputs) + b"".join(_field(2, name) for name in outputs)
    return names + _field(4, op) + attributes


def _graph(
    nodes: Sequence[bytes], inputs: Sequence[bytes], outputs: Sequence[bytes], constants: Sequence[bytes]
) -> bytes:
    parts = [(1, nodes), (5, constants), (11, inputs), (12, outputs)]
    return _field(2, "tiny") + b"".join(_field(number, item) for number, items in parts for item in items)


def onnx_model(shape: Sequence[int] = (1, LENGTH)) -> bytes:
    """Input `x` float32 of `shape`, output `y` float32 [1, 2]: sum and first."""
    n = int(np.prod(shape))
    body = _graph(
        [_node("Add", ["v_in", "one"], ["v_out"]), _node("Identity", ["go_in"], ["go_out"])],
        [_value("i", _INT64, []), _value("go_in", _BOOL, []), _value("v_in", _FLOAT, [])],
        [_value("go_out", _BOOL, []), _value("v_out", _FLOAT, [])],
        [_constant("one", np.array(1, np.float32))],
    )
    loop = _field(5, _field(1, "body") + _field(6, body) + _field(20, 5))
    to_int64 = _field(5, _field(1, "to") + _field(3, _INT64) + _field(20, 2))
    graph = _graph(
        [
            _node("Reshape", ["x", "row"], ["flat"]),
            _node("MatMul", ["flat", "w"], ["sums"]),
            _node("ReduceMax", ["x"], ["largest"], _field(5, _field(1, "keepdims") + _field(3, 0) + _field(20, 2))),
            _node("Sub", ["largest", "hang"], ["over"]),
            _node("Relu", ["over"], ["turns_f"]),
            _node("Cast", ["turns_f"], ["turns"], to_int64),
            _node("Loop", ["turns", "go", "zero"], ["counted"], loop),
            _node("Mul", ["counted", "zero"], ["nothing"]),
            _node("Add", ["sums", "nothing"], ["y"]),
        ],
        [_value("x", _FLOAT, shape)],
        [_value("y", _FLOAT, [1, 2])],
        [
            _constant("w", weights(n)),
            _constant("row", np.array([1, n], np.int64)),
            _constant("hang", np.array(HANG, np.float32)),
            _constant("zero", np.array(0, np.float32)),
            _constant("go", np.array(True)),
        ],
    )
    return _field(1, 8) + _field(7, graph) + _field(8, _field(2, 13))


def colour_model(side: int) -> bytes:
    """Input `x` float32 [n, side, side, 3], output `y` float32 [n, 3]: the mean of each colour, of any number at once."""
    axes = _field(5, _field(1, "axes") + _field(8, 1) + _field(8, 2) + _field(20, 7))
    keep = _field(5, _field(1, "keepdims") + _field(3, 0) + _field(20, 2))
    graph = _graph(
        [_node("ReduceMean", ["x"], ["y"], axes + keep)],
        [_value("x", _FLOAT, ["n", side, side, 3])],
        [_value("y", _FLOAT, ["n", 3])],
        [],
    )
    return _field(1, 8) + _field(7, graph) + _field(8, _field(2, 13))


def make_colours(path: Path, side: int = 16, batch: int = 8) -> Path:
    """A classifier of pictures by their prevailing colour: red, green or blue."""
    red = cv2.imencode(".png", np.full((4, 4, 3), (0, 0, 255), np.uint8))[1].tobytes()
    golden = Golden(input="golden/0", media="image/png", expected="golden/0.json", tolerance={"fp32": 1e-4})
    colours = manifest(
        name="colours",
        task="classify",
        labels=("red", "green", "blue"),
        input=Picture(width=side, height=side),
        pre=(Fit(interpolation="area"), Normalise(scale=1 / 255), Tensor(layout="nhwc")),
        post=(TopK(k=3),),
        variants=(Variant(file="model.onnx", format="onnx", precision="fp32", batch=batch),),
        golden=(golden,),
    )
    expected = Result("red", 1.0, {"red": 1.0, "green": 0.0, "blue": 0.0})
    members = {"model.onnx": colour_model(side), "golden/0": red, "golden/0.json": msgspec.json.encode(expected)}
    pack(path, colours, {**members, "card.md": b"# colours\n"}, None)
    return path


# --- TFLite -------------------------------------------------------------------------------------------------------


def tflite_model() -> bytes:
    """Input float32 [1, 8], output float32 [1, 2]: the same as `onnx_model`, one FULLY_CONNECTED.

    Table by table, with the field numbers of TensorFlow Lite's schema.fbs: tflite-runtime brings no schema along.
    """
    import flatbuffers

    builder = flatbuffers.Builder(1024)

    def table(n_fields: int, **fields: tuple[str, int]) -> int:
        """Fields by number (`_2`), each the kind of a slot and its value."""
        builder.StartObject(n_fields)
        for number, (kind, value) in fields.items():
            slot = getattr(builder, f"Prepend{kind}Slot")
            slot(int(number[1:]), value, 0)
        return int(builder.EndObject())

    def tables(*offsets: int) -> tuple[str, int]:
        builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            builder.PrependUOffsetTRelative(offset)
        return "UOffsetTRelative", int(builder.EndVector())

    def numbers(*values: int) -> tuple[str, int]:
        return "UOffsetTRelative", int(builder.CreateNumpyVector(np.array(values, np.int32)))

    def tensor(name: str, shape: Sequence[int], buffer: int) -> int:
        text = "UOffsetTRelative", int(builder.CreateString(name))
        return table(5, _0=numbers(*shape), _2=("Uint32", buffer), _3=text)

    data = weights(LENGTH).T.tobytes()
    filled = "UOffsetTRelative", int(builder.CreateByteVector(data))
    buffers = tables(table(1), table(1, _0=filled))
    tensors = tables(tensor("x", (1, LENGTH), 0), tensor("w", (2, LENGTH), 1), tensor("y", (1, 2), 0))
    options = "UOffsetTRelative", table(4)
    operator = table(5, _1=numbers(0, 1, -1), _2=numbers(2), _3=("Uint8", 8), _4=options)  # FullyConnectedOptions
    graph = table(5, _0=tensors, _1=numbers(0), _2=numbers(2), _3=tables(operator))
    code = table(4, _0=("Int8", 9), _2=("Int32", 1), _3=("Int32", 9))  # FULLY_CONNECTED, version 1
    model = table(5, _0=("Uint32", 3), _1=tables(code), _2=tables(graph), _4=buffers)
    builder.Finish(model, b"TFL3")
    return bytes(builder.Output())
