"""The rules of the house, held by the syntax tree: who may import whom, no cycles, sizes, no swallowed errors.

Each rule is a function from source text to complaints, so that each is also shown a source it must complain about.
"""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("gateway", "sdk", "firmware_tools", "models")
ROOMS = ("acquire", "infer", "analyse", "store", "sync", "panel")
NODE_FIRMWARE = "firmware_tools/node_firmware/"
MAX_FUNCTION, MAX_FILE, MAX_NODE_BYTES = 80, 400, 16_000

# What each package may import of the others: module or package -> why. Anything not named here is refused.
MAY_IMPORT: dict[str, dict[str, str]] = {
    "gateway": {},
    "sdk": {
        "gateway.contract": "the types that cross the wire",
        "gateway.errors": "one tree of errors for both sides",
        "gateway.blocks": "puts the pictures together that the gateway sends in blocks",
        "gateway.config": "checks a config before it is deployed",
        "gateway.durable": "keeps pictures as the gateway does",
        "gateway.tables": "the base of a strict TOML table",
        "gateway.clock": "dates readings as the gateway does",
        "gateway.control": "the client side of the control socket",
        "gateway.command": "asks a gateway from afar",
        "gateway.link": "fakes a node, tests the wire format",
        "gateway.store.columns": "decodes the batches it ingests",
        "gateway.infer.bundle": "writes what the gateway reads",
        "gateway.infer.manifest": "what a bundle says of itself",
        "gateway.infer.steps": "pre and post steps, the same in training and on the device",
        "gateway.infer.backend": "compares a model's variants with the gateway's own runners",
        "gateway.infer.candidate": "which runtimes take which variant",
        "gateway.infer.golden": "compares answers as the gateway does",
    },
    "models": {
        "sdk": "the tools to optimise and sign",
        "gateway.infer": "steps and runners",
        "gateway.contract": "results and schemas",
        "gateway.errors": "one tree of errors",
        "gateway.forms": "the form that a recogniser is measured on",
        "gateway.form_print": "how it looks",
        "gateway.analyse.workorder": "and what the gateway makes of it",
    },
    "firmware_tools": {
        "sdk": "provisions what it flashed",
        "gateway.contract": "names of streams",
        "gateway.config": "the config that goes into an image",
        "gateway.errors": "one tree of errors",
        "gateway.link": "speaks with a node",
        "gateway.acquire.identity": "finds a port as the gateway does",
    },
}
# The lowest floor: everything stands on it, so it may stand on no room.
FOUNDATION = ("gateway.contract", "gateway.errors", "gateway.clock", "gateway.durable", "gateway.link")
# "path::function" -> why a blind except is right there. A handler that ends in a bare `raise` needs no entry.
BLIND_EXCEPTS: dict[str, str] = {}
FORBIDDEN_TEXT = re.compile(  # built from parts, so that this file passes its own test
    "|".join(
        [
            "py" + r"pi\.org",
            "files.python" + r"hosted\.",
            "download.py" + r"torch\.",
            "registry.npm" + r"js\.",
            "deb.deb" + r"ian\.org",
            "/opt/py" + "pi",
            "/opt/whe" + "els",
            r"(?<![\w.])/wo" + r"rk/(?:main|shared|\.)",
            "/root/" + r"\.",
        ]
    )
)
UNSAFE_MODULES = ("pickle", "cPickle", "dill", "shelve", "marshal")
type_checking = re.compile(r"(typing\.)?TYPE_CHECKING")


