"""Our worker with a simulated device: `VPU_CPU` is OpenVINO's CPU plugin under a second name.

On it every model gets an operation at its input that does what the file $OCTOGATE_TEST_SWITCH says: `raise`, `sleep`,
`wrong` (it changes the numbers), `vanish` (it raises, and nothing can be loaded on it); without the file, nothing.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from openvino import Op, opset8

from gateway.infer import worker

DEVICE = "VPU_CPU"
SWITCH = Path(os.environ["OCTOGATE_TEST_SWITCH"])


def switch() -> str:
    try:
        return SWITCH.read_text()
    except FileNotFoundError:
        return ""


class Faulty(Op):  # type: ignore[misc]
    """Passes its input on, unless it is told otherwise."""

    def __init__(self, inputs: Any = None, **attributes: Any) -> None:
        super().__init__(self, inputs)
        self.constructor_validate_and_infer_types()

    def validate_and_infer_types(self) -> None:
        self.set_output_type(0, self.get_input_element_type(0), self.get_input_partial_shape(0))

    def clone_with_new_inputs(self, new_inputs: Any) -> "Faulty":
        return Faulty(new_inputs)

    def evaluate(self, outputs: Any, inputs: Any) -> bool:
        how = switch()
        if how in ("raise", "vanish"):
            raise RuntimeError("ZE_RESULT_ERROR_DEVICE_LOST (simulated)")
        if how == "sleep":
            time.sleep(3600)
        np.copyto(outputs[0].data, inputs[0].data * (2 if how == "wrong" else 1))
        return True

    def has_evaluate(self) -> bool:
        return True


class Core(openvino.Core):  # type: ignore[misc]
    """Knows the device, as a machine with its plugin would."""

    def __init__(self) -> None:
        super().__init__()
        (plugin,) = Path(openvino.__file__).parent.glob("libs/libopenvino_intel_cpu_plugin.so")
        self.register_plugin(str(plugin), DEVICE)

    def compile_model(self, model: Any, device: str, *more: Any) -> Any:
        if device != DEVICE:
            return super().compile_model(model, device, *more)
        if switch() == "vanish":
            raise RuntimeError("no device VPU_CPU (simulated)")
        for parameter in model.get_parameters():
            targets = list(parameter.output(0).get_target_inputs())
            faulty = Faulty([opset8.convert(parameter, "f32").output(0)])
            for target in targets:
                target.replace_source_output(faulty.output(0))
        return super().compile_model(model, device, *more)


if __name__ == "__main__":
    openvino.Core = Core
    sys.exit(worker.main(sys.argv[1]))
