"""The tools behind sdk.optimise on small networks: ./inv test --train (PyTorch, the converters and quantisers)."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from torch import nn

from gateway.errors import ModelError
from gateway.infer.backend import Runner
from sdk.optimise import (
    Budget,
    Built,
    Quantised,
    Steps,
    Task,
    Training,
    cost,
    from_files,
    from_torch,
    ir,
    ir_int8,
    onnx_int8,
    parity,
    plots,
    prune,
    tflite_int8,
    to_onnx,
    to_tflite,
    weights,
)

pytestmark = [pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore")]  # the converters' own

EXAMPLE = torch.zeros(1, 2, 64)


class Net(nn.Module):  # type: ignore[misc]
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv1d(2, width, 5, padding=2), nn.ReLU(), nn.Conv1d(width, width, 5, stride=2))
        self.head = nn.Linear(width, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.body(x)).mean(dim=2))


def data(count: int, seed: int = 0) -> tuple[list[Any], Any]:
    """Windows [1, 2, 64] that oscillate slowly or fast, and which they do."""
    random = np.random.default_rng(seed)
    fast = random.integers(0, 2, count)
    at = np.arange(64)
    waves = np.sin(at * np.where(fast, 0.9, 0.2)[:, None] + random.uniform(0, 6, count)[:, None])
    x = (waves[:, None] + random.normal(0, 0.3, (count, 2, 64))).astype(np.float32)
    return list(x[:, None]), fast


def trained(net: nn.Module, steps: int = 40) -> nn.Module:
    torch.manual_seed(1)
    torch.set_num_threads(1)
    x, fast = data(256)
    inputs, wanted = torch.from_numpy(np.concatenate(x)), torch.from_numpy(fast)
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(steps):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(inputs), wanted).backward()
        optimiser.step()
    return net.eval()


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(1)
    return trained(Net())


def right(run: Runner) -> dict[str, float]:
    x, fast = data(200, seed=9)
    return {
        "accuracy": float(np.mean([run((each,))[0].argmax() == wanted for each, wanted in zip(x, fast, strict=True)]))
    }


def task(**changes: Any) -> Task:
    x, _ = data(40, seed=3)
    given: dict[str, Any] = {
        "name": "net",
        "calibration": x,
        "check": x,
        "metric": right,
        "allowed": {"accuracy": 0.02},
    }
    return Task(**{**given, **changes})


def training(**changes: Any) -> Training:
    given: dict[str, Any] = {
        "example": EXAMPLE, "budget": Budget(60_000), "keep": ("head",), "fine_tune": trained, "depends": "1",
    }  # fmt: skip
    return Training(**{**given, **changes})


def test_the_whole_flow_twice_gives_the_same_bytes(net: nn.Module, tmp_path: Path) -> None:
    heard: list[tuple[str, bool]] = []
    first = from_torch(_copy(net), task(), training(), Steps(tmp_path / "a", tell=lambda *told: heard.append(told)))
    assert first.base["accuracy"] > 0.95
    first.insist(task(), "pruned", "int8")
    assert {built.variant.file for built in first.shipped("int8")} == {
        "model-int8.onnx", "model-int8.tflite", "model-int8.xml",
    }  # fmt: skip
    assert not any(kept for _, kept in heard)
    again = from_torch(_copy(net), task(), training(), Steps(tmp_path / "b"))
    for stage, files in first.stages.items():
        assert [one.digest for one in again.stages[stage]] == [one.digest for one in files]
    heard.clear()
    kept = from_torch(_copy(net), task(), training(), Steps(tmp_path / "a", tell=lambda *told: heard.append(told)))
    assert [one.digest for one in kept.stages["int8"]] == [one.digest for one in first.stages["int8"]]
    assert ("prune and fine-tune", True) in heard and ("int8 onnx", True) in heard
    base, pruned = (cost.macs(first.stages[stage][0]) for stage in ("base", "pruned"))
    assert pruned <= 60_000 < base


def test_a_change_redoes_its_step_and_those_after_it_only(net: nn.Module, tmp_path: Path) -> None:
    x, _ = data(40, seed=4)
    slim = [f"export {form}" for form in ("onnx", "tflite", "ir")]
    small = [f"int8 {form}" for form in ("onnx", "tflite", "openvino")]
    both = ["compare pruned", "compare int8"]
    changes: dict[str, tuple[dict[str, Any], dict[str, Any], int, list[str]]] = {
        "nothing": ({}, {}, 0, []),
        "what fine-tuning depends on": ({}, {"depends": "2"}, 0, ["prune and fine-tune"]),  # to the same weights
        "calibration": ({"calibration": x}, {}, 0, [*small, "compare int8"]),
        "budget": ({}, {"budget": Budget(40_000)}, 0, ["prune and fine-tune", *slim, *small, *both]),
        "metric": ({"depends": "another"}, {}, 0, ["compare base", *both]),
        "seed": ({}, {}, 1, [*slim, "prune and fine-tune", *slim, *small, "compare base", *both]),
    }
    for what, (of_task, of_training, seed, redone) in ({"first": changes["seed"]} | changes).items():
        heard: list[tuple[str, bool]] = []
        steps = Steps(tmp_path, seed=0 if what == "first" else seed, tell=lambda *told, heard=heard: heard.append(told))
        from_torch(_copy(net), task(**{"depends": "1", **of_task}), training(**of_training), steps)
        assert [step for step, kept in heard if not kept and step != "time"] == redone, what


def test_the_picture_of_a_report_has_what_there_is() -> None:
    way = plots.Way(stage="base", file="a.onnx", backend="onnx", where="onnx", size=10, p50_us={1: 300.0}, pss={1: 1})
    rated = replace(way, stage="int8", file="b.onnx", metrics={"f1": 0.9}, p50_us={1: 1.0, 2: 2.0}, chosen=2)
    heights = []
    for ways in ([way], [way, rated, replace(rated, backend="litert")], [replace(way, p50_us={}, pss={})]):
        picture = plots.overview("press", ways, "f1")
        assert picture.startswith(b"\x89PNG") and len(picture) > 5_000
        assert picture == plots.overview("press", ways, "f1")
        heights.append(int.from_bytes(picture[20:24], "big"))
    assert heights[1] > heights[0] and heights[1] > heights[2]


def test_a_variant_that_lost_too_much_is_refused(net: nn.Module, tmp_path: Path) -> None:
    spoilt = training(fine_tune=lambda module: module.head.weight.data.zero_(), depends="2")
    outcome = from_torch(_copy(net), task(), spoilt, Steps(tmp_path))
    assert set(outcome.refused) >= {"model.onnx", "model-int8.onnx", "model-int8.tflite"}
    with pytest.raises(ModelError, match="may not be shipped"):
        outcome.insist(task(), "int8")


def test_files_are_quantised_without_pytorch_in_the_way(net: nn.Module, tmp_path: Path) -> None:
    files = [Built.onnx(to_onnx(net, EXAMPLE), "fp32"), Built.tflite(to_tflite(net, EXAMPLE), "fp32")]
    outcome = from_files(files, task(ops=Quantised(onnx=("Conv",), tflite=("CONV_2D",))), Steps(tmp_path))
    assert [one.variant.file for one in outcome.shipped("int8")] == ["model-int8.onnx", "model-int8.tflite"]
    assert all(one.size < files[0].size for one in outcome.shipped("int8"))


def test_every_quantiser_answers_nearly_as_the_original(net: nn.Module) -> None:
    x, _ = data(40, seed=3)
    onnx, tflite = to_onnx(net, EXAMPLE), to_tflite(net, EXAMPLE)
    found = parity([
        Built.onnx(onnx, "fp32"), Built.tflite(tflite, "fp32"), Built.openvino(*ir(onnx), "fp32"),
        Built.openvino(*ir(tflite, tflite=True), "fp32", file="tflite.xml"),
        Built.onnx(onnx_int8(onnx, x), "int8"), Built.tflite(tflite_int8(tflite, x), "int8"),
        Built.openvino(*ir_int8(onnx, x), "int8"), Built.openvino(*ir_int8(tflite, x, tflite=True), "int8", file="t8.xml"),
    ], x)  # fmt: skip
    assert all(one.ran for one in found), [one.fault for one in found]
    for one in found:
        assert one.worst is not None
        assert one.worst < (1e-4 if one.built.variant.precision == "fp32" else 0.2), str(one)


def test_what_few_calls_reach_is_within_the_range(net: nn.Module) -> None:
    """Two quiet inputs, then a loud one, then many quiet ones: an average of their ranges would cut the loud one."""
    x, _ = data(40, seed=3)
    quiet, loud = [each * np.float32(0.1) for each in x], x[0] * np.float32(3)
    onnx, tflite = to_onnx(net, EXAMPLE), to_tflite(net, EXAMPLE)
    seen = [*quiet[:2], loud, *quiet[2:]]
    [_, *made] = parity(
        [Built.onnx(onnx, "fp32"), Built.tflite(tflite_int8(tflite, seen), "int8")], [loud]
    )  # fmt: skip
    assert [one.worst for one in made if one.backend == "litert" and one.worst is not None and one.worst < 0.1]


@pytest.mark.parametrize("budget", [Budget(60_000), Budget(9_000, "bytes")])
def test_pruning_keeps_its_budget_and_the_heads_width(net: nn.Module, budget: Budget) -> None:
    slim = prune.prune_to(net, EXAMPLE, budget, keep=("head",))
    macs, parameters = prune.size(slim, EXAMPLE)
    assert (macs if budget.unit == "macs" else parameters * 4) <= budget.limit
    assert slim(EXAMPLE).shape == (1, 2) and net.body[0].out_channels == 32
    with pytest.raises(ModelError, match="no submodule tail"):
        prune.prune(net, EXAMPLE, 0.5, keep=("tail",))


def test_weights_of_a_pruned_module_fit_a_whole_one(net: nn.Module) -> None:
    slim = prune.prune(net, EXAMPLE, 0.5, keep=("head",))
    again = weights.put(Net(), weights.of(slim)).eval()
    x = torch.from_numpy(data(4)[0][0])
    assert torch.equal(slim(x), again(x)) and again.body[0].out_channels == 16
    with pytest.raises(ModelError, match="weights of another module"):
        weights.put(nn.Linear(2, 2), weights.of(slim))


def test_what_cannot_be_exported_is_told() -> None:
    class Branches(nn.Module):  # type: ignore[misc]
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(ModelError, match="cannot export this module"):
        to_onnx(Branches(), EXAMPLE)


def _copy(net: nn.Module) -> nn.Module:
    return weights.put(Net(), weights.of(net))