def module_name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def is_within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """What runs when the module is imported: not the insides of functions, not `if TYPE_CHECKING`."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and type_checking.fullmatch(ast.unparse(node.test)):
            yield from statements(node.orelse)
            continue
        yield node
        for block in ("body", "orelse", "finalbody"):
            yield from statements(getattr(node, block, []))
        for handler in getattr(node, "handlers", []):
            yield from statements(handler.body)


def imports(path: str, source: str, known: set[str], at_import: bool = False) -> Iterator[tuple[str, int]]:
    """Every module that a file imports, with the line; `from a import b` is a.b where that is a module."""
    tree = ast.parse(source)
    here = module_name(path)
    package = here.split(".") if path.endswith("__init__.py") else here.split(".")[:-1]
    for node in statements(tree.body) if at_import else ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            parts = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield (full if full in known else base), node.lineno


def import_complaints(path: str, source: str, known: set[str]) -> list[str]:
    found = []
    here = module_name(path)
    for target, line in dict.fromkeys(imports(path, source, known)):
        if (why := import_refused(here, target)) is not None:
            found.append(f"{path}:{line}: {here} must not import {target}: {why}")
    return found


def import_refused(here: str, target: str) -> str | None:
    """Why `here` may not import `target`, or None."""
    owner, other = here.split(".")[0], target.split(".")[0]
    if owner in MAY_IMPORT and other in PACKAGES and owner != other:
        if target == other == "gateway" and MAY_IMPORT[owner]:
            return None  # the bare package holds nothing
        allowed = MAY_IMPORT[owner]
        return None if any(is_within(target, name) for name in allowed) else "not in MAY_IMPORT of the tests"
    if owner != "gateway" or other != "gateway":
        return None
    room = next((name for name in ROOMS if is_within(here, f"gateway.{name}")), None)
    target_room = next((name for name in ROOMS if is_within(target, f"gateway.{name}")), None)
    if room and target_room and room != target_room:
        return "rooms do not know each other; app.py ties them"
    if room and target in ("gateway.app", "gateway.__main__"):
        return "rooms do not know who ties them"
    if target_room and any(is_within(here, name) for name in FOUNDATION):
        return "the foundation stands on no room"
    return None


def cycles(sources: dict[str, str]) -> list[str]:
    """Rings of modules that import each other while being imported."""
    known = {module_name(path) for path in sources}
    graph = {
        module_name(path): {name for name, _ in imports(path, source, known, at_import=True) if name in known}
        for path, source in sources.items()
    }
    found: list[str] = []
    done: set[str] = set()

    def visit(module: str, trail: list[str]) -> None:
        if module in trail:
            found.append(" -> ".join([*trail[trail.index(module) :], module]))
        elif module not in done:
            for target in sorted(graph[module] - {module}):
                visit(target, [*trail, module])
            done.add(module)

    for module in sorted(graph):
        visit(module, [])
    return found


def size_complaints(path: str, source: str) -> list[str]:
    found = []
    lines = source.count("\n")
    if lines > MAX_FILE:
        found.append(f"{path}: {lines} lines, more than {MAX_FILE}")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION:
                found.append(f"{path}:{node.lineno}: {node.name}: {length} lines, more than {MAX_FUNCTION}")
    return found


def blind_excepts(path: str, source: str, allowed: dict[str, str]) -> list[str]:
    found = []

    def visit(node: ast.AST, function: str) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            function = node.name
        if isinstance(node, ast.ExceptHandler):
            names = {ast.unparse(part) for part in ast.walk(node.type)} if node.type else {"Exception"}
            last = node.body[-1]
            passes_on = isinstance(last, ast.Raise) and last.exc is None
            blind = names & {"Exception", "BaseException", "builtins.Exception", "builtins.BaseException"}
            if blind and not passes_on and f"{path}::{function}" not in allowed:
                found.append(f"{path}:{node.lineno}: in {function or 'the module'}: catch what you can name")
        for child in ast.iter_child_nodes(node):
            visit(child, function)

    visit(ast.parse(source), "")
    return found


def call_complaints(path: str, source: str) -> list[str]:
    """Tasks without a parent, pickle, and shells."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [getattr(node, "module", None) or alias.name for alias in node.names]
            unsafe = [name for name in names if name.split(".")[0] in UNSAFE_MODULES]
            found += [f"{path}:{node.lineno}: {name} runs code of whoever wrote the data" for name in unsafe]
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        receiver, _, method = name.rpartition(".")
        loose = method == "ensure_future" or (
            method == "create_task" and (receiver in ("", "asyncio") or "loop" in receiver.lower())
        )
        if loose:
            found.append(f"{path}:{node.lineno}: {name}: a task needs a parent, use a TaskGroup")
        if name in ("os.system", "os.popen", "subprocess.getoutput", "asyncio.create_subprocess_shell"):
            found.append(f"{path}:{node.lineno}: {name} goes through a shell")
        for keyword in node.keywords:
            if keyword.arg == "shell" and ast.unparse(keyword.value) != "False":
                found.append(f"{path}:{node.lineno}: {name}(shell=...) goes through a shell")
    return found


