"""TensorFlow.js graph models (JSON and binary weights) to ONNX, for the operations that our models have.

The format is TensorFlow.js's own: `modelTopology` is a TensorFlow GraphDef as JSON, `weightsManifest` says where each
constant lies in the binary file and how it is packed. `tfjs_graph.py` holds the ONNX graph, `tfjs_ops.py` the operations.

Needs `onnx` (extra `train`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gateway.errors import ModelError
from gateway.infer.steps import Array
from models.tfjs_graph import Graph, source
from models.tfjs_ops import OPERATIONS

MAX_NODES = 10_000


def convert(model: bytes, weights: bytes, *, name: str, inputs: str = "input", nchw_input: bool = False) -> bytes:
    """A graph model as ONNX, its outputs in the order of their names and under these.

    Args:
        model: the JSON. weights: the binary file, shards joined.
        name: of the ONNX graph. inputs: the name of the only input.
        nchw_input: of a model that takes [1, height, width, colours], let the ONNX model take [1, colours, height, width].

    Raises:
        ModelError: not such a model, or an operation that is not known here.
    """
    try:
        stated = json.loads(model)
        nodes = stated["modelTopology"]["node"]
        if len(nodes) > MAX_NODES:
            raise ModelError(f"the graph has {len(nodes)} nodes, more than {MAX_NODES}")
        constants = unpack(stated["weightsManifest"], weights)
        graph = Graph(nodes, constants, inputs, nchw_input)
        for node in _in_order(nodes):
            _add(graph, node)
        outputs = [entry["name"] for entry in stated["signature"]["outputs"].values()]
        return graph.finish(name, sorted(outputs))
    except (json.JSONDecodeError, KeyError, TypeError, ValueError, IndexError) as error:
        raise ModelError(
            f"not a TensorFlow.js graph model: {type(error).__name__} {error}", hint="is it a layers model?"
        ) from error


def unpack(manifest: Sequence[dict[str, Any]], data: bytes) -> dict[str, Array]:
    """The constants: name -> array; those packed as float16 become float32.

    Raises:
        ModelError: the weights are of another kind, or end too early.
    """
    found: dict[str, Array] = {}
    at = 0
    for entry in (entry for group in manifest for entry in group["weights"]):
        stored = entry.get("quantization", {}).get("dtype", entry["dtype"])
        if stored not in ("float16", "float32", "int32"):
            raise ModelError(f"weights of {entry['name']} are packed as {stored}, which is not known here")
        count, kind = math.prod(entry["shape"]), np.dtype(stored).newbyteorder("<")
        end = at + count * kind.itemsize
        if end > len(data):
            raise ModelError(f"the weights end before those of {entry['name']}", hint="join all shards, in order")
        array = np.frombuffer(data[at:end], kind).reshape(entry["shape"])
        found[entry["name"]] = array.astype(np.float32 if entry["dtype"] == "float32" else np.int64)
        at = end
    return found


def _add(graph: Graph, node: dict[str, Any]) -> None:
    operation = OPERATIONS.get(node["op"])
    if operation is None:
        raise ModelError(f"operation {node['op']} ({node['name']}) is not known here", hint="add it to OPERATIONS")
    arguments = [graph.values[source(name)] for name in node.get("input", ()) if not name.startswith("^")]
    made = operation(graph, node, arguments)
    for port, value in enumerate(made if isinstance(made, list) else [made]):
        graph.values[node["name"] if port == 0 else f"{node['name']}:{port}"] = value


def _in_order(nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each node behind those it takes from."""
    by_name = {node["name"]: node for node in nodes}
    ordered: dict[str, dict[str, Any]] = {}
    for start in by_name:
        waiting = [start]
        while waiting:
            node = by_name[waiting[-1]]
            needed = [source(name).partition(":")[0] for name in node.get("input", ())]
            missing = [name for name in needed if name not in ordered]
            if node["name"] in ordered or not missing:
                ordered.setdefault(waiting.pop(), node)
            elif len(waiting) > len(nodes):
                raise ValueError("the graph has a ring")
            else:
                waiting.append(missing[0])
    return list(ordered.values())
