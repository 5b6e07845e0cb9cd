"""Which candidates follow from the devices, the variants and the pins; and devices that are asked for in vain."""

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.config import load
from gateway.errors import ModelError
from gateway.infer import inventory, order, probe, ranking
from gateway.infer.candidate import Candidate
from gateway.infer.manifest import Variant
from gateway.infer.order import Order
from gateway.infer.probe import Answer, AskDevices, AskReport, Device
from tests.unit import bundles
from tests.unit.test_ranking import GOOD, ONNX, measured, placement

CPU = Device("CPU")
FOUND = {
    "onnx": (CPU, Device("CUDAExecutionProvider", "built without it")),
    "litert": (Device("CPU", "not installed"),),
    "openvino": (CPU, Device("NPU")),
}
MANIFEST = bundles.manifest(
    variants=(
        Variant(file="a.onnx", format="onnx", precision="fp32"),
        Variant(file="b.tflite", format="tflite", precision="int8"),
    )
)


def wanted(**more: Any) -> tuple[list[str], list[str]]:
    what = Order(name="m", bundle="m.octo", **more)
    possible, absent = inventory.candidates(what, MANIFEST, FOUND)
    assert all(m.rejected and m.figures is None for m in absent)
    return [str(c) for c in possible], [str(m.candidate) for m in absent]


def test_every_backend_variant_device_and_number_of_threads() -> None:
    possible, absent = wanted(cpus=4)
    assert possible == [
        "onnx fp32 x1", "onnx fp32 x2", "onnx fp32 x4",
        "openvino fp32 x1", "openvino fp32 x2", "openvino fp32 x4", "openvino fp32 NPU x1",
    ]  # fmt: skip
    assert absent == ["onnx fp32 CUDAExecutionProvider x1", "litert int8 x1"]


@pytest.mark.parametrize(("cpus", "threads"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (6, [1, 2, 4, 6])])
def test_threads_double_up_to_the_budget(cpus: int, threads: list[int]) -> None:
    assert wanted(cpus=cpus, backend="onnx", device="CPU")[0] == [f"onnx fp32 x{n}" for n in threads]


def test_pins_are_kept_to() -> None:
    assert wanted(cpus=4, threads=3, device="CPU", backend="onnx") == (["onnx fp32 x3"], [])
    assert wanted(cpus=4, threads=3) == (
        ["onnx fp32 x3", "openvino fp32 x3", "openvino fp32 NPU x3"],
        ["onnx fp32 CUDAExecutionProvider x3", "litert int8 x3"],
    )
    assert wanted(cpus=4, device="NPU") == (["openvino fp32 NPU x1"], [])
    assert wanted(cpus=4, device="GPU") == ([], [])


def test_the_key_changes_with_what_a_measurement_depends_on() -> None:
    base = Order(name="m", bundle="m.octo", cpus=2)
    key = inventory.key(base, "d" * 64, FOUND)
    assert key == inventory.key(base, "d" * 64, dict(reversed(FOUND.items())))
    others = [
        inventory.key(base, "e" * 64, FOUND),
        inventory.key(base, "d" * 64, {**FOUND, "openvino": (CPU, Device("NPU", "gone"))}),
        *(
            inventory.key(msgspec.structs.replace(base, **change), "d" * 64, FOUND)
            for change in ({"cpus": 4}, {"objective": "energy"}, {"backend": "onnx"}, {"device": "CPU"}, {"threads": 1})
        ),
    ]
    assert key not in others and len(set(others)) == len(others)
    assert any(version.startswith("onnxruntime ") for version in key.versions)
    assert inventory.processor() == key.cpu and len(key.cpu) > 8


def asked(question: AskDevices | AskReport, patience_s: float = 20.0) -> Answer:
    return asyncio.run(inventory.ask(question, patience_s))


def test_a_real_backend_names_its_devices() -> None:
    answer = asked(AskDevices("onnx", ("NoSuchExecutionProvider",), os.getpid()))
    assert (
        answer.devices[0] == CPU and answer.devices[1].name == "NoSuchExecutionProvider" and answer.devices[1].why_not
    )
    assert "there is no backend 'cuda'" in asked(AskDevices("cuda", (), os.getpid())).fault


