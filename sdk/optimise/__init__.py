"""Models made small, fast and still right, and the proof of it. docs/models.md explains.

What needs PyTorch, ONNX, OpenVINO or TensorFlow loads it when it is called: extras `train` and `tensorflow`.
"""

from sdk.optimise import cache as cache
from sdk.optimise import cost as cost
from sdk.optimise import prune as prune
from sdk.optimise import weights as weights
from sdk.optimise.budget import Budget as Budget
from sdk.optimise.cache import Steps as Steps
from sdk.optimise.export import to_onnx as to_onnx
from sdk.optimise.export import to_tflite as to_tflite
from sdk.optimise.flow import Outcome as Outcome
from sdk.optimise.flow import Quantised as Quantised
from sdk.optimise.flow import Task as Task
from sdk.optimise.flow import Training as Training
from sdk.optimise.flow import from_files as from_files
from sdk.optimise.flow import from_torch as from_torch
from sdk.optimise.parity import Agreement as Agreement
from sdk.optimise.parity import latency_us as latency_us
from sdk.optimise.parity import parity as parity
from sdk.optimise.parity import runner as runner
from sdk.optimise.quantise import Ir as Ir
from sdk.optimise.quantise import ir as ir
from sdk.optimise.quantise import ir_int8 as ir_int8
from sdk.optimise.quantise import onnx_int8 as onnx_int8
from sdk.optimise.quantise import tflite_int8 as tflite_int8
from sdk.optimise.variants import Built as Built
from sdk.optimise.variants import Inputs as Inputs
from sdk.optimise.variants import read_onnx as read_onnx
from sdk.optimise.variants import read_tflite as read_tflite
