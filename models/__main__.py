"""`python -m models [build | evaluate] NAME [options]`: what `./inv models.build` and `./inv models.evaluate` call."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence

from gateway.errors import OctogateError
from models.kit import MODELS

USAGE = (
    "usage: python -m models build|evaluate NAME [options]; python -m models report [NAME ...]; python -m models list"
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


def script(action: str, name: str) -> str:
    """The module that does it.

    Raises:
        OctogateError: no such action or model.
    """
    if name not in names():
        raise OctogateError(f"there is no model '{name}'", hint=f"there are: {', '.join(names())}")
    wanted = BUILDERS if action == "build" else ("evaluate",) if action == "evaluate" else ()
    for module in wanted:
        if importlib.util.find_spec(f"models.{name}.{module}"):
            return f"models.{name}.{module}"
    raise OctogateError(f"'{action}' is not what a model can do", hint=USAGE)


def main(arguments: Sequence[str]) -> int:
    """The exit code."""
    if list(arguments) == ["list"]:
        print("\n".join(names()))
        return 0
    report = list(arguments[:1]) == ["report"]
    if len(arguments) < 2 and not report:
        print(USAGE, file=sys.stderr)
        return 2
    try:
        action, *rest = arguments
        module = "models.report" if report else script(action, rest.pop(0))
        sys.argv = [f"python -m {module}", *rest]
        importlib.import_module(module).main()
    except OctogateError as error:
        print(f"octogate: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in TRAINING:
            raise
        hint = f"it is in the environment of `train`, which ./inv models.{action} makes and uses"
        print(f"octogate: {error.name} is not installed ({hint})", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
