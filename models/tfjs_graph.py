"""An ONNX graph that grows from a TensorFlow graph, for `models.tfjs`.

TensorFlow's convolutions are NHWC, ONNX's NCHW. A transposed tensor is not computed but remembered as an order of axes; an
operation that needs another order gets one Transpose. So the hundred transpositions that models carry which were converted
before (PyTorch -> ONNX -> TensorFlow) vanish again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gateway.infer.steps import Array

NHWC_OF_NCHW = (0, 2, 3, 1)
NCHW_OF_NHWC = (0, 3, 1, 2)
OPSET = 17


@dataclass(frozen=True)
class Value:
    """A tensor of the TensorFlow graph: a constant, or a tensor of the ONNX graph with its axes in another order.

    Attributes:
        name: of the ONNX tensor; empty for a constant.
        shape: as TensorFlow sees it.
        axes: axis i of the TensorFlow tensor is axis axes[i] of the ONNX tensor.
    """

    name: str
    shape: tuple[int, ...]
    axes: tuple[int, ...] = ()
    constant: Array | None = None


class Graph:
    """The ONNX graph as it grows, node by node."""

    def __init__(
        self, nodes: list[dict[str, Any]], constants: dict[str, Array], input_name: str, nchw_input: bool
    ) -> None:
        self.constants = constants
        self.input_name, self.nchw_input = input_name, nchw_input
        self.input_shape: tuple[int, ...] = ()
        self.values: dict[str, Value] = {}
        self.made: list[Any] = []
        self.initialisers: dict[str, Array] = {}
        self.padded: dict[
            str, tuple[str, list[int]]
        ] = {}  # tensor of a Pad with zeros -> what it pads, and by how much
        self.bias_of: dict[str, Any] = {}  # ONNX tensor -> the convolution that made it and has no bias yet
        self.used = Counter(source(name) for node in nodes for name in node.get("input", ()))
        self._orders: dict[tuple[str, tuple[int, ...]], str] = {}

    def emit(self, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        """One more ONNX node with one output; gives its name."""
        return self.emit_many(op, inputs, 1, **attributes)[0]

    def emit_many(self, op: str, inputs: Sequence[str], outputs: int, **attributes: Any) -> list[str]:
        from onnx import helper

        number = len(self.made)
        names = [f"{op.lower()}_{number}" + (f"_{port}" if port else "") for port in range(outputs)]
        self.made.append(helper.make_node(op, list(inputs), names, name=f"{op}_{number}", **attributes))
        return names

    def constant(self, array: Array) -> str:
        name = f"constant_{len(self.initialisers)}"
        self.initialisers[name] = np.ascontiguousarray(array)
        return name

    def ordered(self, value: Value, axes: tuple[int, ...]) -> str:
        """The ONNX tensor of a value with these axes; a Transpose if it has others."""
        if value.constant is not None:
            return self.constant(value.constant.transpose(inverse(axes)))
        if value.axes == axes:
            return value.name
        key = value.name, tuple(value.axes[i] for i in inverse(axes))
        if key not in self._orders:
            self._orders[key] = self.emit("Transpose", [value.name], perm=list(key[1]))
        return self._orders[key]

    def finish(self, name: str, outputs: Sequence[str]) -> bytes:
        import onnx
        from onnx import TensorProto, helper, numpy_helper

        results = []
        for output in outputs:
            value = self.values[source(output)]
            plain = output.partition(":")[0].lower()
            self.made.append(
                helper.make_node(
                    "Identity", [self.ordered(value, tuple(range(len(value.shape))))], [plain], name=f"output_{plain}"
                )
            )
            results.append(helper.make_tensor_value_info(plain, TensorProto.FLOAT, value.shape))
        self._drop_unused()
        given = [helper.make_tensor_value_info(self.input_name, TensorProto.FLOAT, self.input_shape)]
        held = [numpy_helper.from_array(array, name) for name, array in self.initialisers.items()]
        model = helper.make_model(
            helper.make_graph(self.made, name, given, results, held),
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=8,
            producer_name="octogate",
        )
        onnx.checker.check_model(model, full_check=True)
        return bytes(model.SerializeToString(deterministic=True))

    def _drop_unused(self) -> None:
        """Nodes and constants that became part of others."""
        needed = {output for node in self.made if node.name.startswith("output_") for output in node.output}
        kept = []
        for node in reversed(self.made):
            if needed.intersection(node.output):
                needed.update(node.input)
                kept.append(node)
        self.made = kept[::-1]
        self.initialisers = {name: array for name, array in self.initialisers.items() if name in needed}


def source(name: str) -> str:
    return name.removesuffix(":0").removeprefix("^")


def inverse(axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argsort(axes))
