"""TensorFlow.js graph models to ONNX: small graphs made here, against NumPy; the real ones by `./inv models.build`."""

import base64
import json
from typing import Any

import numpy as np
import onnxruntime
import pytest

from gateway.errors import ModelError
from models import tfjs

RNG = np.random.default_rng(5)


class Graph:
    """A graph model as TensorFlow.js writes it."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        sizes = [{"size": str(size)} for size in shape]
        self.nodes: list[dict[str, Any]] = [
            {"name": "input", "op": "Placeholder", "attr": {"shape": {"shape": {"dim": sizes}}}}
        ]
        self.weights: list[dict[str, Any]] = []
        self.data = b""

    def const(self, name: str, value: Any, dtype: str = "float32", stored: str = "") -> str:
        array = np.asarray(value, stored or dtype)
        entry = {"name": name, "shape": list(array.shape), "dtype": dtype}
        self.weights.append(entry | ({"quantization": {"dtype": stored}} if stored else {}))
        self.data += array.tobytes()
        self.nodes.append({"name": name, "op": "Const", "attr": {}})
        return name

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = f"{op}{len(self.nodes)}"
        self.nodes.append({"name": name, "op": op, "input": list(inputs), "attr": attributes})
        return name

    def window(self, padding: str, stride: int) -> dict[str, Any]:
        return {
            "padding": {"s": base64.b64encode(padding.encode()).decode()},
            "strides": {"list": {"i": ["1", str(stride), str(stride), "1"]}},
            "data_format": {"s": base64.b64encode(b"NHWC").decode()},
        }

    def model(self, *outputs: str) -> bytes:
        stated = {
            "signature": {"outputs": {name: {"name": f"{name}:0"} for name in outputs}},
            "modelTopology": {"node": self.nodes},
            "weightsManifest": [{"weights": self.weights}],
        }
        return json.dumps(stated).encode()

    def run(self, x: np.ndarray, *outputs: str, **options: Any) -> list[np.ndarray]:
        converted = tfjs.convert(self.model(*outputs), self.data, name="test", **options)
        session = onnxruntime.InferenceSession(converted)
        return list(session.run(None, {"input": x}))


def convolved(x: np.ndarray, kernel: np.ndarray, stride: int, padding: str) -> np.ndarray:
    """By definition: NHWC, one place after the other; SAME pads behind first (TensorFlow's documentation)."""
    size, k = x.shape[1], kernel.shape[0]
    out = -(-size // stride) if padding == "SAME" else (size - k) // stride + 1
    total = max(0, (out - 1) * stride + k - size) if padding == "SAME" else 0
    padded = np.pad(x, ((0, 0), (total // 2, total - total // 2), (total // 2, total - total // 2), (0, 0)))
    made = np.zeros((1, out, out, kernel.shape[3]))
    for i in range(out):
        for j in range(out):
            place = padded[0, i * stride : i * stride + k, j * stride : j * stride + k]
            made[0, i, j] = np.einsum("hwc,hwco->o", place, kernel)
    return made


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize(("side", "stride"), [(6, 1), (6, 2), (7, 2)])
def test_a_convolution_with_its_bias(padding: str, side: int, stride: int) -> None:
    graph, x = Graph((1, side, side, 3)), RNG.random((1, side, side, 3), np.float32)
    kernel, bias = RNG.random((3, 3, 3, 4)).astype(np.float32), RNG.random(4).astype(np.float32)
    made = graph.node("Conv2D", "input", graph.const("k", kernel), **graph.window(padding, stride))
    out = graph.node("Add", made, graph.const("b", bias))
    [found] = graph.run(x, out)
    np.testing.assert_allclose(found, convolved(x, kernel, stride, padding) + bias, rtol=1e-4)


def test_transpositions_that_undo_each_other_cost_nothing() -> None:
    import onnx

    graph, x = Graph((1, 2, 5, 5)), RNG.random((1, 2, 5, 5), np.float32)
    there = graph.node("Transpose", "input", graph.const("p", [0, 2, 3, 1], "int32"))
    kernel = RNG.random((1, 1, 2, 3)).astype(np.float32)
    made = graph.node("Conv2D", there, graph.const("k", kernel), **graph.window("VALID", 1))
    out = graph.node("Transpose", made, graph.const("q", [0, 3, 1, 2], "int32"))
    [found] = graph.run(x, out)
    np.testing.assert_allclose(found, np.einsum("nchw,co->nohw", x, kernel[0, 0]), rtol=1e-4)
    converted = onnx.load_from_string(tfjs.convert(graph.model(out), graph.data, name="test"))
    assert [node.op_type for node in converted.graph.node] == ["Conv", "Identity"]


def test_zeros_around_a_convolution_become_its_own() -> None:
    import onnx

    graph, x = Graph((1, 1, 4, 4)), RNG.random((1, 1, 4, 4), np.float32)
    padded = graph.node("Pad", "input", graph.const("p", [[0, 0], [0, 0], [1, 2], [0, 1]], "int32"))
    padded = graph.node("Transpose", padded, graph.const("t", [0, 2, 3, 1], "int32"))
    kernel = RNG.random((2, 2, 1, 1)).astype(np.float32)
    out = graph.node("Conv2D", padded, graph.const("k", kernel), **graph.window("VALID", 1))
    [found] = graph.run(x, out)
    outer = np.pad(x[0, 0], ((1, 2), (0, 1)))
    wanted = [[(outer[i : i + 2, j : j + 2] * kernel[:, :, 0, 0]).sum() for j in range(4)] for i in range(6)]
    np.testing.assert_allclose(found[0, :, :, 0], wanted, rtol=1e-4)
    converted = onnx.load_from_string(tfjs.convert(graph.model(out), graph.data, name="test"))
    assert "Pad" not in {node.op_type for node in converted.graph.node}


def test_concat_split_reshape_and_constants_stored_as_float16() -> None:
    graph, x = Graph((1, 2, 2, 4)), RNG.random((1, 2, 2, 4), np.float32)
    scaled = graph.node("Mul", "input", graph.const("s", [1, 2, 4, 8], stored="float16"))
    half = graph.node("SplitV", scaled, graph.const("n", [1, 3], "int32"), graph.const("a", 3, "int32"))
    joined = graph.node("ConcatV2", f"{half}:1", half, graph.const("c", -1, "int32"))
    out = graph.node("Reshape", joined, graph.const("r", [1, -1], "int32"))
    [found] = graph.run(x, out, nchw_input=False)
    wanted = np.roll(x * np.array([1, 2, 4, 8], np.float32), -1, axis=3).reshape(1, -1)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    [other] = graph.run(x.transpose(0, 3, 1, 2).copy(), out, nchw_input=True)
    np.testing.assert_allclose(other, wanted, rtol=1e-6)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "not a TensorFlow.js graph model"),
        (b"[]", "not a TensorFlow.js graph model"),
        (b'{"modelTopology": {"node": []}}', "not a TensorFlow.js graph model"),
        (b'{"modelTopology": {"node": [{"name": "a", "op": "Cumsum"}]}, "weightsManifest": []}', "Cumsum"),
        (
            b'{"modelTopology": {"node": []}, "weightsManifest": '
            b'[{"weights": [{"name": "w", "shape": [9], "dtype": "float32"}]}]}',
            "end before those of w",
        ),
        (b'{"modelTopology": {"node": [{"name": "a", "op": "Relu", "input": ["a"]}]}, "weightsManifest": []}', "ring"),
    ],
)
def test_what_is_no_graph_model(data: bytes, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        tfjs.convert(data, b"", name="test")


def test_an_enlarged_network_says_of_a_larger_picture_what_it_said_of_a_smaller() -> None:
    """Convolutions and sizes only, as in NanoDet: constant pictures have constant answers, at more places."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    from models.detect_coco.fetch import enlarged

    weights = RNG.normal(0, 0.1, (2, 3, 32, 32)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["input", "w"], ["deep"], strides=[32, 32]),
        helper.make_node("Resize", ["deep", "", "", "size"], ["wide"], mode="nearest"),
        helper.make_node("Reshape", ["wide", "flat"], ["rows"]),
        helper.make_node("Transpose", ["rows"], ["found"], perm=[0, 2, 1]),
    ]
    constants = {"w": weights, "size": np.array([1, 2, 26, 26]), "flat": np.array([1, 2, 676])}
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 416, 416])],
        [helper.make_tensor_value_info("found", TensorProto.FLOAT, [1, 676, 2])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    small = helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()
    answers = []
    for model, side in ((small, 416), (enlarged(small, 512), 512)):
        session = onnxruntime.InferenceSession(model)
        (found,) = session.run(None, {"input": np.full((1, 3, side, side), 0.5, np.float32)})
        answers.append(found)
    assert [each.shape for each in answers] == [(1, 676, 2), (1, 1024, 2)]
    assert answers[1][0] == pytest.approx(np.broadcast_to(answers[0][0, 0], (1024, 2)), abs=1e-5)
    assert onnx.load_from_string(enlarged(small, 512)).graph.output[0].type.tensor_type.shape.dim[1].dim_value == 1024