def text_complaints(path: str, text: str) -> list[str]:
    return [
        f"{path}:{number}: {found.group()!r} is an address of a registry or a path of one machine"
        for number, line in enumerate(text.splitlines(), 1)
        if (found := FORBIDDEN_TEXT.search(line))
    ]


def python_files(*folders: str) -> dict[str, str]:
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return {path.relative_to(ROOT).as_posix(): path.read_text() for path in paths}


PRODUCT = {path: text for path, text in python_files(*PACKAGES).items() if not path.startswith(NODE_FIRMWARE)}
NODE = python_files(NODE_FIRMWARE)
EVERYTHING = {
    **PRODUCT,
    **NODE,
    **python_files("tests", "bench", "requirements"),
    "tasks.py": (ROOT / "tasks.py").read_text(),
}
KNOWN = {module_name(path) for path in PRODUCT}


def tracked_texts() -> dict[str, str]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False, text=True)
    if listing.returncode:
        pytest.skip("not a git checkout")
    texts = {}
    for name in filter(None, listing.stdout.split("\0")):
        path = ROOT / name
        content = path.read_bytes() if path.is_file() else b"\0"
        if b"\0" not in content[:8192]:
            texts[name] = content.decode(errors="replace")
    return texts


def test_only_allowed_imports() -> None:
    assert [line for path, text in PRODUCT.items() for line in import_complaints(path, text, KNOWN)] == []


def test_no_import_cycles() -> None:
    assert cycles(PRODUCT) == []


def test_functions_and_files_are_small() -> None:
    assert [line for path, text in EVERYTHING.items() for line in size_complaints(path, text)] == []


def test_no_blind_except() -> None:
    assert [line for path, text in EVERYTHING.items() for line in blind_excepts(path, text, BLIND_EXCEPTS)] == []
    assert {key.split("::")[0] for key in BLIND_EXCEPTS} <= set(EVERYTHING), "it names files that are no more"


def test_no_loose_tasks_shells_or_pickles() -> None:
    assert [line for path, text in EVERYTHING.items() for line in call_complaints(path, text)] == []


def test_no_addresses_of_this_machine_in_tracked_files() -> None:
    assert [line for path, text in tracked_texts().items() for line in text_complaints(path, text)] == []


def test_node_firmware_parses_and_fits_a_small_board() -> None:
    assert NODE, f"no node firmware in {NODE_FIRMWARE}"
    assert sum(len(text.encode()) for text in NODE.values()) <= MAX_NODE_BYTES
    for path, text in NODE.items():
        ast.parse(text, path)
        assert len(text.encode()) <= MAX_NODE_BYTES, f"{path} is too long to be compiled on an RP2040"


# From here on: every rule can fail.


