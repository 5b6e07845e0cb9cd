"""Post-training quantisation to int8, calibrated on real data, for each runtime by its own tool; and OpenVINO's IR.

The tools are loaded when a function is called: onnxruntime, OpenVINO with NNCF, ai-edge-quantizer (extra `train`).
The same model and the same data give the same bytes.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from gateway.errors import ModelError
from gateway.infer.steps import Array
from sdk.optimise.quiet import last_line, quiet
from sdk.optimise.variants import Inputs, calls

Method = Literal["minmax", "entropy", "percentile"]

_FAULTS = (RuntimeError, ValueError, TypeError, KeyError, IndexError, AssertionError)


class Ir(NamedTuple):
    """An OpenVINO IR: its two files."""

    xml: bytes
    weights: bytes


def onnx_int8(
    model: bytes,
    calibration: Sequence[Inputs],
    *,
    ops: Sequence[str] = (),
    exclude: Sequence[str] = (),
    method: Method = "minmax",
    per_channel: bool = True,
) -> bytes:
    """Quantise an ONNX model for ONNX Runtime: QDQ, uint8 activations, int8 weights.

    Args:
        model: fp32.
        calibration: one call of the model each, in the order of its inputs.
        ops: only nodes of these types; empty takes what ONNX Runtime takes by itself.
        exclude: names of nodes that stay fp32.
        method: how the range of an activation is found.
        per_channel: a scale for each output channel of a convolution.

    Raises:
        ModelError: ONNX Runtime cannot quantise it, or the data do not fit its inputs.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    from sdk.optimise.export import clean_onnx

    methods = {
        "minmax": CalibrationMethod.MinMax,
        "entropy": CalibrationMethod.Entropy,
        "percentile": CalibrationMethod.Percentile,
    }
    with tempfile.TemporaryDirectory(prefix="octogate-int8-") as scratch, quiet("onnxruntime"):
        made, prepared, given = (Path(scratch, name) for name in ("int8.onnx", "prepared.onnx", "fp32.onnx"))
        given.write_bytes(model)
        proto = onnx.load_model_from_string(model)
        names = _input_names(proto)
        try:
            # folds constants and batch norms first, or they are quantised for themselves
            quant_pre_process(str(given), str(prepared), skip_symbolic_shape=True)
            quantize_static(
                str(prepared),
                str(made),
                _Reader(names, calls(calibration)),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(ops) or None,
                nodes_to_exclude=list(exclude) or None,
                per_channel=per_channel,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=methods[method],
            )
        except _FAULTS as error:
            raise ModelError(f"ONNX Runtime cannot quantise it: {last_line(error)}") from error
        return clean_onnx(onnx.load_model(str(made)), proto.graph.name)


def ir(model: bytes, *, tflite: bool = False) -> Ir:
    """An OpenVINO IR, fp32, of an ONNX or TFLite model.

    Raises:
        ModelError: OpenVINO cannot read it.
    """
    return _saved(read_model(model, tflite))


