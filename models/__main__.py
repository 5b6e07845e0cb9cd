"""`python -m models [build | evaluate] NAME [options]`: what `./inv models.build` and `./inv models.evaluate` call."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence

from gateway.errors import OctogateError
from models.kit import MODELS

USAGE = "usage: python -m models build|evaluate NAME [options]; python -m models list"
# what a model is built by: trained here, or fetched
BUILDERS = ("train", "fetch")
# what comes with the extra `train`
TRAIN = ("torch", "onnx", "onnxscript", "openvino", "nncf", "ai_edge_quantizer", "ai_edge_litert", "flatbuffers")


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
    if len(arguments) < 2:
        print(USAGE, file=sys.stderr)
        return 2
    action, name, *rest = arguments
    try:
        module = script(action, name)
        sys.argv = [f"python -m {module}", *rest]
        importlib.import_module(module).main()
    except OctogateError as error:
        print(f"octogate: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        if error.name not in TRAIN:
            raise
        hint = "install the extra 'train': .venv/bin/python -m pip install -e '.[train]'"
        print(f"octogate: {error.name} is not installed ({hint})", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
