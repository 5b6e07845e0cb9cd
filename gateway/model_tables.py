"""The tables of the config file that say what computes: models, and what this machine has for them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from gateway.errors import ConfigError, ModelError
from gateway.infer import device
from gateway.tables import Name, Table


class ModelTable(Table, frozen=True):
    name: Name
    bundle: str
    threads: Annotated[int, Meta(ge=0, le=64)] = 0  # 0 or left out: as many as were measured best
    deadline_ms: Annotated[int, Meta(ge=0, le=600_000)] = 0  # 0 takes the bundle's own limit
    backend: str = ""  # onnx, litert, openvino; empty takes what was measured best
    device: str = ""  # CPU, or a backend's word for another; empty takes what was measured best
    nice: Annotated[int, Meta(ge=0, le=19)] = 10
    max_input_kib: Annotated[int, Meta(ge=1, le=65536)] = 2048
    priority: Annotated[int, Meta(ge=-100, le=100)] = 0  # the highest goes first when processors are short
    workers: Annotated[int, Meta(ge=1, le=16)] = 1  # processes that compute it side by side
    worker: Annotated[str, Meta(pattern=r"^([a-z0-9][a-z0-9_-]{0,47})?$")] = (
        ""  # models of one name here share one process
    )


Words = Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=device.MAX_WORD)], ...], Meta(max_length=16)]


class InferenceTable(Table, frozen=True):
    """What to compute on, and how much of it; docs/runtimes.md says how devices are named."""

    cpus: Annotated[int, Meta(ge=0, le=1024)] = 0  # threads that may compute at a time; 0: as many as processors
    standby_mib: Annotated[int, Meta(ge=0, le=1 << 20)] = 512  # resident memory of all standby workers; 0: none
    objective: Literal["latency", "throughput", "energy"] = "latency"  # what measured candidates are chosen by
    providers: Words = ()  # execution providers of ONNX Runtime
    delegates: Words = ()  # of LiteRT, by library
    openvino_devices: Words = ()

    def devices(self, backend: str) -> tuple[str, ...]:
        """The words for one backend, for its `devices`."""
        return {"onnx": self.providers, "litert": self.delegates, "openvino": self.openvino_devices}[backend]


def check_devices(path: Path, table: InferenceTable) -> None:
    """Raises ConfigError: a word that names no device."""
    for key, parse in (
        ("providers", device.provider),
        ("delegates", device.delegate),
        ("openvino_devices", device.target),
    ):
        for i, word in enumerate(getattr(table, key)):
            try:
                parse(word)
            except ModelError as error:
                raise ConfigError(f"{path}: inference.{key}[{i}]: {error.what}", hint=error.hint) from error
