"""`python -m models build|evaluate NAME [options]`, `report [NAME ...] [--json]`, `list [--json]`: for `./inv models.*`."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from gateway.errors import OctogateError
from gateway.infer.bundle import Bundle
from models import kit
from models.kit import MODELS
from sdk.optimise import figures

USAGE = (
    "usage: python -m models build|evaluate NAME [options]; python -m models report [NAME ...] [--json]; "
    "python -m models list [--json]"
)
# what a model is built by: trained here, or fetched
BUILDERS = ("train", "fetch")
# what only the extra `train` brings along
TRAINING = (
    "torch", "onnx", "onnxscript", "openvino", "nncf", "torch_pruning", "litert_torch", "ai_edge_litert",
    "ai_edge_quantizer", "flatbuffers", "matplotlib",
)  # fmt: skip


def names() -> list[str]:
    """The models there are."""
    return sorted(path.parent.name for path in MODELS.glob("*/model.toml"))


def known_names(wanted: Iterable[str]) -> list[str]:
    """These, if they are all models.

    Raises:
        OctogateError: one is not.
    """
    there = names()
    for name in wanted:
        if name not in there:
            raise OctogateError(f"there is no model '{name}'", hint=f"there are: {', '.join(there)}")
    return list(wanted)


def script(action: str, name: str) -> str:
    """The module that does it.

    Raises:
        OctogateError: no such action or model.
    """
    known_names([name])
    wanted = BUILDERS if action == "build" else ("evaluate",) if action == "evaluate" else ()
    for module in wanted:
        if importlib.util.find_spec(f"models.{name}.{module}"):
            return f"models.{name}.{module}"
    raise OctogateError(f"'{action}' is not what a model can do", hint=USAGE)


def listed() -> list[dict[str, Any]]:
    """Each model, with the bundle that is in its folder.

    Raises:
        OctogateError: a bundle or a model.toml is damaged.
    """
    return [_entry(name) for name in names()]


def _entry(name: str) -> dict[str, Any]:
    spec = kit.read_spec(MODELS / name / "model.toml")
    entry = {key: spec.get(key, "") for key in ("name", "version", "task", "licence")}
    path = MODELS / name / f"{name}.octo"
    if not path.is_file():
        return {**entry, "bundle": None}
    with Bundle(path) as bundle:
        verified = bundle.verify(kit.trusted(), allow_unsigned=True)
        variants = [f"{one.format} {one.precision}" for one in bundle.manifest.variants]
    found = {"path": str(path.relative_to(MODELS.parent)), "bytes": path.stat().st_size, "digest": verified.digest}
    return {**entry, "bundle": {**found, "signed_by": verified.signed_by or "", "variants": variants}}


def show_list(as_json: bool) -> None:
    entries = listed()
    if as_json:
        print(json.dumps(entries, indent=1))
        return
    rows = [("model", "task", "version", "bundle", "variants")]
    for one in entries:
        bundle = one["bundle"]
        size = f"{bundle['bytes'] / 1000:,.0f} kB" if bundle else "not built"
        rows.append((one["name"], one["task"], one["version"], size, ", ".join(bundle["variants"]) if bundle else "-"))
    wide = [max(len(row[at]) for row in rows) for at in range(4)]
    for row in rows:
        print("  ".join([*(cell.ljust(wide[at]) for at, cell in enumerate(row[:4])), row[4]]))
    if any(one["bundle"] is None for one in entries):
        print("not built: ./inv models.build NAME makes the bundle from its package")


def keep_figures(name: str) -> None:
    """Put what was found of the committed bundle beside it, so that a clone's report has it, too."""
    try:
        found = figures.read(kit.BUILD / name)
        with Bundle(MODELS / name / f"{name}.octo") as bundle:
            digest = bundle.verify(kit.trusted(), allow_unsigned=True).digest
    except OctogateError:
        return  # written beside it already, or there is no such bundle
    if found.bundle == digest:
        found.write(MODELS / name)


def main(arguments: Sequence[str]) -> int:
    """The exit code."""
    action, *rest = arguments or [""]
    alone = action in ("report", "list")
    if not action or not (rest or alone) or (action == "list" and rest not in ([], ["--json"])):
        print(USAGE, file=sys.stderr)
        return 2
    try:
        if action == "list":
            show_list(bool(rest))
            return 0
        module = "models.report" if alone else script(action, rest.pop(0))
        sys.argv = [f"python -m {module}", *rest]
        importlib.import_module(module).main()
        if action == "evaluate":
            keep_figures(arguments[1])
    except OctogateError as error:
        print(f"octogate: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in TRAINING:
            raise
        hint = f"it is in the environment of `train`, which ./inv models.{action} makes and uses"
        print(f"octogate: {error.name} is not installed ({hint})", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("octogate: interrupted; what was done is kept", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
