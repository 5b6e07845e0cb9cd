"""The operations of `models.tfjs`: each from a TensorFlow node to ONNX nodes.

Shapes and attributes are TensorFlow's (its own op definitions); windows move over NHWC, with its two kinds of padding.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gateway.errors import ModelError
from gateway.infer.steps import Array
from models.tfjs_graph import NCHW_OF_NHWC, NHWC_OF_NCHW, Graph, Value, inverse

Operation = Callable[[Graph, dict[str, Any], list[Value]], "Value | list[Value]"]


def _ints(node: dict[str, Any], key: str) -> list[int]:
    return [int(i) for i in node["attr"][key]["list"]["i"]]


def _word(node: dict[str, Any], key: str) -> str:
    return base64.b64decode(node["attr"][key]["s"]).decode("ascii")


def _held(value: Value) -> Array:
    if value.constant is None:
        raise ModelError("a shape, an axis or a weight of the graph is computed, which is not known here")
    return value.constant


def _fixed(array: Array) -> Value:
    return Value("", array.shape, (), array)


def _placeholder(graph: Graph, node: dict[str, Any], _: list[Value]) -> Value:
    shape = tuple(int(d["size"]) for d in node["attr"]["shape"]["shape"]["dim"])
    if any(size < 1 for size in shape):
        raise ModelError(f"the input's shape {list(shape)} is not fixed")
    axes = NHWC_OF_NCHW if graph.nchw_input else tuple(range(len(shape)))
    graph.input_shape = tuple(shape[i] for i in inverse(axes))
    return Value(graph.input_name, shape, axes)


def _const(graph: Graph, node: dict[str, Any], _: list[Value]) -> Value:
    return _fixed(graph.constants[node["name"]])


def _transpose(graph: Graph, node: dict[str, Any], arguments: list[Value]) -> Value:
    value, order = arguments[0], tuple(int(i) for i in _held(arguments[1]))
    if value.constant is not None:
        return _fixed(value.constant.transpose(order))
    return Value(value.name, tuple(value.shape[i] for i in order), tuple(value.axes[i] for i in order))


def _span(size: int, kernel: int, stride: int, dilation: int, padding: str) -> tuple[int, int, int]:
    """What TensorFlow's padding means along one axis: the size of the output, pixels before, pixels behind."""
    reach = (kernel - 1) * dilation + 1
    if padding == "VALID":
        return (size - reach) // stride + 1, 0, 0
    if padding != "SAME":
        raise ModelError(f"padding {padding} is not known here")
    out = -(-size // stride)
    total = max(0, (out - 1) * stride + reach - size)
    return out, total // 2, total - total // 2


def _spans(node: dict[str, Any], shape: tuple[int, ...], kernel: Sequence[int]) -> tuple[dict[str, Any], list[int]]:
    """ONNX's attributes of a window that moves over NHWC, and the output's height and width."""
    if _word(node, "data_format") != "NHWC":
        raise ModelError(f"{node['name']}: only NHWC is known here")
    strides, padding = _ints(node, "strides")[1:3], _word(node, "padding")
    dilations = _ints(node, "dilations")[1:3] if "dilations" in node["attr"] else [1, 1]
    along = [_span(*each, padding) for each in zip(shape[1:3], kernel, strides, dilations, strict=True)]
    pads = [span[1] for span in along] + [span[2] for span in along]
    return {"kernel_shape": list(kernel), "strides": strides, "dilations": dilations, "pads": pads}, [
        s[0] for s in along
    ]


def _conv(graph: Graph, node: dict[str, Any], arguments: list[Value]) -> Value:
    image, weights = arguments[0], _held(arguments[1])
    depthwise = node["op"] == "DepthwiseConv2dNative"
    attributes, (high, wide) = _spans(node, image.shape, weights.shape[:2])
    if depthwise:  # [h, w, in, multiplier] to [in * multiplier, 1, h, w]
        kernel = weights.transpose(2, 3, 0, 1).reshape(-1, 1, *weights.shape[:2])
        groups = weights.shape[2]
    else:  # [h, w, in / groups, out] to [out, in / groups, h, w]
        kernel, groups = weights.transpose(3, 2, 0, 1), image.shape[3] // weights.shape[2]
    name = graph.emit("Conv", [_unpadded(graph, image, attributes), graph.constant(kernel)], group=groups, **attributes)
    if graph.used[node["name"]] == 1:
        graph.bias_of[name] = graph.made[-1]
    return Value(name, (image.shape[0], high, wide, len(kernel)), NHWC_OF_NCHW)


def _unpadded(graph: Graph, image: Value, attributes: dict[str, Any]) -> str:
    """The convolution's input; a padding with zeros before it becomes its own."""
    name = graph.ordered(image, NHWC_OF_NCHW)
    if name in graph.padded and not any(attributes["pads"]):
        name, attributes["pads"] = graph.padded[name]
    return name


def _conv_back(graph: Graph, node: dict[str, Any], arguments: list[Value]) -> Value:
    size, weights, image = _held(arguments[0]), _held(arguments[1]), arguments[2]
    shape = tuple(int(i) for i in size)
    # the padding is that of the convolution forwards, from the output's size to the input's
    attributes, small = _spans(node, shape, weights.shape[:2])
    if small != list(image.shape[1:3]):
        raise ModelError(f"{node['name']}: {small} is not the size of its input")
    kernel = graph.constant(weights.transpose(3, 2, 0, 1))
    name = graph.emit("ConvTranspose", [graph.ordered(image, NHWC_OF_NCHW), kernel], **attributes)
    if graph.used[node["name"]] == 1:
        graph.bias_of[name] = graph.made[-1]
    return Value(name, shape, NHWC_OF_NCHW)


def _pool(graph: Graph, node: dict[str, Any], arguments: list[Value]) -> Value:
    image = arguments[0]
    attributes, (high, wide) = _spans(node, image.shape, _ints(node, "ksize")[1:3])
    del attributes["dilations"]  # both poolings have none, and average pooling has no such attribute in this opset
    name = graph.emit(node["op"].replace("Avg", "Average"), [graph.ordered(image, NHWC_OF_NCHW)], **attributes)
    return Value(name, (image.shape[0], high, wide, image.shape[3]), NHWC_OF_NCHW)


def _pair(graph: Graph, node: dict[str, Any], arguments: list[Value]) -> Value:
    """Add, multiply: both in the order of axes that the first computed one has."""
    op = "Mul" if node["op"] == "Mul" else "Add"
    if all(value.constant is not None for value in arguments):
        a, b = map(_held, arguments)
        return _fixed(a * b if op == "Mul" else a + b)
    lead = next(value for value in arguments if value.constant is None)
    shape = np.broadcast_shapes(*(value.shape for value in arguments))
    if len(lead.shape) != len(shape):
        raise ModelError(f"{node['name']}: a computed tensor of lower rank is not known here")
    other = next((value for value in arguments if value.constant is not None), None)
    convolution = graph.bias_of.get(lead.name)
    if (
        op == "Add"
        and other is not None
        and convolution is not None
        and other.shape in ((shape[3],), (1, 1, 1, shape[3]))
    ):
        convolution.input.append(graph.constant(_held(other).reshape(-1)))
        del graph.bias_of[lead.name]
        return lead
    names = [_aligned(graph, value, lead) for value in arguments]
    return Value(graph.emit(op, names), shape, lead.axes)


def _aligned(graph: Graph, value: Value, lead: Value) -> str:
    if value.constant is not None:
        array = value.constant.reshape((1,) * (len(lead.shape) - value.constant.ndim) + value.constant.shape)
        return graph.constant(array.transpose(inverse(lead.axes)))
    return graph.ordered(value, lead.axes)


def _sum(graph: Graph, node: dict[str, Any], arguments: list[Value]) -> Value:
    total = arguments[0]
    for value in arguments[1:]:
        made = _pair(graph, {**node, "op": "Add"}, [total, value])
        total = made
    return total


def _each(op: str) -> Operation:
    def unary(graph: Graph, node: dict[str, Any], arguments: list[Value]) -> Value:
        value = arguments[0]
        if op == "Relu6":
            name = graph.emit(
                "Clip", [value.name, graph.constant(np.array(0, np.float32)), graph.constant(np.array(6, np.float32))]
            )
        elif op == "LeakyRelu":
            name = graph.emit(op, [value.name], alpha=float(node["attr"]["alpha"]["f"]))
        else:
            name = graph.emit(op, [value.name])
        return Value(name, value.shape, value.axes)

    return unary


def _concat(graph: Graph, node: dict[str, Any], arguments: list[Value]) -> Value:
    *values, axis_value = arguments
    lead, axis = values[0], int(_held(axis_value)) % len(values[0].shape)
    names = [graph.ordered(value, lead.axes) for value in values]
    shape = list(lead.shape)
    shape[axis] = sum(value.shape[axis] for value in values)
    return Value(graph.emit("Concat", names, axis=lead.axes[axis]), tuple(shape), lead.axes)


def _split(graph: Graph, node: dict[str, Any], arguments: list[Value]) -> list[Value]:
    value, lengths, axis = arguments[0], _held(arguments[1]), int(_held(arguments[2])) % len(arguments[0].shape)
    if value.constant is not None:
        parts = np.split(value.constant, np.cumsum(lengths)[:-1], axis=axis)
        return [_fixed(part) for part in parts]
    names = graph.emit_many("Split", [value.name, graph.constant(lengths)], len(lengths), axis=value.axes[axis])
    shapes = [tuple(int(n) if i == axis else size for i, size in enumerate(value.shape)) for n in lengths]
    return [Value(name, shape, value.axes) for name, shape in zip(names, shapes, strict=True)]


def _pad(graph: Graph, node: dict[str, Any], arguments: list[Value]) -> Value:
    value, pads = arguments[0], _held(arguments[1])
    shape = tuple(int(size + sum(pad)) for size, pad in zip(value.shape, pads, strict=True))
    if not pads.any():
        return Value(value.name, shape, value.axes)
    ordered = pads[list(inverse(value.axes))]
    fill = np.array(_held(arguments[2]) if len(arguments) > 2 else 0, np.float32)
    name = graph.emit("Pad", [value.name, graph.constant(ordered.T.reshape(-1)), graph.constant(fill)])
    if len(ordered) == 4 and not fill and not ordered[:2].any():
        graph.padded[name] = value.name, [int(i) for i in ordered[2:].T.reshape(-1)]
    return Value(name, shape, value.axes)


def _reshape(graph: Graph, node: dict[str, Any], arguments: list[Value]) -> Value:
    value, wanted = arguments[0], [int(i) for i in _held(arguments[1])]
    if value.constant is not None:
        return _fixed(value.constant.reshape(wanted))
    shape = np.broadcast_to(np.float32(0), value.shape).reshape(wanted).shape
    plain = graph.ordered(value, tuple(range(len(value.shape))))
    name = graph.emit("Reshape", [plain, graph.constant(np.array(shape, np.int64))])
    return Value(name, shape, tuple(range(len(shape))))


def _resize(graph: Graph, node: dict[str, Any], arguments: list[Value]) -> Value:
    image, (high, wide) = arguments[0], (int(i) for i in _held(arguments[1]))
    if node["attr"].get("align_corners", {}).get("b"):
        raise ModelError(f"{node['name']}: aligned corners are not known here")
    centres = node["attr"].get("half_pixel_centers", {}).get("b")
    shape = (image.shape[0], high, wide, image.shape[3])
    sizes = np.array([shape[i] for i in NCHW_OF_NHWC], np.int64)
    name = graph.emit(
        "Resize", [graph.ordered(image, NHWC_OF_NCHW), "", "", graph.constant(sizes)], mode="linear",
        coordinate_transformation_mode="half_pixel" if centres else "asymmetric",
    )  # fmt: skip
    return Value(name, shape, NHWC_OF_NCHW)


def _sparse(graph: Graph, node: dict[str, Any], arguments: list[Value]) -> Value:
    """A constant that is written as places and values."""
    places, shape, values, default = map(_held, arguments)
    dense = np.full([int(i) for i in shape], default)
    dense[tuple(np.atleast_2d(places).T)] = values
    return _fixed(dense)


OPERATIONS: dict[str, Operation] = {
    "Placeholder": _placeholder,
    "Const": _const,
    "Identity": lambda graph, node, arguments: arguments[0],
    "Transpose": _transpose,
    "Conv2D": _conv,
    "DepthwiseConv2dNative": _conv,
    "Conv2DBackpropInput": _conv_back,
    "MaxPool": _pool,
    "AvgPool": _pool,
    "Add": _pair,
    "AddV2": _pair,
    "Mul": _pair,
    "AddN": _sum,
    "Relu": _each("Relu"),
    "Relu6": _each("Relu6"),
    "LeakyRelu": _each("LeakyRelu"),
    "Sigmoid": _each("Sigmoid"),
    "ConcatV2": _concat,
    "SplitV": _split,
    "Pad": _pad,
    "PadV2": _pad,
    "Reshape": _reshape,
    "ResizeBilinear": _resize,
    "SparseToDense": _sparse,
}
