"""Pack machine_state, or fit the committed bundle to another machine without training:

python -m models.machine_state.package --rated-current 4 --rated-power 900 --output press-4.octo
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace

from gateway.contract import Channel, Schema
from gateway.infer.bundle import Bundle
from gateway.infer.manifest import Normalise
from models import kit
from models.machine_state import data
from sdk.bundle import pack
from sdk.optimise import Built, Outcome
from sdk.registry import write_atomic

NAME = "machine_state"
FOLDER = Path(__file__).resolve().parent
BUNDLE = FOLDER / f"{NAME}.octo"
REFERENCE = "model.onnx"  # fp32: what the golden samples' answers are computed with
CHANNELS = ("current", "power")
MEDIA = f"records;{Schema((Channel('current', 'f', 'A'), Channel('power', 'f', 'W'))).spec()}"
TOLERANCE = {"fp32": 1e-3, "fp16": 2e-2, "int8": 0.15}
LICENCE = kit.MODELS.parent / "LICENSE"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rated-current", type=float, default=data.RATED_A, help="the machine's, in amps")
    parser.add_argument("--rated-power", type=float, default=data.RATED_W, help="the machine's, in watts")
    kit.add_arguments(parser, BUNDLE)


def build(
    files: Mapping[str, bytes], output: Path, key: Path, amps: float = data.RATED_A, watts: float = data.RATED_W
) -> str:
    """Pack and sign the variants' files, with the answers of the fp32 one as golden; gives the digest."""
    spec = rated(kit.read_spec(FOLDER / "model.toml"), amps, watts)
    members = {
        **{name: files[name] for variant in spec["variants"] for name in names_of(variant)},
        "card.md": kit.bundled_card(FOLDER / "README.md"),
        "LICENSE": LICENCE.read_bytes(),
    }
    samples = {f"{name}.f32": (records, MEDIA) for name, records in golden_windows(amps, watts).items()}
    right = Built.onnx(files[REFERENCE], "fp32", inputs=("window",), outputs=("logits", "strangeness"))
    return kit.build(spec, members, samples, TOLERANCE, output, kit.signing_key(key), right)


def names_of(variant: Mapping[str, Any]) -> list[str]:
    """The members of a variant of model.toml."""
    return [variant["file"], *([variant["weights"]] if "weights" in variant else [])]


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


def build_from(arguments: argparse.Namespace, files: Mapping[str, bytes]) -> None:
    """Pack what `train` made."""
    digest = build(files, arguments.output, arguments.key, arguments.rated_current, arguments.rated_power)
    report(arguments.output, digest)


def report(output: Path, digest: str) -> None:
    """Prove every variant on every runtime of this machine, and say what came of it."""
    ran = kit.prove(output)
    print(f"{output}: {output.stat().st_size / 1000:.1f} kB, digest {digest}")
    print(f"golden samples reproduced by {', '.join(ran)}")


def keep(outcome: Outcome) -> dict[str, bytes]:
    """Every variant, base and refused ones too, as files for evaluate.py and the report; gives them."""
    files = {name: data for stage in outcome.stages.values() for one in stage for name, data in one.members.items()}
    for name, content in files.items():
        write_atomic(kit.BUILD / NAME / name, content)
    write_atomic(kit.BUILD / NAME / "outcome.md", "\n".join([*outcome.table(), ""]).encode())
    return files


def packed_files(path: Path = BUNDLE) -> dict[str, bytes]:
    """The variants of a bundle."""
    with Bundle(path) as bundle:
        names = [name for one in bundle.manifest.variants for name in (one.file, one.weights) if name]
        return {name: bytes(bundle.member(name)) for name in names}


def refit(source: Path, output: Path, key: Path, amps: float, watts: float) -> str:
    """A bundle for a machine of another rating; relative to the rating all is as before, answers too."""
    with Bundle(source) as bundle:
        manifest = bundle.manifest
        members = {name: bytes(bundle.member(name)) for name in manifest.members()}
    first, *rest = manifest.pre
    assert isinstance(first, Normalise)
    for name, records in golden_windows(amps, watts).items():
        members[f"golden/{name}.f32"] = records
    pre = (replace(first, std=(amps, watts)), *rest)
    output.parent.mkdir(parents=True, exist_ok=True)
    return pack(output, replace(manifest, pre=pre), members, kit.signing_key(key))


def main() -> None:
    parser = argparse.ArgumentParser(description="Fit machine_state to another machine, without training.")
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help="whose networks (default: the committed one's)")
    add_arguments(parser)
    arguments = parser.parse_args()
    digest = refit(arguments.bundle, arguments.output, arguments.key, arguments.rated_current, arguments.rated_power)
    report(arguments.output, digest)


if __name__ == "__main__":
    main()
