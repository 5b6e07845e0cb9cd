"""Pack machine_state, or fit the committed bundle to another machine without training:

python -m models.machine_state.package --rated-current 4 --rated-power 900 --output press-4.octo
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from gateway.contract import Channel, Schema
from gateway.infer.bundle import Bundle
from gateway.infer.manifest import Window
from models import kit
from models.machine_state import data

NAME = "machine_state"
FOLDER = Path(__file__).resolve().parent
BUNDLE = FOLDER / f"{NAME}.octo"
MODEL_FILE = kit.BUILD / NAME / "model.onnx"  # what train.py made last
CHANNELS = ("current", "power")
MEDIA = f"records;{Schema((Channel('current', 'f', 'A'), Channel('power', 'f', 'W'))).spec()}"
TOLERANCE = {"fp32": 1e-3, "fp16": 2e-2}
LICENCE = kit.MODELS.parent / "LICENSE"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rated-current", type=float, default=data.RATED_A, help="the machine's, in amps")
    parser.add_argument("--rated-power", type=float, default=data.RATED_W, help="the machine's, in watts")
    kit.add_arguments(parser, BUNDLE)


def build(model: bytes, output: Path, key: Path, amps: float = data.RATED_A, watts: float = data.RATED_W) -> str:
    """Pack and sign; gives the digest."""
    spec = rated(kit.read_spec(FOLDER / "model.toml"), amps, watts)
    files = {
        "model.onnx": model,
        "card.md": kit.bundled_card(FOLDER / "README.md"),
        "LICENSE": LICENCE.read_bytes(),
    }
    samples = {f"{name}.f32": (records, MEDIA) for name, records in golden_windows(amps, watts).items()}
    return kit.build(spec, files, samples, TOLERANCE, output, kit.signing_key(key))


def rated(spec: dict[str, Any], amps: float, watts: float) -> dict[str, Any]:
    """The spec for a machine of this rating."""
    first, *rest = spec["pre"]
    return {**spec, "pre": [{**first, "std": [amps, watts]}, *rest]}


def golden_windows(amps: float, watts: float) -> dict[str, bytes]:
    """Windows as records, by name: made by formula, because the recordings may not be passed on."""
    at = np.arange(data.LENGTH) / data.RATE_HZ
    random = np.random.default_rng(2024)
    ripple = 1.0 + 0.05 * np.sin(2 * np.pi * 9.0 * at)
    inrush = np.where(at < 0.5, 0.001, 1.0 + 3.0 * np.exp(-(at - 0.5) / 0.08))
    levels = {
        "off": np.full(data.LENGTH, 0.001),
        "idle": 0.12 * ripple,
        "running": 0.95 * ripple,
        "start": inrush * ripple,
    }
    made = {}
    for name, level in levels.items():
        noisy = np.maximum(np.stack([level, 0.8 * level], axis=1) + random.normal(0, 0.0003, (data.LENGTH, 2)), 0)
        made[name] = (noisy * (amps, watts)).astype("<f4").tobytes()
    return made


def build_from(arguments: argparse.Namespace, model: bytes) -> None:
    """What `train` and this module's command line share: pack, and say what came of it."""
    digest = build(model, arguments.output, arguments.key, arguments.rated_current, arguments.rated_power)
    print(f"{arguments.output}: {arguments.output.stat().st_size} bytes, digest {digest}")


def packed_model(path: Path = BUNDLE) -> bytes:
    """The network in a bundle."""
    with Bundle(path) as bundle:
        assert isinstance(bundle.manifest.input, Window)
        return bytes(bundle.member("model.onnx"))


def main() -> None:
    parser = argparse.ArgumentParser(description="Pack and sign machine_state from the network of a bundle.")
    parser.add_argument("--model", type=Path, help="an ONNX file of train.py (default: the network of the bundle)")
    add_arguments(parser)
    arguments = parser.parse_args()
    build_from(arguments, arguments.model.read_bytes() if arguments.model else packed_model())


if __name__ == "__main__":
    main()