@pytest.mark.parametrize(
    ("path", "source", "complaint"),
    [
        ("gateway/app.py", "from sdk import client", "not in MAY_IMPORT"),
        ("gateway/infer/worker.py", "import models.states", "not in MAY_IMPORT"),
        ("gateway/sync/mqtt.py", "from gateway.store.spool import Spool", "rooms do not know each other"),
        ("gateway/sync/mqtt.py", "from ..store import spool", "rooms do not know each other"),
        ("gateway/sync/mqtt.py", "def f():\n    import gateway.app", "rooms do not know who ties them"),
        ("gateway/link/frames.py", "from gateway.acquire import node", "the foundation stands on no room"),
        ("sdk/demo.py", "from gateway.infer import engine", "not in MAY_IMPORT"),
        ("models/states/train.py", "import gateway.store.spool", "not in MAY_IMPORT"),
        ("firmware_tools/flash.py", "from gateway.app import run", "not in MAY_IMPORT"),
    ],
)
def test_a_wrong_import_is_seen(path: str, source: str, complaint: str) -> None:
    known = {"gateway.infer.engine", "gateway.store.spool", "gateway.acquire.node"}
    found = import_complaints(path, source, known)
    assert len(found) == 1
    assert complaint in found[0]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("gateway/app.py", "from gateway.store.spool import Spool"),
        ("gateway/sync/mqtt.py", "from gateway import contract\nfrom . import backlog"),
        ("gateway/acquire/node.py", "from gateway.link.frames import Frame"),
        ("sdk/ingest.py", "from gateway import contract\nfrom gateway.store.columns import decode"),
        ("models/states/train.py", "import sdk.optimise, torch\nfrom gateway.infer.steps import Window"),
    ],
)
def test_a_right_import_passes(path: str, source: str) -> None:
    assert import_complaints(path, source, {"gateway.contract", "gateway.sync.backlog"}) == []


def test_a_cycle_is_seen_but_a_late_import_is_none() -> None:
    ring = {
        "gateway/a.py": "import gateway.b",
        "gateway/b.py": "from gateway import c",
        "gateway/c.py": "from . import a",
    }
    assert cycles(ring) == ["gateway.a -> gateway.b -> gateway.c -> gateway.a"]
    for late in (
        "def f():\n    from . import a",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from . import a",
    ):
        assert cycles({**ring, "gateway/c.py": late}) == []
    for hidden in ("try:\n    from . import a\nexcept ImportError:\n    pass", "if 1:\n    from . import a"):
        assert len(cycles({**ring, "gateway/c.py": hidden})) == 1


def test_a_long_function_and_a_long_file_are_seen() -> None:
    assert size_complaints("x.py", "def f():\n" + "    pass\n" * MAX_FUNCTION) != []
    assert size_complaints("x.py", "async def f():\n" + "    pass\n" * (MAX_FUNCTION - 1)) == []
    assert size_complaints("x.py", "a = 1\n" * (MAX_FILE + 1)) != []


@pytest.mark.parametrize("clause", ["except Exception:", "except:", "except (OSError, BaseException) as e:"])
def test_a_blind_except_is_seen(clause: str) -> None:
    source = f"def f():\n    try:\n        g()\n    {clause}\n        pass"
    assert blind_excepts("x.py", source, {}) != []
    assert blind_excepts("x.py", source, {"x.py::f": "the supervisor"}) == []
    assert blind_excepts("x.py", source.replace("pass", "raise"), {}) == []
    assert blind_excepts("x.py", source.replace(clause, "except OSError:"), {}) == []


@pytest.mark.parametrize(
    "source",
    [
        "asyncio.create_task(f())",
        "loop.create_task(f())",
        "asyncio.get_running_loop().create_task(f())",
        "ensure_future(f())",
        "import pickle",
        "from pickle import loads",
        "subprocess.run('ls', shell=True)",
        "os.system('ls')",
    ],
)
def test_a_loose_task_a_shell_and_a_pickle_are_seen(source: str) -> None:
    assert len(call_complaints("x.py", source)) == 1


def test_a_task_with_a_parent_passes() -> None:
    source = "async def f():\n    async with asyncio.TaskGroup() as group:\n        group.create_task(g(), name='g')"
    assert call_complaints("x.py", source) == []


@pytest.mark.parametrize(
    "text", ["https://py" + "pi.org/simple", "see /wo" + "rk/main/x", "--find-links /opt/whe" + "els"]
)
def test_an_address_is_seen(text: str) -> None:
    assert text_complaints("x.txt", f"first\n{text}\n") != []
    assert text_complaints("x.txt", "/workshop/main is fine, docs/work/main too") == []
