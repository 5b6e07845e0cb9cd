"""Multiplications with additions of a model's file, whatever its format: OpenVINO reads them all."""

from __future__ import annotations

import math
from typing import Any

from gateway.errors import ModelError
from sdk.optimise.quantise import read_model
from sdk.optimise.variants import Built


def macs(built: Built) -> int:
    """For one input, in convolutions and matrix products: what else there is costs next to nothing beside them.

    Raises:
        ModelError: OpenVINO cannot read it.
    """
    model = read_model(
        built.data, built.variant.format == "tflite", built.members.get(built.variant.weights or "", b"")
    )
    return sum(_of(op) for op in model.get_ops())


def counted(built: Built) -> int:
    """The same; 0 where it cannot be counted: OpenVINO does not read the file, or its shapes are open."""
    try:
        return macs(built)
    except ModelError:
        return 0


def _of(op: Any) -> int:
    kind = op.get_type_name()
    if kind not in ("Convolution", "GroupConvolution", "MatMul", "ConvolutionBackpropData"):
        return 0
    made = math.prod(int(n) for n in op.get_output_partial_shape(0).get_min_shape())
    weights = [int(n) for n in op.get_input_partial_shape(1).get_min_shape()]
    if kind == "MatMul":
        inner = [int(n) for n in op.get_input_partial_shape(0).get_min_shape()]
        return made * (inner[-2] if op.get_attributes().get("transpose_a") else inner[-1])
    if kind == "ConvolutionBackpropData":  # weights: in, out, kernel: every input is spread over out * kernel
        return math.prod(int(n) for n in op.get_input_partial_shape(0).get_min_shape()) * math.prod(weights[1:])
    # weights: [groups,] out, in of the group, kernel
    return made * math.prod(weights[2:] if kind == "GroupConvolution" else weights[1:])
