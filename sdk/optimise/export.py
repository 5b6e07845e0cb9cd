"""From a PyTorch module to ONNX and to TFLite, without a trace of the machine it was done on.

PyTorch, onnx and litert-torch are loaded when a function is called: the extra `train`.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Sequence
from typing import Any

from gateway.errors import ModelError
from sdk.optimise.quiet import last_line, quiet

OPSET = 18


def to_onnx(
    module: Any,
    example: Any,
    *,
    name: str = "model",
    inputs: Sequence[str] = ("input",),
    outputs: Sequence[str] = ("output",),
    opset: int = OPSET,
    dynamic_batch: bool = False,
) -> bytes:
    """ONNX, fp32, fixed shapes.

    Args:
        module: a torch.nn.Module; it is put into evaluation mode.
        example: a tensor, or a tuple of tensors: the inputs' shapes, the batch axis first.
        inputs, outputs: names of the tensors.
        dynamic_batch: leave the first axis of every input open.

    Raises:
        ModelError: PyTorch cannot export it.
    """
    import torch

    module.eval()
    args = example if isinstance(example, tuple) else (example,)
    shapes = tuple({0: torch.export.Dim("batch", min=1, max=256)} for _ in args) if dynamic_batch else None
    with quiet("torch.onnx"):
        try:
            program = torch.onnx.export(
                module,
                args,
                dynamo=True,
                opset_version=opset,
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_shapes=shapes,
                verbose=False,
            )
        except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
            raise ModelError(
                f"PyTorch cannot export this module to ONNX: {last_line(error)}",
                hint="its forward must be traceable: no branches on values, no NumPy in it",
            ) from error
    assert program is not None
    return clean_onnx(program.model_proto, name)


def clean_onnx(model: Any, name: str) -> bytes:
    """An onnx.ModelProto without metadata, traces, paths and documentation, checked, as bytes."""
    import onnx

    graph = model.graph
    del model.metadata_props[:]
    del graph.metadata_props[:]
    model.doc_string = graph.doc_string = ""
    graph.name = name
    for part in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        if hasattr(part, "metadata_props"):
            del part.metadata_props[:]
        part.doc_string = ""
    onnx.checker.check_model(model, full_check=True)
    buffer = io.BytesIO()
    onnx.save_model(model, buffer)
    return buffer.getvalue()


def to_tflite(module: Any, example: Any) -> bytes:
    """TFLite, fp32, fixed shapes, by litert-torch. The layout stays PyTorch's (channels first).

    Raises:
        ModelError: litert-torch cannot convert it.
    """
    with quiet("litert_torch", "absl", "jax"):
        import litert_torch
        import torch

        module.eval()
        args = example if isinstance(example, tuple) else (example,)
        try:
            # it rewrites the module's parameters in place
            edge = litert_torch.convert(copy.deepcopy(module), args)
        except (RuntimeError, ValueError, TypeError, NotImplementedError, torch._dynamo.exc.TorchDynamoException) as e:
            raise ModelError(f"litert-torch cannot convert this module: {last_line(e)}") from e
        return bytes(edge.model_content())
