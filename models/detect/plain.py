"""A TFLite model as the quantisers want it: weights stored as float16 unpacked to float32, and a signature.

The published detector keeps its weights as float16 and begins with operations that unpack them. That halves the file;
quantisers look for weights in the convolutions themselves. No number is changed: each float16 is a float32 too.

Needs ai-edge-litert and flatbuffers. The layout is TensorFlow Lite's schema.fbs, as ai-edge-litert ships it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gateway.errors import ModelError

IDENTIFIER = b"TFL3"
KEY = b"serving_default"


def plain(model: bytes) -> bytes:
    """The same model with its weights unpacked and one signature of its inputs and outputs by their names.

    Raises:
        ModelError: no TFLite model, or one of several graphs.
    """
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    if model[4:8] != IDENTIFIER:
        raise ModelError("not a TFLite model", hint="it has the letters TFL3 from its fifth byte on")
    tree = schema.ModelT.InitFromPackedBuf(model, 0)
    if len(tree.subgraphs) != 1:
        raise ModelError(f"the TFLite model has {len(tree.subgraphs)} graphs instead of one")
    _unpack_weights(tree, schema)
    tree.signatureDefs = [_signature(tree.subgraphs[0], schema)]
    builder = flatbuffers.Builder(len(model))
    builder.Finish(tree.Pack(builder), IDENTIFIER)
    return bytes(builder.Output())


def _unpack_weights(tree: Any, schema: Any) -> None:
    """Constants that an operation turns from float16 into float32 are stored as that; the operation goes."""
    graph = tree.subgraphs[0]
    kept = []
    for operation in graph.operators:
        code = tree.operatorCodes[operation.opcodeIndex]
        source = graph.tensors[operation.inputs[0]] if len(operation.inputs) else None
        packed = tree.buffers[source.buffer].data if source else None
        if (
            max(code.builtinCode, code.deprecatedBuiltinCode) != schema.BuiltinOperator.DEQUANTIZE
            or source is None
            or source.type != schema.TensorType.FLOAT16
            or packed is None
        ):
            kept.append(operation)
            continue
        target = graph.tensors[operation.outputs[0]]
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(np.frombuffer(bytes(packed), "<f2").astype("<f4").tobytes(), np.uint8)
        target.buffer = len(tree.buffers)
        tree.buffers.append(buffer)
        tree.buffers[source.buffer].data = None
        # nobody reads it any more, but tools look at every tensor: one number stays of it
        source.type, source.shape, source.shapeSignature = target.type, [1], None
        tree.buffers[source.buffer].data = np.zeros(4, np.uint8)
    graph.operators = kept


def _signature(graph: Any, schema: Any) -> Any:
    def named(index: int) -> Any:
        entry = schema.TensorMapT()
        entry.name, entry.tensorIndex = graph.tensors[index].name, int(index)
        return entry

    signature = schema.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = KEY, 0
    signature.inputs = [named(index) for index in graph.inputs]
    signature.outputs = [named(index) for index in graph.outputs]
    return signature