def ir_int8(
    model: bytes,
    calibration: Sequence[Inputs],
    *,
    tflite: bool = False,
    ops: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> Ir:
    """Quantise an ONNX or TFLite model for OpenVINO by NNCF.

    Args:
        model: fp32.
        calibration: one call of the model each, in the order of its inputs.
        ops: only operations of these types of OpenVINO (`Convolution`, `MatMul`); empty takes what NNCF takes.
        exclude: names of operations that stay fp32, as OpenVINO calls them.

    Raises:
        ModelError: OpenVINO cannot read it, or NNCF cannot quantise it.
    """
    with quiet("nncf", "openvino"):
        import nncf

        nncf.set_log_level(40)
        read = read_model(model, tflite)
        data = calls(calibration)
        left = {op.get_type_name() for op in read.get_ops()} - set(ops) if ops else set()
        ignored = nncf.IgnoredScope(names=list(exclude), types=sorted(left), validate=False)
        try:
            quantised = nncf.quantize(
                read,
                nncf.Dataset([list(each) for each in data]),
                preset=nncf.QuantizationPreset.MIXED,
                subset_size=len(data),
                ignored_scope=ignored,
            )
        except _FAULTS as error:
            raise ModelError(f"NNCF cannot quantise it: {last_line(error)}") from error
    return _saved(quantised)


def tflite_int8(
    model: bytes, calibration: Sequence[Inputs], *, ops: Sequence[str] = (), exclude: str = "", dynamic: bool = False
) -> bytes:
    """Quantise a TFLite model by ai-edge-quantizer: static int8, inputs and outputs stay float.

    Args:
        model: fp32, with one signature.
        calibration: one call of the model each, in the order of its inputs.
        ops: only operations of these kinds (`CONV_2D`, `FULLY_CONNECTED`); empty takes all that it can.
        exclude: a regular expression; operations whose output tensor's name matches stay fp32.
        dynamic: int8 weights, activations quantised at run time: needs no calibration, and computes wrongly on
            tflite-runtime 2.14.

    Raises:
        ModelError: the quantiser does not take the model, or the data do not fit it.
    """
    with quiet("ai_edge_quantizer"):
        from ai_edge_quantizer import algorithm_manager, qtyping, quantizer, recipe_manager

        manager = recipe_manager.RecipeManager()
        kinds = [qtyping.TFLOperationName(name) for name in (ops or ("*",))]
        for kind in kinds:
            if dynamic:
                manager.add_dynamic_config(regex=".*", operation_name=kind, num_bits=8)
            else:
                manager.add_static_config(
                    regex=".*", operation_name=kind, activation_num_bits=8, weight_num_bits=8,
                    algorithm_key=algorithm_manager.AlgorithmName.MIN_MAX_UNIFORM_QUANT,
                )  # fmt: skip
        for outside in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):
            manager.add_quantization_config(
                regex=".*", operation_name=outside, algorithm_key=algorithm_manager.AlgorithmName.NO_QUANTIZE
            )
        if exclude:
            manager.add_quantization_config(
                regex=exclude,
                operation_name=qtyping.TFLOperationName.ALL_SUPPORTED,
                algorithm_key=algorithm_manager.AlgorithmName.NO_QUANTIZE,
            )
        try:
            tool = quantizer.Quantizer(bytearray(model), manager.get_quantization_recipe())
            found = None if dynamic else _ranges(model, _signature(model, calls(calibration)), manager)
            made = tool.quantize(found, enable_progress_bar=False, enable_progress_report=False)
        except _FAULTS as error:
            raise ModelError(f"ai-edge-quantizer cannot quantise it: {last_line(error)}") from error
    return bytes(made.quantized_model)


# --- calibration data ---------------------------------------------------------------------------------------------


class _Reader:
    """What onnxruntime's calibration reads its data from."""

    def __init__(self, names: Sequence[str], data: Sequence[tuple[Array, ...]]) -> None:
        self._names, self._data = names, data
        self.rewind()

    def get_next(self) -> dict[str, Array] | None:
        return next(self._at, None)

    def rewind(self) -> None:
        self._at: Iterator[dict[str, Array]] = iter([dict(zip(self._names, each, strict=True)) for each in self._data])

    def __len__(self) -> int:
        return len(self._data)


def _input_names(model: Any) -> list[str]:
    constants = {tensor.name for tensor in model.graph.initializer}
    return [node.name for node in model.graph.input if node.name not in constants]


def _ranges(model: bytes, data: dict[str, list[dict[str, Array]]], recipe: Any) -> Any:
    """The least and the largest value of each tensor over all calls.

    Not `Quantizer.calibrate`: that takes a moving average over the calls, which cuts off what few of them reach. Where
    one call is steady and the next is not, as with a machine's current, that is most of the range.
    """
    from ai_edge_quantizer import calibrator
    from ai_edge_quantizer.utils import qsv_utils

    with contextlib.redirect_stderr(io.StringIO()):  # a progress bar of its own
        tool = calibrator.Calibrator(
            bytearray(model), num_threads=1, mode=calibrator.CalibrationMode.CALIBRATION_PRESERVE_ALL_TENSORS,
            qsv_update_func=qsv_utils.min_max_update,
        )  # fmt: skip
        tool.calibrate(data, recipe)
    return tool.get_model_qsvs()