def test_a_report_or_the_reason_why_there_is_none(tmp_path: Path) -> None:
    bundle = str(bundles.make(tmp_path / "a.octo"))
    report = asked(AskReport(bundle, ONNX, os.getpid())).report
    assert report is not None and report.device == "CPU" and report.threads == 1
    gone = msgspec.structs.replace(ONNX, file="gone.onnx")
    assert "has no variant gone.onnx" in asked(AskReport(bundle, gone, os.getpid())).fault


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("import os; os.abort()", "its runtime crashed: ended by SIGABRT"),
        ("import signal; signal.pause()", "no answer in 1 s"),
        ("import sys; sys.exit('no licence')", "exit status 1: no licence"),
        ("print('nonsense')", "exit status 0: JSON is malformed"),
        ("print('x' * 2_000_000)", "exit status 0: an answer of 2000001 bytes"),
    ],
)
def test_a_runtime_that_hangs_or_crashes_at_being_asked(monkeypatch: pytest.MonkeyPatch, code: str, fault: str) -> None:
    command: Callable[..., list[str]] = lambda *_: [sys.executable, "-c", code]  # noqa: E731
    monkeypatch.setattr(inventory, "python_module", command)
    patience_s = 1.0 if "pause" in code else 20.0
    assert asked(AskDevices("onnx", (), os.getpid()), patience_s).fault.startswith(fault)
    if "pause" not in code:
        found = asyncio.run(inventory.devices(Order(name="m", bundle="m.octo")))
        assert all(len(devices) == 1 and devices[0].why_not.startswith(fault) for devices in found.values())


def test_an_answer_survives_the_pipe() -> None:
    answer = Answer(devices=(CPU, Device("NPU", "gone")), fault="x")
    assert msgspec.json.decode(msgspec.json.encode(answer), type=probe.Answer) == answer


CONFIG = """
[gateway]
id = "test"
data_dir = "data"
[inference]
objective = "energy"
[[model]]
name = "tiny"
bundle = "a.octo"
"""


def test_what_an_engine_starts_with(tmp_path: Path) -> None:
    bundles.make(tmp_path / "a.octo")

    def first(more: str = "") -> tuple[Candidate, ...]:
        (tmp_path / "gateway.toml").write_text(CONFIG + more)
        config = load(tmp_path / "gateway.toml")
        return tuple(order.first_candidates(order.order_of(config, config.model[0])))

    assert first() == ()  # the safe order, by the worker's own reading of the bundle
    assert [str(c) for c in first('device = "NPU"\nthreads = 2')] == ["onnx fp32 NPU x2", "openvino fp32 NPU x2"]
    cache = tmp_path / "data" / "placement" / "tiny.json"
    ranking.save(cache, placement(measured(ONNX, 1)))
    assert first() == (ONNX,)
    assert first('backend = "litert"') == ()
    ranking.save(cache, GOOD)  # of a bundle with other variants
    assert first() == ()
    ranking.save(cache, placement(measured(ONNX, 1)))
    (tmp_path / "a.octo").write_bytes(b"half a copy")
    assert first() == ()


def test_an_order_says_what_the_config_says(tmp_path: Path) -> None:
    bundles.make(tmp_path / "a.octo")
    (tmp_path / "gateway.toml").write_text(CONFIG + "deadline_ms = 250\n")
    config = load(tmp_path / "gateway.toml")
    made = order.order_of(config, config.model[0])
    assert (made.objective, made.deadline_s, made.threads, made.pins) == ("energy", 0.25, 0, "any/any/any")
    assert made.cpus == len(os.sched_getaffinity(0)) and set(made.extra) == {"onnx", "litert", "openvino"}
    with pytest.raises(ModelError, match="takes none of its variants"):
        msgspec.structs.replace(made, backend="litert").safe(bundles.manifest())
