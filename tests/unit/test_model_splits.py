"""The test split and the injected faults are read by evaluate.py alone: held by the syntax tree."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# modules that hold what only an evaluation may see
SEALED = ("models.machine_state.faults",)


def splits_named(source: str) -> set[str]:
    """The splits that a source asks for: the second argument of `select`; one that is no literal counts as 'test'."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "select":
            given = [*node.args[1:2], *(word.value for word in node.keywords if word.arg == "split")]
            found |= {str(one.value) if isinstance(one, ast.Constant) else "test" for one in given}
    return found


def sealed_imports(source: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & set(SEALED)


def complaints(path: str, source: str) -> list[str]:
    if path.endswith("/evaluate.py"):
        return []
    return [f"{path}: reads the split '{split}'" for split in splits_named(source) & {"test"}] + [
        f"{path}: imports {name}" for name in sealed_imports(source)
    ]


def test_only_evaluate_reads_the_test_split_and_the_faults() -> None:
    files = [path for folder in ("models", "sdk", "bench") for path in sorted((ROOT / folder).rglob("*.py"))]
    named = [path.relative_to(ROOT).as_posix() for path in files]
    assert "models/machine_state/evaluate.py" in named
    assert [line for path, name in zip(files, named, strict=True) for line in complaints(name, path.read_text())] == []


def test_evaluate_does_read_them() -> None:
    source = (ROOT / "models/machine_state/evaluate.py").read_text()
    assert "test" in splits_named(source)
    assert "from models.machine_state import data, faults, package" in source


@pytest.mark.parametrize(
    "source",
    [
        "data.select(recordings, 'test')",
        "select(recordings, split='test')",
        "for split in ('train', 'test'): data.select(recordings, split)",
        "import models.machine_state.faults",
        "from models.machine_state import faults",
        "from models.machine_state.faults import arcing",
    ],
)
def test_a_peek_is_seen(source: str) -> None:
    assert complaints("models/machine_state/train.py", source)
    assert not complaints("models/machine_state/evaluate.py", source)


def test_the_other_splits_are_free() -> None:
    assert not complaints("models/machine_state/net.py", "data.select(recordings, 'train')")