def _signature(model: bytes, data: Sequence[tuple[Array, ...]]) -> dict[str, list[dict[str, Array]]]:
    """The data by signature and name, as ai-edge-quantizer wants them."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=model)
    signatures = interpreter.get_signature_list()
    if len(signatures) != 1:
        raise ModelError(
            f"this TFLite model has {len(signatures)} signatures, the quantiser needs one",
            hint="convert it again with litert-torch or TensorFlow; or take its ONNX or OpenVINO form",
        )
    [(key, tensors)] = signatures.items()
    # by the order of the model's inputs, which its signature does not keep
    order = {detail["index"]: at for at, detail in enumerate(interpreter.get_input_details())}
    runner = interpreter.get_signature_runner(key)
    details = runner.get_input_details()
    names = sorted(tensors["inputs"], key=lambda name: order[details[name]["index"]])
    return {key: [dict(zip(names, each, strict=True)) for each in data]}


# --- OpenVINO -----------------------------------------------------------------------------------------------------


def read_model(model: bytes, tflite: bool = False, weights: bytes = b"") -> Any:
    """An openvino.Model of an ONNX, TFLite or IR file.

    Raises:
        ModelError: OpenVINO cannot read it.
    """
    import openvino

    try:
        if not tflite:
            return openvino.Core().read_model(model, weights)
        with tempfile.TemporaryDirectory(prefix="octogate-ir-") as scratch:
            path = Path(scratch, "model.tflite")  # TFLite is read from a path only
            path.write_bytes(model)
            return openvino.Core().read_model(path)
    except RuntimeError as error:
        raise ModelError(f"OpenVINO cannot read it: {last_line(error)}") from error


def _saved(model: Any) -> Ir:
    """Both files, with names that depend on the model alone: OpenVINO numbers nodes through a process's life."""
    import openvino

    model.set_friendly_name("model")
    kept = {result.input_value(0).get_node().get_friendly_name() for result in model.get_results()}
    for at, op in enumerate(model.get_ordered_ops()):
        if op.get_type_name() != "Parameter":
            if op.get_friendly_name() not in kept:
                for port in op.outputs():
                    port.get_tensor().set_names(set())
            op.set_friendly_name(f"{op.get_type_name()}_{at}")
        for key in list(op.get_rt_info()):
            del op.get_rt_info()[key]
    with tempfile.TemporaryDirectory(prefix="octogate-ir-") as scratch:
        path = Path(scratch, "model.xml")
        for key in list(model.get_rt_info()):  # versions and paths of the conversion
            del model.get_rt_info()[key]
        openvino.save_model(model, path, compress_to_fp16=False)
        return Ir(_small_xml(path.read_bytes()), path.with_suffix(".bin").read_bytes())


def _small_xml(data: bytes) -> bytes:
    """Without indentation and run-time notes, which are a third of a small model's file."""
    from xml.etree import ElementTree

    root = ElementTree.fromstring(data)  # written by OpenVINO a moment ago
    for parent in list(root.iter()):
        for child in [one for one in parent if one.tag == "rt_info"]:
            parent.remove(child)
    for element in root.iter():
        element.text = (element.text or "").strip() or None
        element.tail = None
    return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def random_inputs(shapes: Sequence[Sequence[int]], count: int, seed: int = 0) -> list[tuple[Array, ...]]:
    """Noise between 0 and 1: to compare runtimes with each other, never to calibrate."""
    random = np.random.default_rng(seed)
    return [tuple(random.random(shape, np.float32) for shape in shapes) for _ in range(count)]
